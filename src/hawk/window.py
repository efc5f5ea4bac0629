"""Window decoding: every step scores the same number of positions past the frontier, and guesses them anew.

Jacobi decoding coupled by its noise (SCD, arXiv 2510.24211), entered from the row above. The token that the target
would draw at a position, argmax(log p + g), is computed to verify the draft there; behind the first wrong draft the
same token is the next step's draft, since it was chosen with the noise that will choose again. So a step is one
forward and one argmax, drafting is copying what the argmax said, and plain AR is the window that reaches nowhere.

A chain's keys lie where plain AR has them (node d at depth d), and nothing in a step depends on a number that the host
would have to read: on a GPU it is captured once and replayed, the host following a few steps behind (`replay`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hawk.cache import FixedCache, KVCache, Prefilled
from hawk.canvas import RECOVERED, Canvas
from hawk.errors import HawkError
from hawk.forward import Target, both, guided_logits, guided_state, wide
from hawk.grid import Grid
from hawk.noise import HELD, NOISE_BLOCK, GumbelNoise
from hawk.sampling import SamplingParams, filtered, gumbel_argmax
from hawk.stats import Generation, OnStep, Stats, window_stats
from hawk.tree import Window

SOURCES = ("stale", "above")
"""Whose a draft is: the target's own early guess, or the cell above where the target had said nothing."""
STALE, ABOVE = range(len(SOURCES))

Engine = Literal["eager", "graph", "compiled"]
"""How steps are run: one by one by the host, as a CUDA graph, or as one of a step that was compiled first."""

LAG = 2
"""Steps that a GPU is given ahead of what the host knows."""


CHANGING = ("tokens", "origins", "committed", "history", "steps", "padding")
"""What a step changes in a state, the cache and the noise aside, and what differs between prompts."""


@dataclass
class WindowState:
    """Everything that a step reads and changes.

    `tokens` are those of the image up to `committed`, and behind them the drafts; they and their `origins` have room
    for a window past the image's end. `history[i]` is how many tokens step i committed, prefill first; `steps` counts.
    """

    grid: Grid
    params: SamplingParams
    window: Window
    tokens: Int[Tensor, "b room"]
    origins: Int[Tensor, "b room"]
    committed: Int[Tensor, " b"]
    history: Int[Tensor, "most b"]
    steps: Int[Tensor, " 1"]
    cache: KVCache
    padding: Int[Tensor, " rows"]
    chain: Bool[Tensor, "rows n n"]
    noise: GumbelNoise

    @property
    def tensors(self) -> list[Tensor]:
        """Those of `CHANGING`."""
        return [getattr(self, name) for name in CHANGING]

    def load(self, state: WindowState) -> None:
        """Take over another state of the same shapes, in the memory of this one."""
        for mine, other in zip(self.tensors, state.tensors, strict=True):
            mine.copy_(other)
        assert isinstance(self.cache, FixedCache)
        self.cache.load(state.cache)
        self.noise.restart(state.noise.seeds)


def draw(
    target: Target,
    prompt: Any,
    grid: Grid,
    params: SamplingParams,
    window: Window,
    seeds: list[int],
    on_step: OnStep | None = None,
    sessions: Sessions | None = None,
) -> Generation:
    """Draw one image for each seed: `decode.generate` for drafts that are a window."""
    prefilled = target.prefill(prompt, params.guided, grid.size + window.max_nodes)
    state = begin(target, prefilled, grid, params, window, seeds)
    if sessions is not None and sessions.engine != "eager":
        session = sessions.of(target, state)
        replay(session.state, session.step, on_step)
        state = session.state
    else:
        follow(target, state, on_step)
    n = grid.size
    history = state.history[: int(state.steps)].tolist()
    origins = state.origins[:, :n].clone()
    stats = window_stats(history, origins.tolist(), window.reach, SOURCES)
    return Generation(state.tokens[:, :n].clone(), origins, SOURCES if window.reach else (), stats)


