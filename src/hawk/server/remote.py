"""The replicas of a cluster as a server sees them: one backend, which follows each job on the replica that draws it.

A replica that ends takes its jobs with it, which fail with one sentence; no other job is touched. This module does not
need Ray: `Replicas` says what the cluster does.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol, runtime_checkable

from hawk.server.card import ModelCard
from hawk.server.jobs import (
    Accepted,
    DrainingError,
    Drawn,
    Event,
    Failed,
    Finished,
    FullError,
    Job,
    JobImage,
    Stepped,
    Wish,
)
from hawk.server.observer import Observer
from hawk.server.replica import Report
from hawk.server.worker import PROMPT_LINE

LOGGER = logging.getLogger(__name__)

LOST = "the replica that was drawing this request ended: send the request again"
LOOK = 1.0
"""Seconds between two looks at the cluster."""


class LostError(Exception):
    """The replica that had a job ended, or no replica could take the job."""


@runtime_checkable
class Replicas(Protocol):
    """The replicas of a cluster."""

    def draw(self, wish: Wish, client: str, timeout: float) -> AsyncGenerator[Report, None]:
        """Let a replica draw a job, which is given up when the generator is closed.

        Raises:
            FullError: no replica has room, and enough jobs wait.
            LostError: the replica ended.
        """
        ...

    def running(self) -> int:
        """The number of replicas that take jobs; it may take seconds to find out. 0 where the cluster is gone."""
        ...


class RemoteWorker:
    """The backend of a server whose images are drawn by replicas; `observer` is told what their workers tell.

    A method that takes or gives up jobs is called in the thread of the server's event loop; `drain` and `stop` may also
    be called in a signal handler or after the loop.
    """

    def __init__(
        self, replicas: Replicas, card: ModelCard, observer: Observer | None = None, log_prompts: bool = False
    ) -> None:
        self.replicas, self.log_prompts = replicas, log_prompts
        self.card = card
        self.observer = observer or Observer()
        self.ready, self.ended = threading.Event(), threading.Event()
        self.broken = False
        self._draining = False
        self._tasks: dict[Job, asyncio.Task[None]] = {}  # jobs that are not over
        self._counts: dict[str, tuple[int, int]] = {}  # waiting and live images by replica
        self._watcher = threading.Thread(target=self._watch, name="hawk-replicas", daemon=True)

    def start(self) -> None:
        """Begin to watch the replicas; that one of them told of the model says that there is one."""
        self.ready.set()
        self._watcher.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are followed. Replicas are replaced by the cluster; no restart of the server is needed then."""
        return not self.ended.is_set()

    @property
    def draining(self) -> bool:
        """Whether new jobs are refused."""
        return self._draining

    def jobs(self) -> list[Job]:
        """The jobs that are not over."""
        return list(self._tasks)

    def submit(self, wish: Wish, client: str, timeout: float, tell: Callable[[Event], None]) -> Job:
        """Hand a job to the cluster, whose events `tell` will be given; they end with `Finished` or `Failed`.

        A full queue is such a failure, too. Raises `DrainingError` where no more jobs are taken.
        """
        if self._draining:
            raise DrainingError
        if self.log_prompts:
            LOGGER.info(PROMPT_LINE, wish.images, client, wish.prompt)
        job = Job(wish, client, time.monotonic() + timeout, tell)
        self._tasks[job] = asyncio.get_running_loop().create_task(self._follow(job))
        return job

    def cancel(self, job: Job) -> None:
        """Give up a job; its replica is told. A job that is over stays as it is."""
        self._give_up(job, Failed("cancelled", "the request was cancelled"))

    def drain(self) -> None:
        """Take no more jobs; `ended` is set once those that were taken are over."""
        self._draining = True
        if not self._tasks:
            self.ended.set()

    def stop(self) -> None:
        """Give up all jobs."""
        self._draining = True
        for job in self.jobs():
            self._give_up(job, Failed("stopping", "the server is stopping"))
        self.ended.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the replicas are no longer watched; returns whether that is so."""
        if self._watcher.is_alive():
            self._watcher.join(timeout)
        return not self._watcher.is_alive()

    # --- one job ----------------------------------------------------------------------------------------------

    async def _follow(self, job: Job) -> None:
        """Take the reports on a job until it is over."""
        left, replica = job.deadline - time.monotonic(), ""
        try:
            async with asyncio.timeout(left), aclosing(self.replicas.draw(job.wish, job.client, left)) as reports:
                async for report in reports:
                    replica = report.replica
                    self._take(job, report)
                    if job.over:
                        return
            self._end(job, Failed("lost", LOST, retry_after=1))
        except asyncio.CancelledError:  # the job is over, or the loop ends
            self._end(job, Failed("stopping", "the server is stopping"))
            raise
        except TimeoutError:
            self._end(job, Failed("timeout", "the time of the request is over"))
        except FullError as error:
            self._end(job, Failed("full", str(error), retry_after=error.retry_after))
        except LostError as error:
            LOGGER.warning("a request is lost with replica %s: %s", replica or "(none yet)", error)
            self._counts.pop(replica, None)
            self._end(job, Failed("lost", LOST, retry_after=1))
        except Exception as error:
            reference = uuid.uuid4().hex[:12]
            LOGGER.error("error %s of a replica", reference, exc_info=error)
            self._end(job, Failed("error", f"the image could not be drawn (error {reference})", reference))

    def _take(self, job: Job, report: Report) -> None:
        """Hand a report on."""
        for note in report.notes:
            if note.method == "counted":
                self._count(report.replica, note.values)
            else:
                note.tell(self.observer)
        for event in report.events:
            if job.over:
                return
            note_progress(job, event)
            if isinstance(event, Finished | Failed):
                if isinstance(event, Failed) and event.kind == "error":
                    LOGGER.error("error %s in replica %s, whose log has more", event.reference, report.replica)
                self._end(job, event)
            else:
                self._tell(job, event)

    def _count(self, replica: str, counts: tuple[int, int]) -> None:
        """Take note of the images in a replica."""
        self._counts[replica] = counts
        self._tell_counts()

    def _tell_counts(self) -> None:
        waiting, live = (sum(each) for each in zip(*self._counts.values(), strict=True)) if self._counts else (0, 0)
        self.observer.counted(waiting, live)

    def _end(self, job: Job, event: Finished | Failed) -> None:
        """End a job: its client is told."""
        if job.over:
            return
        job.over = True
        del self._tasks[job]
        self._tell(job, event)
        self.observer.ended(event.kind if isinstance(event, Failed) else "finished")
        if not self._tasks:
            self._counts.clear()
            self._tell_counts()
            if self._draining:
                self.ended.set()

    def _give_up(self, job: Job, event: Failed) -> None:
        """End a job that its replica may still draw, and follow it no longer, which tells the replica."""
        task = self._tasks.get(job)
        self._end(job, event)
        if task is not None and not task.get_loop().is_closed():
            task.get_loop().call_soon_threadsafe(task.cancel)

    def _tell(self, job: Job, event: Event) -> None:
        """Send an event, unless the loop that reads it has ended."""
        try:
            job.tell(event)
        except RuntimeError:
            LOGGER.debug("a client could not be told", exc_info=True)

    # --- the replicas -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look at the cluster again and again; jobs are refused while no replica takes any."""
        while not self.ended.is_set():
            running = self.replicas.running()
            self.observer.replicated(running)
            if running:
                self.ready.set()
            else:
                self.ready.clear()
            self.ended.wait(LOOK)


def note_progress(job: Job, event: Event) -> None:
    """Take note of how far a job's images are."""
    if isinstance(event, Accepted):
        now = time.monotonic()
        job.images = [JobImage(job, place, event.grid.size, now) for place in range(job.wish.images)]
    elif isinstance(event, Stepped | Drawn):
        image = job.images[event.place]
        image.committed = event.committed if isinstance(event, Stepped) else image.size
        job.drawn += isinstance(event, Drawn)
