"""A replica: a process of a Ray cluster with one model and one worker, which draws the jobs that reach it.

This module does not need Ray: a replica is a plain object whose methods are coroutines.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import torch

from hawk import __version__
from hawk.errors import HawkError
from hawk.pipeline import HawkPipeline
from hawk.server.card import ModelCard
from hawk.server.config import MOST_IMAGES, Limits
from hawk.server.jobs import DrainingError, Event, Failed, Finished, FullError, Inbox, Wish
from hawk.server.observer import Note, Notebook
from hawk.server.studio import Studio
from hawk.server.worker import Worker


@dataclass(frozen=True)
class ReplicaSettings:
    """What each replica loads and how much it takes: see the options of `hawk serve`.

    `places` images are drawn together in a replica. `version` is that of Hawk in the process that made these settings.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    drafter: str | None = None
    engine: str = "auto"
    threads: int | None = None
    places: int = 4
    limits: Limits = field(default_factory=Limits)
    version: str = __version__

    @property
    def requests(self) -> int:
        """The number of requests that a replica has at once; the images that it draws next are there already."""
        return 2 * self.places


@dataclass(frozen=True)
class Report:
    """What a replica sends at once: the newest events of one job, and what its worker told since the last report."""

    replica: str
    events: tuple[Event, ...]
    notes: tuple[Note, ...] = ()

    @property
    def last(self) -> bool:
        """Whether the job is over."""
        return isinstance(self.events[-1], Finished | Failed)


class Drawer:
    """Draws the jobs of a replica. Where the model cannot be loaded, `introduce` says why."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self.name, self.notebook, self.refusal = uuid.uuid4().hex[:12], Notebook(), ""
        self.worker: Worker | None = None
        try:
            self.worker = started_worker(settings, self.notebook)
        except HawkError as error:
            self.refusal = f"{error} (a replica on {socket.gethostname()})"

    async def introduce(self) -> ModelCard | str:
        """Facts about the model, or why it could not be loaded."""
        return self.refusal if self.worker is None else self.worker.card

    async def draw(self, wish: Wish, client: str, timeout: float) -> AsyncIterator[Report]:
        """Draw a job; its events come in reports, the last of which ends with `Finished` or `Failed`.

        The job is given up when the caller closes the iterator.
        """
        if self.worker is None:
            raise RuntimeError(self.refusal)
        inbox = Inbox()
        try:
            job = self.worker.submit(wish, client, timeout, inbox.tell)
        except FullError as error:
            yield Report(self.name, (Failed("full", str(error), retry_after=error.retry_after),))
            return
        except DrainingError:
            yield Report(self.name, (Failed("lost", "the replica that got the request is stopping: send it again"),))
            return
        try:
            over = False
            while not over:
                events = [await inbox.get()]
                while not inbox.empty():
                    events.append(inbox.get_nowait())
                report = Report(self.name, tuple(events), self.notebook.take())
                over = report.last
                yield report
        finally:
            self.worker.cancel(job)

    async def check_health(self) -> None:
        """Raise `RuntimeError` where the worker's thread has ended: the replica must be replaced."""
        if self.worker is not None and not self.worker.alive:
            raise RuntimeError("the worker has ended")


def started_worker(settings: ReplicaSettings, notebook: Notebook) -> Worker:
    """Load the model and start the worker; returns once it takes jobs.

    Raises:
        HawkError: the model cannot be loaded, or this machine has another version of Hawk.
        RuntimeError: the model was loaded, and cannot be used.
    """
    if settings.version != __version__:
        raise HawkError(f"a replica has Hawk {__version__}, and not {settings.version}: install one version everywhere")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    pipe = HawkPipeline.from_pretrained(
        settings.model, settings.device, settings.dtype, settings.drafter, settings.engine
    )
    worker = Worker(Studio(pipe, settings.limits.area), settings.places, settings.requests * MOST_IMAGES, notebook)
    worker.start()
    while not worker.ready.wait(0.1):
        if worker.ended.is_set():
            raise RuntimeError("the model cannot be used: the log shows the error")
    return worker
