"""Window decoding: every step scores the same number of positions past the frontier and replaces all their guesses.

This is Jacobi decoding with shared noise (SCD, arXiv 2510.24211), with first guesses from the row above. To verify the
draft at a position, the decoder computes the token that the target would draw there, argmax(log p + g). Behind the
first rejected draft the same token becomes the next step's draft, since the same noise will choose there again. So a
step is one forward and one argmax, drafting is copying what the argmax chose, and plain AR is the window of reach 0.

The keys of a chain lie where plain AR has them (node d at depth d), and no step depends on a number that the host would
have to read. So a GPU can record a step once and replay it, while the host follows a few steps behind (`recording`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hawk.decoding.cache import FixedCache, KVCache
from hawk.decoding.canvas import RECOVERED, Canvas
from hawk.decoding.forward import Nodes, Target, not_finite, score, score_prompt, wide
from hawk.decoding.grid import Grid
from hawk.decoding.noise import HELD, NOISE_BLOCK, GumbelNoise
from hawk.decoding.pacing import Pace
from hawk.decoding.request import Request
from hawk.decoding.sampling import BatchParams, gumbel_argmax
from hawk.decoding.stats import Generation, OnStep, Stats, window_stats
from hawk.decoding.tree import Window

SOURCES = ("stale", "above")
"""Sources of a draft: a stale guess of the target, or, where it had not scored the position yet, the cell above."""
STALE, ABOVE = range(len(SOURCES))

LAG = 2
"""Number of steps by which the host follows a GPU that replays recorded steps."""

CHANGING = ("tokens", "origins", "committed", "history", "steps", "broken", "padding")
"""The tensors of a state that a step changes or that differ between prompts, beside the cache and the noise."""


@dataclass
class WindowState:
    """Everything that a step reads and changes.

    `tokens` holds the `committed` tokens of each image, followed by the drafts of the window; `tokens` and `origins`
    are longer than the image by one window. `history[image, i]` is the number of tokens that the image's step i
    committed, prefill first; `steps` is the number of steps of each image until it was finished. `broken` is whether a
    committed node of an image had no distribution (`Scores.broken`). `chain` is the ancestor matrix of the window's
    nodes. `reaches` are those of the steps that the host has started.
    """

    grid: Grid
    params: BatchParams
    window: Window
    tokens: Int[Tensor, "b room"]
    origins: Int[Tensor, "b room"]
    committed: Int[Tensor, " b"]
    history: Int[Tensor, "b most"]
    steps: Int[Tensor, " b"]
    broken: Bool[Tensor, " b"]
    cache: KVCache
    padding: Int[Tensor, " rows"]
    chain: Bool[Tensor, "b n n"]
    noise: GumbelNoise
    reaches: list[int] = field(default_factory=list)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that `CHANGING` names, and those of the parameters."""
        return [*(getattr(self, name) for name in CHANGING), *self.params.tensors.values()]

    @property
    def progress(self) -> Int[Tensor, " _"]:
        """What the host reads after a step, in one tensor: `committed`, and then `broken` as 0 or 1."""
        return torch.cat((self.committed, self.broken))

    def load(self, state: WindowState) -> None:
        """Copy another state of the same shapes and formulas into the memory of this one."""
        for mine, other in zip(self.tensors, state.tensors, strict=True):
            mine.copy_(other)
        assert isinstance(self.cache, FixedCache)
        self.cache.load(state.cache)
        self.reaches = list(state.reaches)
        self.noise.restart(state.noise.seeds)


def first_window(target: Target, request: Request, window: Window) -> WindowState:
    """Read the prompts, draw the first token of every image, and put the first drafts behind it."""
    grid, images, nodes = request.grid, request.images, window.max_nodes
    prefilled = target.prefill(request.conditions, request.params.guided, grid.size + nodes)
    device = prefilled.hidden.device
    like = prefilled.hidden.new_empty(0, dtype=wide(prefilled.hidden))
    params = BatchParams.alike(request.params, images, target.vocab_size, like)
    scores = score_prompt(target, prefilled, params)
    noise = GumbelNoise(list(request.seeds), grid.size, target.vocab_size, like, noise_ring(nodes))
    start = torch.zeros(images, 1, dtype=torch.long, device=device)
    tokens = torch.zeros(images, grid.size + nodes, dtype=torch.long, device=device)
    tokens[:, :1] = gumbel_argmax(scores.logits, noise.rows(start))
    history = torch.zeros(images, grid.size + LAG + 2, dtype=torch.long, device=device)
    history[:, 0] = 1
    state = WindowState(
        grid=grid,
        params=params,
        window=window,
        tokens=tokens,
        origins=torch.full_like(tokens, RECOVERED),
        committed=torch.ones(images, dtype=torch.long, device=device),
        history=history,
        steps=torch.ones(images, dtype=torch.long, device=device),
        broken=scores.broken[:, 0].clone(),
        cache=prefilled.cache,
        padding=prefilled.padding,
        chain=torch.ones(nodes, nodes, dtype=torch.bool, device=device).tril().expand(images, nodes, nodes),
        noise=noise,
    )
    hold(state, [1] * images)
    enter(state, start, window.reach)
    return state


