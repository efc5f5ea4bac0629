"""How the steps of a window are run: one by one by the host, or as a recording that a GPU replays."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from hawk.decoding.cache import FixedCache
from hawk.decoding.forward import Target
from hawk.decoding.memory import is_out_of_memory
from hawk.decoding.noise import GumbelNoise
from hawk.decoding.request import Request
from hawk.decoding.stats import Generation, OnStep
from hawk.decoding.tree import Window
from hawk.decoding.window import (
    CHANGING,
    LAG,
    WindowState,
    advance,
    finish,
    first_window,
    follow,
    hold,
    known,
    pace_of,
    tell,
)
from hawk.errors import HawkError, one_line

Engine = Literal["eager", "graph", "compiled"]
"""How steps are run: one by one by the host, as a CUDA graph, or as a CUDA graph of a step that was compiled first."""

MOST_RECORDINGS = 8
"""Number of recordings that are kept, unless a caller names another number."""

MOST_COMPILED = 64
"""Number of shapes for which the compiler may compile one function; torch's own limit is 8."""


def draw(
    target: Target,
    request: Request,
    window: Window,
    on_step: OnStep | None = None,
    recordings: Recordings | None = None,
) -> Generation:
    """Draw the images of a request: `generate` for drafts that are a window."""
    window = window.for_images(request.images)
    if recordings is None or recordings.engine == "eager":
        state, pace = first_window(target, request, window), pace_of(window, request.grid)
        follow(target, state, pace, on_step)
        generation = finish(state)
        generation.stats.skill = pace.image.skill if window.ladder else None
        return generation
    # The prompts are read into a cache of their own, which is freed as soon as the recording holds its entries.
    recording = recordings.lend(target, lambda: first_window(target, request, window))
    try:
        replay(recording.state, recording.step, on_step)
        return finish(recording.state)
    finally:
        recordings.take_back(recording)


def replay(state: WindowState, step: Callable[[], Any], on_step: OnStep | None) -> None:
    """Step until every image is drawn; the host reads the progress of `LAG` steps ago, so that no step waits for it.

    `step` is `advance` without arguments, or a GPU's recording of it. Steps after the end change nothing.
    """
    progress, sent = state.progress.tolist(), Sent()
    while min(committed := known(state, progress)) < state.grid.size:
        hold(state, committed, LAG)
        step()
        state.reaches.append(state.window.reach)
        sent.send(state.progress)
        progress = sent.receive(LAG) or progress
        tell(state, known(state, progress), 1 + len(state.reaches), on_step)


class Sent:
    """Copies of device tensors on their way to the host."""

    def __init__(self) -> None:
        self.copies: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def send(self, values: Int[Tensor, " n"]) -> None:
        """Queue a copy of the values; the host does not wait for it."""
        if not values.is_cuda:
            self.copies.append((values.clone(), None))
            return
        with torch.cuda.device(values.device):
            copy, event = torch.empty_like(values, device="cpu", pin_memory=True), torch.cuda.Event()
            copy.copy_(values, non_blocking=True)
            event.record()
        self.copies.append((copy, event))

    def receive(self, late: int) -> list[int] | None:
        """Wait for the values that were sent `late` calls of `send` ago; None where there were not so many calls."""
        if len(self.copies) <= late:
            return None
        copy, event = self.copies.popleft()
        if event is not None:
            event.synchronize()
        return copy.tolist()


@dataclass
class Recording:
    """A state whose memory stays where it is, and the step of the target that is recorded on it; `key` names both."""

    target: Target
    state: WindowState
    step: Callable[[], Any]
    key: tuple[Any, ...] = ()


