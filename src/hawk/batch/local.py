"""Drawing on this machine: in this process, or in several."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cache
from itertools import islice

from hawk.batch.folder import Record
from hawk.batch.job import Block, Settings
from hawk.batch.worker import OnImage, Worker
from hawk.errors import HawkError
from hawk.processes import process_pool

AHEAD = 2
"""Blocks of each process that are drawn or wait for it."""


def drawn_here(settings: Settings, blocks: Iterable[Block], on_image: OnImage) -> Generator[Record, None, None]:
    """Draw blocks in this process, one after another."""
    worker = Worker(settings)
    for block in blocks:
        yield worker.draw(block, on_image)


def drawn_by_processes(settings: Settings, blocks: Iterable[Block], processes: int) -> Generator[Record, None, None]:
    """Draw blocks in several processes, each with its own model; the records come in the order in which blocks end.

    Raises `HawkError` where a process was killed; the blocks that are done are kept.
    """
    if settings.threads is None and settings.device == "cpu":
        settings = replace(settings, threads=max(1, (os.cpu_count() or 1) // processes))
    waiting = iter(blocks)
    with process_pool(processes, _prepare) as pool:
        running: set[Future[Record]] = set()
        try:
            while True:
                for block in islice(waiting, AHEAD * processes - len(running)):
                    running.add(pool.submit(_draw, settings, block))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise HawkError(
                "a worker process was killed, perhaps since the memory ended: run the same command again to go on, "
                "with a smaller --num-workers if it happens again"
            ) from error


@cache
def _worker(settings: Settings) -> Worker:
    """The worker of a process."""
    return Worker(settings)


def _prepare() -> None:
    """Do nothing: the model is loaded with the first block, so that an error in it reaches the caller."""


def _draw(settings: Settings, block: Block) -> Record:
    """Draw a block in a process of a pool."""
    return _worker(settings).draw(block)