def begin(
    target: Target, prefilled: Prefilled, grid: Grid, params: SamplingParams, window: Window, seeds: list[int]
) -> WindowState:
    """The first token of every image, and the first drafts behind it."""
    images, nodes, n = len(seeds), window.max_nodes, grid.size
    hidden = prefilled.hidden[:, None]
    guided = guided_state(hidden, params, images)
    device, rows = hidden.device, len(hidden)
    like = hidden.new_empty(0, dtype=wide(hidden))
    ring = max(HELD, (LAG + 2) * nodes + 2 * NOISE_BLOCK)
    noise = GumbelNoise(seeds, n, target.vocab_size, like, ring)
    scores = filtered(guided_logits(target, hidden, guided, params), params)
    first = gumbel_argmax(scores, noise.rows(torch.zeros(images, 1, dtype=torch.long, device=device)))
    tokens = torch.zeros(images, n + nodes, dtype=torch.long, device=device)
    tokens[:, :1] = first
    history = torch.zeros(n + LAG + 2, images, dtype=torch.long, device=device)
    history[0] = 1
    state = WindowState(
        grid=grid,
        params=params,
        window=window,
        tokens=tokens,
        origins=torch.full_like(tokens, RECOVERED),
        committed=torch.ones(images, dtype=torch.long, device=device),
        history=history,
        steps=torch.ones(1, dtype=torch.long, device=device),
        cache=prefilled.cache,
        padding=prefilled.padding,
        chain=torch.ones(nodes, nodes, dtype=torch.bool, device=device).tril().expand(rows, nodes, nodes),
        noise=noise,
    )
    hold(state, [1] * images)
    enter(state, torch.zeros(images, 1, dtype=torch.long, device=device), window.reach)
    return state


def advance(target: Target, state: WindowState, reach: int) -> Int[Tensor, " b"]:
    """One target forward over the last token and `reach` drafts; how many tokens of each image it committed.

    At least one of every unfinished image, none of a finished one. The noise must be held; nothing is read by the host.
    """
    grid, params, before = state.grid, state.params, state.committed
    offsets = torch.arange(reach + 1, device=before.device)
    positions = before[:, None] - 1 + offsets
    drafted = state.tokens.gather(1, positions)
    hidden = target.forward_nodes(
        both(drafted, params),
        both(positions.clamp(max=grid.size - 1), params),
        state.chain[:, : reach + 1, : reach + 1],
        state.padding,
        state.cache,
        grid,
    )
    guided = guided_state(hidden, params, len(before))
    scores = filtered(guided_logits(target, hidden, guided, params), params)
    chosen = gumbel_argmax(scores, state.noise.at(positions + 1))
    kept = (chosen[:, :-1] == drafted[:, 1:]).cumprod(1).sum(1) * state.window.keeps
    count = torch.minimum(kept + 1, grid.size - before)
    # Kept drafts are what was chosen; the token after them is recovered; what was chosen behind it is guessed.
    origins = state.origins.gather(1, positions + 1).masked_fill_(offsets == kept[:, None], RECOVERED)
    origins.masked_fill_(offsets > kept[:, None], STALE)
    state.tokens.scatter_(1, positions + 1, chosen)
    state.origins.scatter_(1, positions + 1, origins)
    state.cache.advance(both(count, params))
    state.committed += count
    state.history.index_copy_(0, state.steps, count[None])
    state.steps += 1
    if reach:
        enter(state, positions[:, -1:] + 1, reach)
    return count


def enter(state: WindowState, last: Int[Tensor, "b 1"], reach: int) -> None:
    """Fill the window up behind `last`, the last position with a token or a guess: with the cell above, or by noise."""
    ahead = state.committed[:, None] + torch.arange(reach, device=last.device)
    new = ahead > last
    if state.window.above:
        width = state.grid.width
        rows_up = (ahead - last + width - 1).div(width, rounding_mode="floor")
        fresh = state.tokens.gather(1, (ahead - rows_up * width).clamp(min=0))
    else:
        fresh = state.noise.at(ahead).max(-1).indices
    state.tokens.scatter_(1, ahead, torch.where(new, fresh, state.tokens.gather(1, ahead)))
    state.origins.scatter_(1, ahead, state.origins.gather(1, ahead).masked_fill_(new, ABOVE))


def hold(state: WindowState, committed: list[int], late: int = 0) -> None:
    """Draw the noise that a step reads and that of the drafts behind it; of further steps where the host is `late`."""
    for row, count in enumerate(committed):
        state.noise.hold(row, count, count + (late + 2) * state.window.max_nodes)


