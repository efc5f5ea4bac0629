"""A simulation of many GPUs that draw for one queue: which limit is met first, the GPUs, the head, or the shared store.

Requests arrive at random, wait for the head (which hands out one after another), then for a free place on a GPU; their
images are drawn, and written to a store that everybody shares. A GPU that fails loses the requests that it has: they go
through the head again. The GPU comes back after a restart, when it has read the model from the same store.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Event = Literal["arrived", "dispatched", "drawn", "failed", "restarted", "ready"]


@dataclass(frozen=True)
class Fleet:
    """The machines.

    Attributes:
        gpus: GPUs with a model each.
        places: requests that a GPU draws together.
        image_seconds: seconds of an image on a GPU whose places are all taken; the images of one request are drawn one
            after another.
        dispatches: requests that the head hands out in a second.
        store: bytes per second that the shared store reads, and that it writes, each one transfer after another.
        image_bytes, model_bytes: bytes of an image file, and of the weights that a GPU reads at its start.
        mtbf: mean seconds between two failures of a GPU.
        restart: seconds from a failure until the GPU begins to read the model.
        cold: whether the GPUs begin without the model.
    """

    gpus: int
    places: int
    image_seconds: float
    dispatches: float = math.inf
    store: float = math.inf
    image_bytes: float = 0.0
    model_bytes: float = 0.0
    mtbf: float = math.inf
    restart: float = 0.0
    cold: bool = False

    @property
    def images_per_second(self) -> float:
        """Images that all GPUs draw in a second where nothing else limits them."""
        return self.gpus * self.places / self.image_seconds


@dataclass(frozen=True)
class Load:
    """The requests: how many, how many arrive in a second (infinite: all at once), and the share of each image count.

    With `exponential` the seconds of a request are random with the given mean, else they are the mean.
    """

    requests: int
    rate: float
    images: tuple[tuple[int, float], ...] = ((1, 1.0),)
    exponential: bool = False

    @property
    def mean_images(self) -> float:
        """Images of a request in the mean."""
        return sum(count * share for count, share in self.images)


@dataclass(frozen=True)
class Outcome:
    """What became of the requests.

    Attributes:
        seconds: from the first arrival until the last image was written.
        waited: mean seconds from arrival until drawing begins (for the last time, where a GPU failed).
        median, slowest: seconds from arrival until the images are written, of the median and of the 99th percentile.
        retried: how often a request was lost with a GPU and drawn again.
        busy: the share of `seconds` in which the places of the GPUs, the head, and the store's two directions were in
            use; a place whose GPU is down is not in use.
        down: the share of GPU time that restarts and reads of the model took, those of a cold start included.
    """

    completed: int
    images: int
    seconds: float
    images_per_second: float
    waited: float
    median: float
    slowest: float
    retried: int
    failures: int
    busy: dict[str, float]
    down: float

    @property
    def limit(self) -> str:
        """What is busiest."""
        return max(self.busy, key=lambda name: self.busy[name])

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        return {**asdict(self), "limit": self.limit}


@dataclass
class _Server:
    """Work that is done one piece after another, in the order in which it is asked for."""

    free_at: float = 0.0
    busy: float = 0.0

    def done_at(self, now: float, seconds: float) -> float:
        """When a piece of work that is asked for now will be done."""
        self.free_at = max(now, self.free_at) + seconds
        self.busy += seconds
        return self.free_at

    def share(self, end: float) -> float:
        """The share of the time until `end` in which it was at work; what is left at the end is asked for by then."""
        return (self.busy - max(0.0, self.free_at - end)) / end


@dataclass
class _State:
    """All that changes in a simulation. `epochs` counts the failures of each GPU: what began before one is void."""

    fleet: Fleet
    seconds: Sequence[float]
    sizes: Sequence[int]
    random: np.random.Generator
    events: list[tuple[float, int, Event, tuple[int, ...]]] = field(default_factory=list)
    head: _Server = field(default_factory=_Server)
    reads: _Server = field(default_factory=_Server)
    writes: _Server = field(default_factory=_Server)
    waiting: deque[int] = field(default_factory=deque)
    free: deque[tuple[int, int]] = field(default_factory=deque)
    running: list[dict[int, float]] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    began: dict[int, float] = field(default_factory=dict)
    written: dict[int, float] = field(default_factory=dict)
    drawing: float = 0.0
    retried: int = 0
    down: float = 0.0
    scheduled: int = 0

    def at(self, time: float, event: Event, *which: int) -> None:
        """Schedule an event of a request, a GPU, or both; events at one time keep their order."""
        self.scheduled += 1
        heapq.heappush(self.events, (time, self.scheduled, event, which))

    def start_waiting(self, now: float) -> None:
        """Give free places to the requests that wait."""
        while self.waiting and self.free:
            gpu, epoch = self.free.popleft()
            if epoch != self.epochs[gpu]:
                continue  # the GPU has failed since
            request = self.waiting.popleft()
            self.running[gpu][request] = self.began[request] = now
            self.at(now + self.seconds[request], "drawn", request, gpu, epoch)


def simulate(fleet: Fleet, load: Load, seed: int = 0) -> Outcome:
    """Run all requests of a load to their end. The same seed gives the same outcome."""
    random = np.random.default_rng(seed)
    counts, shares = zip(*load.images, strict=True)
    sizes = random.choice(counts, load.requests, p=np.array(shares) / sum(shares))
    seconds = sizes * fleet.image_seconds * (random.exponential(size=load.requests) if load.exponential else 1.0)
    arrivals = random.exponential(1 / load.rate, load.requests).cumsum()
    state = _State(fleet, seconds.tolist(), sizes.tolist(), random)
    for gpu in range(fleet.gpus):
        state.running.append({})
        state.epochs.append(0)
        state.at(0.0, "restarted" if fleet.cold else "ready", gpu)
    for request, time in enumerate(arrivals.tolist()):
        state.at(time, "arrived", request)
    while len(state.written) < load.requests:
        now, _, event, which = heapq.heappop(state.events)
        _HAPPENS[event](state, now, *which)
    return _outcome(state, arrivals)


def _arrived(state: _State, now: float, request: int) -> None:
    state.at(state.head.done_at(now, 1 / state.fleet.dispatches), "dispatched", request)


def _dispatched(state: _State, now: float, request: int) -> None:
    state.waiting.append(request)
    state.start_waiting(now)


def _drawn(state: _State, now: float, request: int, gpu: int, epoch: int) -> None:
    if epoch != state.epochs[gpu]:
        return  # the GPU failed before the request was drawn
    state.drawing += now - state.running[gpu].pop(request)
    size = state.sizes[request] * state.fleet.image_bytes
    state.written[request] = state.writes.done_at(now, size / state.fleet.store)
    state.free.append((gpu, epoch))
    state.start_waiting(now)


def _failed(state: _State, now: float, gpu: int, epoch: int) -> None:
    state.epochs[gpu] += 1
    for request, began in state.running[gpu].items():
        state.drawing += now - began
        state.retried += 1
        _arrived(state, now, request)
    state.running[gpu].clear()
    state.down += state.fleet.restart
    state.at(now + state.fleet.restart, "restarted", gpu)


def _restarted(state: _State, now: float, gpu: int) -> None:
    ready = state.reads.done_at(now, state.fleet.model_bytes / state.fleet.store)
    state.down += ready - now
    state.at(ready, "ready", gpu)


def _ready(state: _State, now: float, gpu: int) -> None:
    epoch = state.epochs[gpu]
    state.free.extend([(gpu, epoch)] * state.fleet.places)
    if state.fleet.mtbf < math.inf:
        state.at(now + state.random.exponential(state.fleet.mtbf), "failed", gpu, epoch)
    state.start_waiting(now)


_HAPPENS: dict[Event, Callable[..., None]] = {
    "arrived": _arrived,
    "dispatched": _dispatched,
    "drawn": _drawn,
    "failed": _failed,
    "restarted": _restarted,
    "ready": _ready,
}


def _outcome(state: _State, arrivals: np.ndarray) -> Outcome:
    fleet, requests = state.fleet, range(len(arrivals))
    written = np.array([state.written[request] for request in requests])
    waited = np.array([state.began[request] for request in requests]) - arrivals
    end = float(written.max())
    servers = {"head": state.head, "reads": state.reads, "writes": state.writes}
    drawing = state.drawing / (fleet.gpus * fleet.places * end)
    return Outcome(
        completed=len(state.written),
        images=sum(state.sizes),
        seconds=end,
        images_per_second=sum(state.sizes) / end,
        waited=float(waited.mean()),
        median=float(np.median(written - arrivals)),
        slowest=float(np.quantile(written - arrivals, 0.99)),
        retried=state.retried,
        failures=sum(state.epochs),
        busy={"GPUs": drawing, **{name: server.share(end) for name, server in servers.items()}},
        down=state.down / (fleet.gpus * end),
    )


def wait_of(arrivals: float, seconds: float, servers: int) -> float:
    """Mean seconds that a request waits in an M/M/c queue (Erlang C): `arrivals` a second of `seconds` in the mean.

    Infinite where the servers cannot keep up.
    """
    offered = arrivals * seconds
    if offered >= servers:
        return math.inf
    blocked = 1.0
    for count in range(1, servers + 1):  # Erlang B by its recursion
        blocked = offered * blocked / (count + offered * blocked)
    queued = blocked / (1 - offered / servers * (1 - blocked))
    return queued * seconds / (servers - offered)


def gpus_at_limit(fleet: Fleet, load: Load) -> dict[str, float]:
    """With how many GPUs the head, and the store's two directions, are busy all the time; computed.

    The GPUs draw all the time, and read the model after failures alone.
    """
    images = fleet.places / fleet.image_seconds  # of one GPU in a second
    loads = {
        "head": images / load.mean_images / fleet.dispatches,
        "reads": fleet.model_bytes / fleet.mtbf / fleet.store,
        "writes": images * fleet.image_bytes / fleet.store,
    }
    return {name: 1 / share if share else math.inf for name, share in loads.items()}
