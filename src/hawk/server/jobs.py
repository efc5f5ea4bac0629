"""Jobs: what a client asks for, the images of a request while they are drawn, and the events that tell of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from hawk.decoding.grid import Grid
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.stats import Stats
from hawk.decoding.tree import Window
from hawk.decoding.trees import Drafter


@dataclass(frozen=True)
class Wish:
    """The images that a request asks for; None leaves a setting to the model.

    A size that the model does not draw is refused; with `any_size` it becomes the model's own. `partials` is the number
    of pictures of each unfinished image that are sent, at equal distances in tokens. With `watched`, the client is told
    of every step.
    """

    prompt: str
    negative_prompt: str = ""
    images: int = 1
    seed: int | None = None
    height: int | None = None
    width: int | None = None
    guidance_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    any_size: bool = False
    method: str = "hawk"
    partials: int = 0
    watched: bool = False


# --- events, in the order in which a job sends them -----------------------------------------------------------


@dataclass(frozen=True)
class Accepted:
    """The request is sound and waits; `ahead` images of other requests wait or are being drawn before it.

    `hint` says which words of the prompts the model was never taught ("": none, or the model cannot tell).
    """

    ahead: int
    seeds: tuple[int, ...]
    grid: Grid
    params: SamplingParams
    hint: str = ""


@dataclass(frozen=True)
class Stepped:
    """A step committed tokens of an image: `committed` of `size` so far, in `nfe` forwards.

    `seconds` is the image's share of the time of its steps so far.
    """

    place: int
    committed: int
    size: int
    nfe: int
    seconds: float


@dataclass(frozen=True)
class Partial:
    """A picture of an unfinished image: cells without a committed token are grey. `index` counts from 0."""

    place: int
    index: int
    picture: Image.Image
    tokens: tuple[int, ...]
    origins: tuple[int, ...]


@dataclass(frozen=True)
class Drawn:
    """A finished image: its picture, the text of its PNG, its tokens with their origins, and its counts.

    `forwards` has the number of tokens that were committed after each forward, the prefill first. `seconds` is the
    image's share of the time of the steps that it took part in, pixels included.
    """

    place: int
    seed: int
    picture: Image.Image
    metadata: dict[str, str]
    tokens: tuple[int, ...]
    origins: tuple[int, ...]
    forwards: tuple[int, ...]
    source_names: tuple[str, ...]
    stats: Stats
    seconds: float


@dataclass(frozen=True)
class Finished:
    """All images of the job are drawn."""


@dataclass(frozen=True)
class Failed:
    """The job is over without all of its images.

    `kind` says why: the request is wrong, its time is over, the client cancelled it, the server is stopping, an error,
    which the log names by `reference`, the queue of the replica that got it is full, or this replica ended. A try after
    `retry_after` seconds may succeed in these last two cases.
    """

    kind: Literal["refused", "timeout", "cancelled", "stopping", "error", "full", "lost"]
    message: str
    reference: str = ""
    retry_after: int = 0


Event = Accepted | Stepped | Partial | Drawn | Finished | Failed


class Inbox(asyncio.Queue[Event]):
    """The events of one job as a coroutine reads them; `tell` puts an event into it from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._reader = asyncio.get_running_loop()

    def tell(self, event: Event) -> None:
        """Put an event; `RuntimeError` where the reader's loop has ended."""
        self._reader.call_soon_threadsafe(self.put_nowait, event)


# --- why a job is not taken -----------------------------------------------------------------------------------


class FullError(Exception):
    """The queue has no room for a job; `retry_after` is the number of seconds after which a try may succeed."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full: try again in {retry_after} s")
        self.retry_after = retry_after


class DrainingError(Exception):
    """No more jobs are taken."""


# --- jobs in the worker ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A wish that was read by the model: the request, its drafter, and the text of the images' PNG files.

    `hint`: see `Accepted`.
    """

    request: Request
    drafter: Drafter | Window
    texts: Sequence[dict[str, str]]
    hint: str = ""


@dataclass(eq=False)
class Job:
    """A request in the worker. `tell` takes its events in the worker's thread and must not block.

    `deadline` is a time of `time.monotonic`. `cancelled` may be set by any thread; the rest belongs to the worker.
    """

    wish: Wish
    client: str
    deadline: float
    tell: Callable[[Event], None]
    images: list[JobImage] = field(default_factory=list)
    reading: Reading | None = None
    drawn: int = 0
    cancelled: bool = False
    over: bool = False

    @property
    def progress(self) -> float:
        """The share of the job's tokens that are committed."""
        tokens = sum(image.committed for image in self.images)
        return tokens / max(1, sum(image.size for image in self.images))


@dataclass(eq=False)
class JobImage:
    """An image of a job: its place in it, how many of its `size` tokens are committed, and the partials sent so far.

    `seconds` is its share of the time of its steps so far; `forwards` is as in `Drawn`. An image that is drawn once
    more after a failed step keeps what its client was told of it.
    """

    job: Job
    place: int
    size: int
    arrived: float
    began: float = 0.0
    committed: int = 0
    crossed: int = 0
    partials: int = 0
    seconds: float = 0.0
    forwards: list[int] = field(default_factory=lambda: [1])

    @property
    def nfe(self) -> int:
        """The number of its forwards so far."""
        return len(self.forwards)

    @property
    def request(self) -> Request:
        """The request for this image alone."""
        assert self.job.reading is not None
        return self.job.reading.request.rows(slice(self.place, self.place + 1))
