"""SIGTERM, which schedulers and torchrun send before they take a machine away: a fit is saved, and the command ends."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hawk.errors import TerminatedError

Unsafe = Callable[[FrameType | None], bool]
"""Whether an exception must not be raised in a frame."""


class Terminations:
    """A handler of SIGTERM: it raises `TerminatedError` at once, but inside the body of `saved_first` it only notes it.

    A second SIGTERM changes nothing. If `unsafe` is true of the interrupted frame, the signal is also only noted.
    """

    def __init__(self, unsafe: Unsafe) -> None:
        self.unsafe = unsafe
        self.asked = False
        self.bodies = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        first, self.asked = not self.asked, True
        if first and not self.bodies and not self.unsafe(frame):
            raise TerminatedError


@contextmanager
def heeding_sigterm(unsafe: Unsafe = lambda frame: False) -> Iterator[None]:
    """In the body SIGTERM is handled by `Terminations`. Only the main thread can call this.

    Raises `TerminatedError` where SIGTERM came, also in place of an error that may follow from it.
    """
    before = signal.signal(signal.SIGTERM, Terminations(unsafe))
    try:
        yield
    except Exception as error:  # what was under way may fail since the other processes are being ended, too
        if stop_asked():
            raise TerminatedError from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def saved_first() -> Iterator[None]:
    """In the body SIGTERM raises nothing: the body asks `stop_asked`, saves, and then raises `TerminatedError` itself.

    Raises `TerminatedError` after the body where the signal came too late for it.
    """
    handler = _handler()
    if handler is None:
        yield
        return
    handler.bodies += 1
    try:
        yield
    finally:
        handler.bodies -= 1
    if handler.asked:
        raise TerminatedError


@contextmanager
def given_up() -> Iterator[None]:
    """In the body, inside that of `saved_first`, SIGTERM ends the body by `TerminatedError`, which goes no further.

    Afterwards `stop_asked` tells whether the body was ended.
    """
    handler = _handler()
    if handler is None:
        yield
        return
    bodies = handler.bodies
    try:
        handler.bodies = 0
        yield
        handler.bodies = bodies
    except TerminatedError:
        handler.bodies = bodies


def stop_asked() -> bool:
    """Whether SIGTERM came since `heeding_sigterm` took over."""
    handler = _handler()
    return handler is not None and handler.asked


def ignore_sigterm(*_: object) -> None:
    """Leave SIGTERM to the process that started this one: schedulers send it to every process of a job."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _handler() -> Terminations | None:
    handler = signal.getsignal(signal.SIGTERM)
    return handler if isinstance(handler, Terminations) else None
