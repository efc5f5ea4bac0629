"""The worker: the one thread that owns the engine and the model. Requests reach it by a queue and leave as events.

An image is given to the engine as soon as there is room for it; until then it waits in a queue that is fair to
clients. A step that raises an error ends no image but the one that cannot be drawn: every image that was in the engine
is drawn once more, alone, from its seed, so that its tokens are the same.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

from jaxtyping import Int
from torch import Tensor

from hawk.decoding.lane import Progress
from hawk.decoding.tree import Window
from hawk.engine import Ended
from hawk.errors import HawkError
from hawk.machine import lacking_operations_refused
from hawk.outputs import drawn_metadata
from hawk.server.card import ModelCard
from hawk.server.fair_queue import FairQueue
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
    Partial,
    Stepped,
    Wish,
)
from hawk.server.observer import Observer
from hawk.server.studio import Studio, numbers

LOGGER = logging.getLogger(__name__)

PROMPT_LINE = "%d images for %s: %r"
"""What the log says of a request where it may tell prompts."""


class GroupLeftError(Exception):
    """Ends the drawing of a group whose images nobody waits for any more."""


class Worker:
    """Draws jobs in a thread of its own; `places` images at once, and up to `queue` images wait.

    `submit`, `cancel`, `drain`, `stop` and the properties may be used from any thread.
    """

    def __init__(
        self, studio: Studio, places: int, queue: int, observer: Observer | None = None, log_prompts: bool = False
    ) -> None:
        self.studio, self.places, self.capacity, self.log_prompts = studio, places, places + queue, log_prompts
        self.observer = observer or Observer()
        self.card = ModelCard.of(studio.pipe, int(time.time()))
        self.ready, self.ended = threading.Event(), threading.Event()
        self.broken = False  # whether an error ended the thread
        self._calls: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._open: set[Job] = set()  # jobs that are not over; guarded by the lock, as the next three
        self._images = 0
        self._draining = self._stopping = False
        self._engine = studio.engine(places)
        self._waiting = FairQueue()
        self._live: dict[JobImage, None] = {}  # images in the engine, in the order in which they were given to it
        self._suspects: deque[JobImage] = deque()  # images of a step that failed: each is drawn alone
        self._pace = 0.0  # seconds from one finished image to the next, while there is work
        self._finished_at = 0.0
        self._began = 0.0  # when the running step began
        self._thread = threading.Thread(target=self._run, name="hawk-worker", daemon=True)

    # --- for any thread ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def draining(self) -> bool:
        """Whether the worker refuses new jobs."""
        return self._draining

    @property
    def open_images(self) -> int:
        """The number of images that wait or are being drawn."""
        return self._images

    def jobs(self) -> list[Job]:
        """The jobs that are not over."""
        with self._lock:
            return list(self._open)

    def submit(self, wish: Wish, client: str, timeout: float, tell: Callable[[Event], None]) -> Job:
        """Hand over a job, whose events `tell` will be given; they end with `Finished` or `Failed`.

        Raises:
            FullError: the queue has no room for the job's images.
            DrainingError: the worker takes no more jobs.
        """
        with self._lock:
            if self._draining or self.ended.is_set():
                raise DrainingError
            if self._images + wish.images > self.capacity:
                raise FullError(max(1, min(60, round(self._pace * wish.images))))
            job = Job(wish, client, time.monotonic() + timeout, tell)
            self._open.add(job)
            self._images += wish.images
        self._calls.put(job)
        return job

    def cancel(self, job: Job) -> None:
        """Give up a job; its images leave before the next step. A job that is over stays as it is."""
        job.cancelled = True
        self._calls.put(None)

    def drain(self) -> None:
        """Take no more jobs; the thread ends once those that were taken are over."""
        with self._lock:
            self._draining = True
        self._calls.put(None)

    def stop(self) -> None:
        """End the thread after the running step; jobs that are not over fail."""
        with self._lock:
            self._draining = self._stopping = True
        self._calls.put(None)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the thread has ended; returns whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # --- the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self.studio.warm()
            self.ready.set()
            while not self._stopping and (self._open or not self._draining):
                try:
                    self._turn()
                except Exception as error:  # not of a step: a fault of the worker itself
                    self._fail(self._started(), error, "the worker")
                    self._renew()
        except Exception:
            self.broken = True
            LOGGER.exception("the worker ends: the model cannot be used")
        finally:
            self.ended.set()
            for job in self.jobs():
                self._end(job, Failed("stopping", "the server is stopping"))

    def _turn(self) -> None:
        """Take calls, let images join, run one step; waits where there is nothing to do."""
        self._take_calls(wait=not (self._engine.busy or self._waiting or self._suspects))
        self._drop_ended()
        self._feed()
        self.observer.counted(len(self._waiting) + len(self._suspects), len(self._live))
        if self._engine.busy:
            self._step()

    def _take_calls(self, wait: bool = False) -> None:
        """Read the jobs that came in."""
        while True:
            try:
                job = self._calls.get(block=wait)
            except Empty:
                return
            wait = False
            if job is not None:
                self._read(job)

    def _read(self, job: Job) -> None:
        """Let the model read a job's wish; the job's images wait then, or the job fails."""
        if self.log_prompts:
            LOGGER.info(PROMPT_LINE, job.wish.images, job.client, job.wish.prompt)
        ahead = len(self._waiting) + len(self._suspects) + len(self._live)
        try:
            job.reading = self.studio.read(job.wish)
        except HawkError as error:
            self._end(job, Failed("refused", str(error)))
            return
        except Exception as error:
            self._fail([job], error, "reading a request")
            return
        request, now = job.reading.request, time.monotonic()
        job.images = [JobImage(job, place, request.grid.size, now) for place in range(request.images)]
        for image in job.images:
            self._waiting.push(image)
        self._tell(job, Accepted(ahead, tuple(request.seeds), request.grid, request.params, job.reading.hint))

    def _drop_ended(self) -> None:
        """End the jobs that were cancelled or whose time is over; their places are free for the next step."""
        now = time.monotonic()
        for job in self.jobs():
            if job.cancelled:
                self._end(job, Failed("cancelled", "the request was cancelled"))
            elif now > job.deadline:
                self._end(job, Failed("timeout", "the time of the request is over"))

    def _feed(self) -> None:
        """Give images to the engine while there is room; one alone where a step has failed."""
        if self._suspects:
            if not self._engine.busy:
                self._submit([self._suspects.popleft()])
            return
        while self._waiting and len(self._live) < self.places:
            first = self._waiting.pop()
            reading = first.job.reading
            assert reading is not None
            if isinstance(reading.drafter, Window):
                if not self._submit([first]):
                    continue
            elif self._live:  # a group begins when the engine is empty; nobody overtakes it
                self._waiting.push_back(first)
                return
            else:
                self._submit([first, *self._waiting.pop_of(first.job, self.places - 1)])
                return

    def _submit(self, images: list[JobImage]) -> bool:
        """Give images of one job to the engine; returns whether it took them."""
        job, now = images[0].job, time.monotonic()
        assert job.reading is not None
        part = slice(images[0].place, images[-1].place + 1)
        try:
            self._engine.submit(images, job.reading.request.rows(part), job.reading.drafter)
        except HawkError as error:
            self._fail([job], error, "submitting a request")
            return False
        for image in images:
            image.began, image.forwards = image.began or now, [1]
            self._live[image] = None
        return True

    def _step(self) -> None:
        """One step of the engine, and the pictures of the images that it finished."""
        live, before = len(self._live), sum(image.committed for image in self._live)
        images, started = list(self._live), time.perf_counter()
        self._began = started
        try:
            with lacking_operations_refused(self.studio.pipe.device):
                ended = self._engine.step(self._on_step)
        except GroupLeftError:
            self._live.clear()
            return
        except Exception as error:
            self._recover(error)
            return
        for each in ended:
            self._live.pop(each.key, None)
            if not isinstance(each.outcome, HawkError):
                each.key.committed = each.key.size
        tokens = sum(image.committed for image in images) - before
        self.observer.stepped(live, tokens, time.perf_counter() - started)
        for each in ended:
            self._finish(each)

    def _on_step(self, progress: Progress[JobImage]) -> None:
        """Take note of what a step committed, and send what clients asked to see of it."""
        canvas, now = progress.canvas, time.perf_counter()
        share, self._began = (now - self._began) / len(progress.keys), now
        for image in progress.keys:
            image.seconds += share
        for row, (image, committed) in enumerate(zip(progress.keys, canvas.committed, strict=True)):
            image.forwards.append(committed)
            grew, image.committed = committed > image.committed, committed
            wish = image.job.wish
            if not grew or image.job.over or committed >= image.size:
                continue
            if wish.watched:
                self._tell(image.job, Stepped(image.place, committed, image.size, image.nfe, round(image.seconds, 4)))
            crossed = committed * (wish.partials + 1) // image.size
            if crossed > image.crossed:
                image.crossed = crossed
                self._send_partial(image, canvas.tokens[row], canvas.origins[row])
        self._began = time.perf_counter()  # pictures of unfinished images take no part in an image's time
        if not self._engine.lanes:  # a group: this step ends only with its images
            self._take_calls()
            self._drop_ended()
            if all(image.job.over for image in progress.keys):
                raise GroupLeftError

    def _send_partial(self, image: JobImage, tokens: Int[Tensor, " n"], origins: Int[Tensor, " n"]) -> None:
        """Send the picture of an unfinished image; a picture that cannot be made is left out."""
        assert image.job.reading is not None
        grid, committed = image.job.reading.request.grid, image.committed
        try:
            picture = self.studio.picture(tokens, grid, committed)
        except Exception:
            LOGGER.exception("a partial image could not be decoded")
            return
        done = numbers(tokens)[:committed], numbers(origins)[:committed]
        self._tell(image.job, Partial(image.place, image.partials, picture, *done))
        image.partials += 1

    def _finish(self, ended: Ended[JobImage]) -> None:
        """Decode an image that the engine is done with and send it; its job may be finished by that."""
        image = ended.key
        job, reading = image.job, image.job.reading
        if job.over:
            return
        assert reading is not None
        started = time.perf_counter()
        try:
            generation = ended.generation
            tokens = generation.tokens[0]
            picture = self.studio.picture(tokens, reading.request.grid)
        except Exception as error:
            self._fail([job], error, "an image")
            return
        seconds = ended.seconds + time.perf_counter() - started
        text = dict(reading.texts[image.place]) | drawn_metadata(tokens)
        seed, names, stats = reading.request.seeds[image.place], generation.source_names, generation.stats
        done = numbers(tokens), numbers(generation.origins)
        forwards = generation.forwards or tuple(image.forwards)  # the host hears of replayed steps late
        self._tell(job, Drawn(image.place, seed, picture, text, *done, forwards, names, stats, seconds))
        self.observer.drawn(job.wish.method, stats, stats.images, image.began - image.arrived, seconds)
        self._note_pace()
        with self._lock:
            self._images -= 1
        job.drawn += 1
        if job.drawn == len(job.images):
            self._end(job, Finished())

    def _note_pace(self) -> None:
        """Take note of the time since the last finished image."""
        now = time.monotonic()
        since = min(now - self._finished_at, 60.0) if self._finished_at else 0.0
        self._pace, self._finished_at = (self._pace + since) / 2, now

    # --- ends and errors --------------------------------------------------------------------------------------

    def _recover(self, error: Exception) -> None:
        """After a failed step: the images of the engine are drawn once more, one by one; one alone has failed."""
        images = [image for image in self._live if not image.job.over]
        self.observer.recovered(len(images))
        self._renew()
        if len(images) == 1:
            self._fail([images[0].job], error, "a step")
            return
        LOGGER.error("a step of %d images failed: each is drawn again alone", len(images), exc_info=error)
        self._suspects += images

    def _renew(self) -> None:
        """Take a new engine."""
        self._live.clear()
        self.studio.pipe.recordings.clear()
        self._engine = self.studio.engine(self.places)

    def _started(self) -> list[Job]:
        """The jobs with an image in the engine."""
        return list(dict.fromkeys(image.job for image in self._live))

    def _fail(self, jobs: list[Job], error: Exception, where: str) -> None:
        """End jobs by an error, which is logged with a reference that the clients are told."""
        reference = uuid.uuid4().hex[:12]
        LOGGER.error("error %s in %s", reference, where, exc_info=error)
        for job in jobs:
            self._end(job, Failed("error", f"the image could not be drawn (error {reference})", reference))

    def _end(self, job: Job, event: Finished | Failed) -> None:
        """End a job: its images leave the queue and the engine, its client is told."""
        if job.over:
            return
        job.over = True
        with self._lock:
            self._open.discard(job)
            self._images -= job.wish.images - job.drawn
        self._waiting.remove(job)
        self._suspects = deque(image for image in self._suspects if image.job is not job)
        for image in job.images:
            if image in self._live and self._engine.cancel(image):
                del self._live[image]
        self._tell(job, event)
        self.observer.ended(event.kind if isinstance(event, Failed) else "finished")

    def _tell(self, job: Job, event: Event) -> None:
        """Send an event; a client that cannot be told, as after its server ended, is given up."""
        try:
            job.tell(event)
        except Exception:
            LOGGER.debug("a client could not be told", exc_info=True)
            job.cancelled = True