def follow(target: Target, state: WindowState, on_step: OnStep | None) -> None:
    """Step until every image is drawn, the host reading each step's counts; windows shrink at the images' ends."""
    committed, steps = state.committed.tolist(), 1
    while (left := state.grid.size - min(committed)) > 0:
        reach = min(state.window.reach, left)
        hold(state, committed)
        advance(target, state, reach)
        committed, steps = state.committed.tolist(), steps + 1
        tell(state, committed, steps, on_step)


def replay(state: WindowState, step: Callable[[], Any], on_step: OnStep | None) -> None:
    """Step until every image is drawn; the host knows only what was committed `LAG` steps ago, so no step waits for it.

    Steps past the end change nothing. `step` takes no argument: it is `advance`, or a GPU's recording of it.
    """
    known, counts, steps = state.committed.tolist(), Counts(state.committed), 1
    while min(known) < state.grid.size:
        hold(state, known, LAG)
        step()
        counts.send()
        known, steps = counts.receive(LAG) or known, steps + 1
        tell(state, known, steps, on_step)
    # The steps still under way are of finished images and commit nothing: they are not steps of anyone's.
    state.steps.copy_(state.history.any(1).sum())


def tell(state: WindowState, committed: list[int], steps: int, on_step: OnStep | None) -> None:
    """Show what is drawn so far, as far as the host knows."""
    if on_step:
        n, images = state.grid.size, len(committed)
        nothing = state.tokens.new_empty(images, 0, 0, dtype=torch.float32)
        canvas = Canvas(state.grid, state.tokens[:, :n], nothing, state.origins[:, :n], committed)
        on_step(canvas, Stats(images=images, nfe=steps, committed=sum(committed)))


class Counts:
    """Numbers on their way from the device to the host."""

    def __init__(self, counts: Int[Tensor, " b"]) -> None:
        self.counts = counts
        self.sent: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def send(self) -> None:
        """Let the device copy its numbers of now, whenever it comes to it."""
        if not self.counts.is_cuda:
            self.sent.append((self.counts.clone(), None))
            return
        copy, event = torch.empty_like(self.counts, device="cpu", pin_memory=True), torch.cuda.Event()
        copy.copy_(self.counts, non_blocking=True)
        event.record()
        self.sent.append((copy, event))

    def receive(self, late: int) -> list[int] | None:
        """The numbers of `late` sendings ago, waited for; None where so many were not sent."""
        if len(self.sent) <= late:
            return None
        copy, event = self.sent.popleft()
        if event is not None:
            event.synchronize()
        return copy.tolist()


@dataclass
class Session:
    """A state in memory that stays where it is, and the step recorded on it."""

    state: WindowState
    step: Callable[[], Any]


@dataclass
class Sessions:
    """How a model's steps are run, and the last recording of one, for further images of the same shape and settings."""

    engine: Engine = "eager"
    key: tuple[Any, ...] = ()
    session: Session | None = field(default=None, repr=False)

    def of(self, target: Target, state: WindowState) -> Session:
        """The recording for this state, made if need be, with the state loaded."""
        shapes = tuple(tuple(tensor.shape) for tensor in (*state.tensors, state.cache.keys))
        key = (id(target), state.grid, state.params, state.window, shapes)
        if self.session is None or self.key != key:
            self.session = None  # its memory first
            self.session, self.key = record(target, state, self.engine), key
        self.session.state.load(state)
        return self.session


def record(target: Target, state: WindowState, engine: Engine) -> Session:
    """A step on a GPU, recorded in memory of its own."""
    fixed = on_device(state)
    hold(fixed, [1] * len(state.committed), LAG)
    return Session(fixed, recorded(partial(advance, target, fixed, state.window.reach), engine))


def recorded(call: Callable[[], Any], engine: Engine) -> Callable[[], Any]:
    """A call as the engine repeats it: as it is, or as a CUDA graph (which raises `HawkError` where none can be made).

    A graph is captured after calls that let libraries take the memory they want.
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
        reason = " ".join(str(error).split())[:160]
        raise HawkError(
            f"this model's steps cannot be recorded as a CUDA graph ({reason}): use engine 'eager'"
        ) from error
    return graph.replay


def on_device(state: WindowState) -> WindowState:
    """The same state in memory of its own, its cache one whose ends the device alone knows."""
    noise = state.noise
    return replace(
        state,
        **{name: getattr(state, name).clone() for name in CHANGING},
        cache=FixedCache.of(state.cache),
        noise=GumbelNoise(noise.seeds, noise.positions, noise.vocab, noise.held, noise.ring),
    )