@dataclass
class Recordings:
    """How a model's steps are run, and the recordings of them that serve further images of the same shape.

    The sampling parameters may be others, as long as a step with them computes the same (`BatchParams.formulas`).

    `kept` holds the recordings by key, the one that was used last at its end. Before there are more than `most`, the
    one that was used longest ago is dropped. A key names the target by its `id`, which no other object can have while
    the recording holds the target. The recordings share one pool of memory for what happens within a step, since only
    one of them is replayed at a time.
    """

    engine: Engine = "eager"
    most: int = field(default_factory=lambda: MOST_RECORDINGS)
    kept: dict[tuple[Any, ...], Recording] = field(default_factory=dict, repr=False)
    pool: Any = field(default=None, repr=False)

    def lend(self, target: Target, begin: Callable[[], WindowState]) -> Recording:
        """A recording for the state that `begin` makes, with the state loaded; it is another one's until `take_back`.

        Where the device has no memory left, the recordings of other shapes are dropped, and `begin` is called again.
        """
        try:
            return self._lent(target, begin())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        self.clear()
        return self._lent(target, begin())

    def take_back(self, recording: Recording) -> None:
        """Keep a recording that was lent for further images of its shape."""
        self.kept.pop(recording.key, None)
        self._make_room()
        self.kept[recording.key] = recording

    def _lent(self, target: Target, state: WindowState) -> Recording:
        shapes = tuple(tuple(tensor.shape) for tensor in (*state.tensors, state.cache.keys))
        key = (id(target), state.tokens.device, state.grid, state.params.formulas, state.window, shapes)
        found = self.kept.pop(key, None)
        if found is None:
            self._make_room()
            made = record(target, state, self.engine, self.shared_pool(state.tokens.device))
            found = replace(made, key=key)
        found.state.load(state)
        return found

    def _make_room(self) -> None:
        """Drop the recordings that were used longest ago, until there is room for one more."""
        while len(self.kept) >= self.most:
            del self.kept[next(iter(self.kept))]

    def shared_pool(self, device: torch.device) -> Any:
        """The pool that all recordings allocate from; None on a CPU."""
        if self.pool is None and device.type == "cuda":
            self.pool = torch.cuda.graph_pool_handle()
        return self.pool

    def clear(self) -> None:
        """Drop all recordings and their memory."""
        self.kept.clear()
        self.pool = None


def record(target: Target, state: WindowState, engine: Engine, pool: Any = None) -> Recording:
    """A step on a device, recorded on a state that takes over the cache of the given one."""
    fixed = in_place(state, FixedCache.around(state.cache))
    hold(fixed, [1] * len(state.committed), LAG)
    step = recorded(partial(advance, target, fixed, state.window.reach), engine, state.tokens.device, pool)
    return Recording(target, fixed, step)


def recorded(call: Callable[[], Any], engine: Engine, device: torch.device, pool: Any = None) -> Callable[[], Any]:
    """A call in the form in which the engine repeats it: unchanged, or as a CUDA graph on the device.

    Raises `HawkError` where the call cannot be compiled or captured, except where memory runs out.
    """
    if engine == "eager":
        return call
    # A compiler raises exceptions of many kinds, which have no other base class in common.
    failures: type[Exception] = RuntimeError if engine == "graph" else Exception
    try:
        if engine == "graph":
            return captured(call, device, pool)
        # One code object runs at several shapes: each number of nodes to be timed, and each shape of image.
        with torch._dynamo.config.patch(recompile_limit=MOST_COMPILED, accumulated_recompile_limit=8 * MOST_COMPILED):
            return captured(compiled(call), device, pool)
    except failures as error:
        if is_out_of_memory(error):
            raise
        how = "as a CUDA graph" if engine == "graph" else "with the compiler"
        reason = one_line(error)
        raise HawkError(f"cannot record this model's steps {how} ({reason}): choose --engine eager") from error


def compiled(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as one graph of the compiler, which compiles it when it is first called."""
    return torch.compile(call, fullgraph=True, dynamic=False)


def captured(call: Callable[[], Any], device: torch.device, pool: Any = None) -> Callable[[], Any]:
    """The replay of a call that is captured as a CUDA graph on the device, with memory from `pool`.

    The call runs a few times before its capture, so that libraries allocate their workspaces outside the graph.
    """
    with torch.cuda.device(device):
        aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph, pool=pool):
            call()
    return graph.replay


def on_device(state: WindowState) -> WindowState:
    """A copy of a state in memory of its own, with a cache whose row ends only the device knows."""
    return in_place(state, FixedCache.of(state.cache))


def in_place(state: WindowState, cache: FixedCache) -> WindowState:
    """A copy of a state with another cache, in memory of its own."""
    noise = state.noise
    return replace(
        state,
        **{name: getattr(state, name).clone() for name in CHANGING},
        params=state.params.with_tensors(torch.clone),
        cache=cache,
        reaches=list(state.reaches),
        noise=GumbelNoise(noise.seeds, noise.positions, noise.vocab, noise.held, noise.ring),
    )
