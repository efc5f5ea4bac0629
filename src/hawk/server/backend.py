"""What draws the jobs of a server, as its routes see it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from hawk.server.card import ModelCard
from hawk.server.jobs import Event, Job, Wish


@runtime_checkable
class Backend(Protocol):
    """The worker of this process (`Worker`), or the replicas of a Ray cluster (`RemoteWorker`).

    `ready` is set while jobs can be drawn, `ended` once no more jobs will be. `broken`: an error was the reason.
    """

    ready: threading.Event
    ended: threading.Event
    broken: bool

    @property
    def card(self) -> ModelCard:
        """Facts about the model."""
        ...

    @property
    def alive(self) -> bool:
        """Whether the backend works; if it does not, the server must be restarted."""
        ...

    @property
    def draining(self) -> bool:
        """Whether the backend refuses new jobs."""
        ...

    def start(self) -> None:
        """Begin to work."""
        ...

    def jobs(self) -> list[Job]:
        """The jobs that are not over."""
        ...

    def submit(self, wish: Wish, client: str, timeout: float, tell: Callable[[Event], None]) -> Job:
        """Hand over a job, whose events `tell` will be given; they end with `Finished` or `Failed`.

        `timeout` is in seconds.

        Raises:
            FullError: the queue has no room for the job's images.
            DrainingError: the backend takes no more jobs.
        """
        ...

    def cancel(self, job: Job) -> None:
        """Give up a job. A job that is over stays as it is."""
        ...

    def drain(self) -> None:
        """Take no more jobs; the backend ends once those that were taken are over."""
        ...

    def stop(self) -> None:
        """End soon; jobs that are not over fail."""
        ...

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the backend has ended; returns whether it has."""
        ...
