"""Processes that work for this one. Ctrl-C is left to the process that waits for them, which then ends them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from typing import Any

STDERR = 2
"""The file descriptor of the standard error stream."""


@contextmanager
def process_pool(processes: int, prepare: Callable[[], None]) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes, each of which first calls `prepare`; an exception in the body ends them at once."""
    _start_tracker()  # before the pool's first semaphore does it
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    with _Pool(processes, spawn, initializer=partial(_begin, prepare)) as pool:
        try:
            yield pool
        except BaseException:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(prepare: Callable[[], None]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prepare()


class _Pool(ProcessPoolExecutor):
    """A pool whose processes start with Ctrl-C blocked. An initializer runs only after imports of some seconds."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with _sigint_blocked():
            return super().submit(fn, *args, **kwargs)


def _start_tracker() -> None:
    """Start Python's process that frees the semaphores which an ended process leaves behind.

    It would tell of them on the terminal after the last line of an interrupted command, so it gets no stderr. There is
    no such process on Windows.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return
    with without_stderr():
        resource_tracker.ensure_running()


@contextmanager
def without_stderr() -> Iterator[None]:
    """In the body, what this process and the processes that it starts write to the standard error stream is lost."""
    try:
        kept = os.dup(STDERR)
    except OSError:  # this process has no stderr
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), STDERR)
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT in the body. A process that is started there inherits the block."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    _start_tracker()  # its start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