def noise_ring(nodes: int) -> int:
    """How many positions of noise an image holds at a time, for steps of so many nodes."""
    return max(HELD, (LAG + 2) * nodes + 2 * NOISE_BLOCK)


def advance(target: Target, state: WindowState, reach: int) -> Int[Tensor, " b"]:
    """One target forward over the last committed token and `reach` drafts; returns the tokens committed of each image.

    An unfinished image commits at least one token, a finished one commits none. The noise must be held already; the
    host reads nothing.
    """
    grid, before = state.grid, state.committed
    offsets = torch.arange(reach + 1, device=before.device)
    positions = before[:, None] - 1 + offsets
    drafted = state.tokens.gather(1, positions)
    nodes = Nodes(drafted, positions, state.chain[:, : reach + 1, : reach + 1])
    scores = score(target, nodes, state.padding, state.cache, grid, state.params)
    chosen = gumbel_argmax(scores.logits, state.noise.at(positions + 1))
    accepted = (chosen[:, :-1] == drafted[:, 1:]).cumprod(1).sum(1) * state.window.keeps
    count = torch.minimum(accepted + 1, grid.size - before)
    # An accepted draft is the chosen token; the token after them is recovered; the chosen tokens behind are guesses.
    origins = state.origins.gather(1, positions + 1).masked_fill_(offsets == accepted[:, None], RECOVERED)
    origins.masked_fill_(offsets > accepted[:, None], STALE)
    state.tokens.scatter_(1, positions + 1, chosen)
    state.origins.scatter_(1, positions + 1, origins)
    state.cache.advance(state.params.rows_of(count))
    state.broken |= (scores.broken & (offsets < count[:, None])).any(1)
    state.committed += count
    state.history.scatter_(1, state.steps[:, None], count[:, None])
    state.steps += count > 0
    if state.window.reach:
        enter(state, positions[:, -1:] + 1, state.window.reach)
    return count


def enter(state: WindowState, last: Int[Tensor, "b 1"], reach: int) -> None:
    """Fill the `reach` positions past the frontier that lie after `last`, and so have no guess yet, with first drafts.

    The draft is the token of the cell above, or with `Window.above` False the token with the largest noise.
    """
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
    """Draw the noise that the next step and its first drafts read, and that of `late` further steps."""
    ahead = (late + 2) * state.window.max_nodes
    state.noise.hold_rows({row: (count, count + ahead) for row, count in enumerate(committed)})


def follow(
    target: Target,
    state: WindowState,
    pace: Pace,
    on_step: OnStep | None,
    give: Callable[[WindowState, int], None] | None = None,
) -> None:
    """Step until every image is drawn; the host reads the progress of each step and shortens the window at the end.

    `give(state, reach)` may replace the drafts of a step before the target scores them.
    """
    size, committed = state.grid.size, known(state, state.progress.tolist())
    while (left := size - min(committed)) > 0:
        reach = min(pace.reach, left)
        hold(state, committed)
        if give:
            give(state, reach)
        advance(target, state, reach)
        state.reaches.append(reach)
        before, committed = committed, known(state, state.progress.tolist())
        pace.learn(reach, [now - was for was, now in zip(before, committed, strict=True) if size - was > reach])
        tell(state, committed, 1 + len(state.reaches), on_step)


def pace_of(window: Window, grid: Grid) -> Pace:
    """The pace at which an image begins."""
    return Pace(window.reach, grid.width, window.ladder, window.skill)


def known(state: WindowState, progress: list[int]) -> list[int]:
    """The committed tokens of each image in a `WindowState.progress`.

    Raises `HawkError` if one of them had no distribution, before anybody is told of that token.
    """
    images = len(progress) // 2
    if any(progress[images:]):
        raise not_finite(state.cache.keys.dtype)
    return progress[:images]


def tell(state: WindowState, committed: list[int], steps: int, on_step: OnStep | None) -> None:
    """Call `on_step` with the tokens that the host knows to be committed."""
    if on_step:
        on_step(shown(state, committed), Stats(images=len(committed), nfe=steps, committed=sum(committed)))


def shown(state: WindowState, committed: list[int], places: list[int] | None = None) -> Canvas:
    """The canvas of the images at `places` (None: all), with so many committed tokens each, without states."""
    rows = slice(None) if places is None else places
    tokens, origins = state.tokens[rows, : state.grid.size], state.origins[rows, : state.grid.size]
    nothing = state.tokens.new_empty(len(committed), 0, 0, dtype=torch.float32)
    return Canvas(state.grid, tokens, nothing, origins, committed)


def finish(state: WindowState) -> Generation:
    """The finished images and their counts; `HawkError` where the target's logits were not finite."""
    known(state, state.progress.tolist())
    size, window = state.grid.size, state.window
    origins = state.origins[:, :size].clone()
    history = state.history[:, : int(state.steps.max())].T.tolist()
    stats = window_stats(history, origins.tolist(), state.reaches[: len(history) - 1], SOURCES)
    return Generation(state.tokens[:, :size].clone(), origins, SOURCES if window.reach else (), stats)
