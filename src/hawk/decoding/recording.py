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
from hawk.decoding.noise import GumbelNoise
from hawk.decoding.request import Request
from hawk.decoding.stats import Generation, OnStep
from hawk.decoding.tree import Window
from hawk.decoding.window import CHANGING, LAG, WindowState, advance, finish, first_window, follow, hold, tell
from hawk.errors import HawkError, one_line

Engine = Literal["eager", "graph", "compiled"]
"""How steps are run: one by one by the host, as a CUDA graph, or as a CUDA graph of a step that was compiled first."""


def draw(
    target: Target,
    request: Request,
    window: Window,
    on_step: OnStep | None = None,
    recordings: Recordings | None = None,
) -> Generation:
    """Draw the images of a request: `generate` for drafts that are a window."""
    state = first_window(target, request, window)
    if recordings is None or recordings.engine == "eager":
        follow(target, state, on_step)
        return finish(state)
    recording = recordings.of(target, state)
    replay(recording.state, recording.step, on_step)
    return finish(recording.state)


def replay(state: WindowState, step: Callable[[], Any], on_step: OnStep | None) -> None:
    """Step until every image is drawn; the host reads the counts of `LAG` steps ago, so that no step waits for it.

    `step` is `advance` without arguments, or a GPU's recording of it. Steps after the end change nothing.
    """
    known, counts, steps = state.committed.tolist(), Counts(state.committed), 1
    while min(known) < state.grid.size:
        hold(state, known, LAG)
        step()
        counts.send()
        known, steps = counts.receive(LAG) or known, steps + 1
        tell(state, known, steps, on_step)
    # The last steps commit nothing, since all images are finished: they do not count.
    state.steps.copy_(state.history.any(1).sum())


class Counts:
    """Copies of a device tensor on their way to the host."""

    def __init__(self, counts: Int[Tensor, " b"]) -> None:
        self.counts = counts
        self.sent: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def send(self) -> None:
        """Queue a copy of the present values; the host does not wait for it."""
        if not self.counts.is_cuda:
            self.sent.append((self.counts.clone(), None))
            return
        copy, event = torch.empty_like(self.counts, device="cpu", pin_memory=True), torch.cuda.Event()
        copy.copy_(self.counts, non_blocking=True)
        event.record()
        self.sent.append((copy, event))

    def receive(self, late: int) -> list[int] | None:
        """Wait for the values that were sent `late` calls of `send` ago; None where there were not so many calls."""
        if len(self.sent) <= late:
            return None
        copy, event = self.sent.popleft()
        if event is not None:
            event.synchronize()
        return copy.tolist()


@dataclass
class Recording:
    """A state whose memory stays where it is, and the step recorded on it."""

    state: WindowState
    step: Callable[[], Any]


@dataclass
class Recordings:
    """How a model's steps are run, and the last recording of one, for further images of the same shape and settings."""

    engine: Engine = "eager"
    key: tuple[Any, ...] = ()
    last: Recording | None = field(default=None, repr=False)

    def of(self, target: Target, state: WindowState) -> Recording:
        """The recording for this state, made if need be, with the state loaded."""
        shapes = tuple(tuple(tensor.shape) for tensor in (*state.tensors, state.cache.keys))
        key = (id(target), state.grid, state.params, state.window, shapes)
        if self.last is None or self.key != key:
            self.last = None  # frees its memory before the next one is made
            self.last, self.key = record(target, state, self.engine), key
        self.last.state.load(state)
        return self.last


def record(target: Target, state: WindowState, engine: Engine) -> Recording:
    """A step on a GPU, recorded in memory of its own."""
    fixed = on_device(state)
    hold(fixed, [1] * len(state.committed), LAG)
    return Recording(fixed, recorded(partial(advance, target, fixed, state.window.reach), engine))


def recorded(call: Callable[[], Any], engine: Engine) -> Callable[[], Any]:
    """A call in the form in which the engine repeats it: unchanged, or as a CUDA graph.

    The call runs a few times before its capture, so that libraries allocate their workspaces outside the graph. Raises
    `HawkError` where the call cannot be captured.
    """
    if engine == "eager":
        return call
    if engine == "compiled":
        call = torch.compile(call, fullgraph=True, dynamic=False)
    try:
        aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        reason = one_line(error)
        raise HawkError(f"cannot record this model's steps as a CUDA graph ({reason}): use engine 'eager'") from error
    return graph.replay


def on_device(state: WindowState) -> WindowState:
    """A copy of a state in memory of its own, with a cache whose row ends only the device knows."""
    noise = state.noise
    return replace(
        state,
        **{name: getattr(state, name).clone() for name in CHANGING},
        cache=FixedCache.of(state.cache),
        noise=GumbelNoise(noise.seeds, noise.positions, noise.vocab, noise.held, noise.ring),
    )
