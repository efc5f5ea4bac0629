"""A whole job: what is missing of it is drawn, and summed up."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hawk.batch.folder import Folder, Record, Sums
from hawk.batch.job import Block, Job
from hawk.batch.worker import OnImage
from hawk.evaluation.locking import sole_owner

Runner = Callable[[Iterable[Block], OnImage], Generator[Record, None, None]]
"""Draws blocks and yields the record of each as soon as it is done; it may call its second argument at each image."""
OnProgress = Callable[[int], None]
"""Called with the images that are there, those of earlier runs included."""


@dataclass(frozen=True)
class Summary:
    """What a command did.

    `images` were drawn by this command, and `skipped` were there before. `failed` counts the rows without images in
    failures.jsonl. `images_per_second` is of this command, `accept_length` of all images of the job.
    """

    images: int
    failed: int
    skipped: int
    images_per_second: float
    accept_length: float

    def document(self) -> dict[str, Any]:
        """The summary as JSON values."""
        return asdict(self)


def complete(job: Job, runner: Runner, on_progress: OnProgress) -> Summary:
    """Draw the blocks that the job's folder lacks. Without any, the runner is not called.

    failures.jsonl and stats.json are written in any case, also where an error or Ctrl-C ends the run early.

    Raises:
        HawkError: the folder is another job's or in use, or the runner cannot go on.
        OSError: the disk is full.
    """
    folder = Folder(Path(job.settings.out), job.settings.format)
    folder.claim(job)
    with sole_owner(folder.path):
        folder.clean()
        done = {record.block: record for record in folder.records(job)}
        sums = Sums.of(job, done.values())
        skipped, started = sums.images, time.perf_counter()
        progress = Progress(on_progress, skipped)
        try:
            if len(done) < job.blocks:
                missing = (block for block in job.every_block() if block.number not in done)
                with closing(runner(missing, progress.image)) as records:
                    for record in records:
                        sums.add(record)
                        progress.reach(sums.images)
        finally:
            sums.write(folder)
        seconds = time.perf_counter() - started
    images = sums.images - skipped
    return Summary(images, len(sums.failures), skipped, images / seconds if images else 0.0, sums.accept_length)


class Progress:
    """Counts images for a progress bar: those of blocks that are done, and those of a block that is being drawn."""

    def __init__(self, tell: OnProgress, images: int) -> None:
        self.tell, self.images = tell, images
        tell(images)

    def image(self) -> None:
        """Count one image of a block that is being drawn."""
        self.images += 1
        self.tell(self.images)

    def reach(self, images: int) -> None:
        """Set the count after a block is done."""
        self.images = images
        self.tell(images)
