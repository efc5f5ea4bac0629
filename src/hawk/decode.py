"""The decoder: propose -> tree -> target forward -> guide, filter -> verify -> keep -> observe.

The same step serves every target, drafter and verifier; plain AR is the step with a drafter that proposes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hawk.cache import KVCache, Prefilled
from hawk.canvas import RECOVERED, Canvas
from hawk.errors import HawkError
from hawk.grid import Grid
from hawk.relaxed import LOSSY, Relaxation, relaxed
from hawk.sampling import Randomness, SamplingParams, guide, log_probs
from hawk.tree import DraftTree, TreeBuilder, batch_trees
from hawk.verify import LOSSLESS, Scored, Verdict, Verifier, coupled, residual, traversal


@runtime_checkable
class Target(Protocol):
    """The large AR model. Rows are [cond] or, under guidance, [cond; uncond], each `batch` long.

    `linear_head` says that `head` is linear in the hidden state, so that guiding the state guides the logits.
    """

    vocab_size: int
    hidden_size: int
    linear_head: bool

    def prefill(self, prompt: Any, guided: bool, capacity: int) -> Prefilled: ...

    def forward_nodes(
        self,
        tokens: Int[Tensor, "rows n"],
        positions: Int[Tensor, "rows n"],
        ancestors: Bool[Tensor, "rows n n"],
        padding: Int[Tensor, " rows"],
        cache: KVCache,
        grid: Grid,
    ) -> Float[Tensor, "rows n d"]: ...

    def head(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b vocab"]: ...


@runtime_checkable
class Drafter(Protocol):
    """Proposes a tree below each image's last token. `memory` is whatever `start` returned for this batch.

    `max_nodes` bounds a tree, root included. `lossless_with` names the verifiers that the drafts carry enough for.
    """

    @property
    def max_nodes(self) -> int: ...

    @property
    def lossless_with(self) -> tuple[str, ...]: ...

    def start(self, canvas: Canvas, params: SamplingParams, randomness: Randomness) -> Any: ...

    def propose(self, memory: Any, canvas: Canvas) -> DraftTree: ...

    def observe(self, memory: Any, canvas: Canvas, scored: Scored) -> None: ...


class NoDrafter:
    """Plain AR decoding: the tree is the root alone."""

    max_nodes: int = 1
    lossless_with: tuple[str, ...] = LOSSLESS

    def start(self, canvas: Canvas, params: SamplingParams, randomness: Randomness) -> None:
        """Nothing to remember."""

    def propose(self, memory: None, canvas: Canvas) -> DraftTree:
        """The root of each image."""
        return root_tree(canvas)

    def observe(self, memory: None, canvas: Canvas, scored: Scored) -> None:
        """Nothing to learn."""


@dataclass
class Stats:
    """Counts of one batch. `verified` and `accepted` are per depth (1 first) and per source."""

    images: int = 0
    nfe: int = 0
    committed: int = 0
    nodes: int = 0
    verified_by_depth: list[int] = field(default_factory=list)
    accepted_by_depth: list[int] = field(default_factory=list)
    accepted_by_source: dict[str, int] = field(default_factory=dict)

    @property
    def accept_length(self) -> float:
        """Tokens committed per target forward and image, the recovered or bonus token included."""
        return self.committed / (self.nfe * self.images) if self.nfe else 0.0

    @property
    def acceptance_rate(self) -> list[float]:
        """accepted / verified at each depth: of the steps that verified a draft there, how many kept one."""
        pairs = zip(self.accepted_by_depth, self.verified_by_depth, strict=True)
        return [kept / tried if tried else 0.0 for kept, tried in pairs]

    def record(self, tree: DraftTree, depths: list[list[int]], verdicts: list[Verdict], live: list[bool]) -> None:
        """Add one step; `depths` are those of the valid nodes of each image's tree."""
        self.nfe += 1
        for row, verdict in enumerate(verdicts):
            if not live[row]:
                continue
            deepest, kept = max(depths[row]), len(verdict.path) - 1
            self.nodes += len(depths[row])
            missing = [0] * (deepest - len(self.verified_by_depth))
            self.verified_by_depth += missing
            self.accepted_by_depth += missing
            for depth in range(deepest):
                self.verified_by_depth[depth] += 1
                self.accepted_by_depth[depth] += depth < kept
            for node in verdict.path[1:]:
                name = tree.source_names[int(tree.sources[row, node])]
                self.accepted_by_source[name] = self.accepted_by_source.get(name, 0) + 1


@dataclass
class DecodeState:
    """Everything that a step reads and changes."""

    canvas: Canvas
    cache: KVCache
    padding: Int[Tensor, " rows"]
    params: SamplingParams
    verify: Verifier
    memory: Any
    stats: Stats


@dataclass(frozen=True)
class Generation:
    """Finished tokens `[batch, grid.size]`, the origin of each (`Canvas.origins`), and the counts."""

    tokens: Int[Tensor, "b n"]
    origins: Int[Tensor, "b n"]
    source_names: tuple[str, ...]
    stats: Stats


OnStep = Callable[[Canvas, Stats], None]
"""Called after each step with what is drawn so far."""


def generate(
    target: Target,
    prompt: Any,
    grid: Grid,
    params: SamplingParams,
    drafter: Drafter,
    seeds: list[int],
    verifier: str = "coupled",
    on_step: OnStep | None = None,
    relaxation: Relaxation | None = None,
) -> Generation:
    """Draw one image for each seed (`prompt` holds as many rows).

    `relaxation` is for the verifier "relaxed", the only one that is lossy, and for no other. Raises `HawkError` for an
    unknown verifier or one that the drafter's drafts cannot be verified by.
    """
    check_verifier(verifier, drafter, relaxation)
    with torch.inference_mode():
        state = begin(target, prompt, grid, params, drafter, seeds, verifier, relaxation)
        names: tuple[str, ...] = ()
        while not state.canvas.done:
            names = step(state, target, drafter) or names
            if on_step:
                on_step(state.canvas, state.stats)
    canvas = state.canvas  # cloned below: tensors made in inference mode may not be trained on
    return Generation(canvas.tokens.clone(), canvas.origins.clone(), names, state.stats)


def check_verifier(verifier: str, drafter: Drafter, relaxation: Relaxation | None) -> None:
    """Raise `HawkError` unless these drafts can be verified so. Relaxed verification needs what `residual` needs."""
    if verifier not in (*LOSSLESS, *LOSSY):
        raise HawkError(f"unknown verifier {verifier!r}: choose one of {', '.join(LOSSLESS)}, or (lossy) relaxed")
    if ("residual" if verifier in LOSSY else verifier) not in drafter.lossless_with:
        raise HawkError(f"this drafter's drafts need the verifier {' or '.join(drafter.lossless_with)}, not {verifier}")
    if (relaxation is not None) != (verifier in LOSSY):
        raise HawkError("a relaxation goes with the verifier relaxed, and with no other")


def begin(
    target: Target,
    prompt: Any,
    grid: Grid,
    params: SamplingParams,
    drafter: Drafter,
    seeds: list[int],
    verifier: str,
    relaxation: Relaxation | None = None,
) -> DecodeState:
    """Read the prompts and draw the first token of every image."""
    prefilled = target.prefill(prompt, params.guided, grid.size + drafter.max_nodes)
    hidden = guided_state(prefilled.hidden, params, len(seeds))
    like = hidden.new_empty(0, dtype=wide(hidden))
    randomness = Randomness.from_seeds(seeds, grid.size, target.vocab_size, like)
    canvas = Canvas.blank(grid, hidden)
    half = prefilled.cache.keys.dtype in (torch.bfloat16, torch.float16)
    bound = bind(verifier, randomness, half, relaxation)
    memory = drafter.start(canvas, params, randomness)
    stats = Stats(images=len(seeds))
    state = DecodeState(canvas, prefilled.cache, prefilled.padding, params, bound, memory, stats)
    first = root_tree(canvas)
    next_positions = torch.zeros_like(first.tokens)
    scores = log_probs(guided_logits(target, prefilled.hidden[:, None], hidden[:, None], params), params)
    verdicts = bound(first, first.ancestors(), scores, next_positions)
    commit(state, drafter, Scored(first, scores, verdicts), [[0]] * canvas.batch)
    return state


def step(state: DecodeState, target: Target, drafter: Drafter) -> tuple[str, ...]:
    """One target forward: commits at least one token to every unfinished image. Returns the tree's source names."""
    canvas, params = state.canvas, state.params
    tree = drafter.propose(state.memory, canvas)
    ancestors = tree.ancestors()
    depths = ancestors.sum(-1) - 1
    positions = torch.tensor(canvas.roots(), device=depths.device)[:, None].clamp(min=0) + depths
    hidden = target.forward_nodes(
        _both(tree.tokens, params),
        _both(positions.clamp(max=canvas.grid.size - 1), params),
        _both(ancestors, params),
        state.padding,
        state.cache,
        canvas.grid,
    )
    guided = guided_state(hidden, params, canvas.batch)
    scores = log_probs(guided_logits(target, hidden, guided, params), params)
    verdicts = state.verify(tree, ancestors, scores, positions + 1)
    keep(state, guided, verdicts)
    valid = [row[ok].tolist() for row, ok in zip(depths, tree.valid, strict=True)]
    commit(state, drafter, Scored(tree, scores, verdicts), valid)
    return tree.source_names


def keep(state: DecodeState, hidden: Float[Tensor, "b n d"], verdicts: list[Verdict]) -> None:
    """Keep the cache entries and states of each verdict's path; a finished image keeps nothing."""
    canvas = state.canvas
    paths = []
    for row, verdict in enumerate(verdicts):
        path = verdict.path if canvas.room(row) else []
        root = canvas.committed[row]
        canvas.states[row, root : root + len(path)] = hidden[row, path]
        paths.append(path)
    state.cache.keep(paths * (2 if state.params.guided else 1))


def commit(state: DecodeState, drafter: Drafter, scored: Scored, depths: list[list[int]]) -> None:
    """Put the kept drafts and the token after them on the canvas, count them, tell the drafter."""
    canvas, tree, verdicts = state.canvas, scored.tree, scored.verdicts
    live = [bool(canvas.room(row)) for row in range(canvas.batch)]
    before = sum(canvas.committed)
    for row, verdict in enumerate(verdicts):
        drafts = verdict.path[1:]
        tokens = [*tree.tokens[row, drafts].tolist(), verdict.token]
        canvas.commit(row, tokens, [*tree.sources[row, drafts].tolist(), RECOVERED])
    state.stats.record(tree, depths, verdicts, live)
    state.stats.committed += sum(canvas.committed) - before
    drafter.observe(state.memory, canvas, scored)


def guided_state(hidden: Float[Tensor, "rows *n d"], params: SamplingParams, batch: int) -> Float[Tensor, "b *n d"]:
    """One state per image from its [cond; uncond] rows."""
    return guide(hidden[:batch], hidden[batch:], params.cfg_scale) if params.guided else hidden


def guided_logits(
    target: Target, hidden: Float[Tensor, "rows n d"], guided: Float[Tensor, "b n d"], params: SamplingParams
) -> Float[Tensor, "b n vocab"]:
    """Guided logits of [cond; uncond] rows; a linear head is applied once, to their guided state."""
    if target.linear_head or not params.guided:
        return target.head(guided)
    logits = target.head(hidden)
    return guide(logits[: len(guided)], logits[len(guided) :], params.cfg_scale)


def root_tree(canvas: Canvas) -> DraftTree:
    """The last committed token of each image, and no draft."""
    roots = [canvas.tokens[row, max(count - 1, 0)].item() for row, count in enumerate(canvas.committed)]
    return batch_trees([TreeBuilder.rooted(int(root)) for root in roots], (), device=canvas.tokens.device)


def bind(verifier: str, randomness: Randomness, half: bool, relaxation: Relaxation | None) -> Verifier:
    """The verifier of a name, bound to its randomness; `half`: see `coupled_at`."""
    if verifier == "coupled":
        return partial(coupled_at, randomness, half)
    if relaxation is not None:
        return partial(drawn_at, partial(relaxed, relaxation=relaxation), randomness)
    return partial(drawn_at, {"residual": residual, "traversal": traversal}[verifier], randomness)


def coupled_at(
    randomness: Randomness,
    half: bool,
    tree: DraftTree,
    ancestors: Tensor,
    scores: Tensor,
    positions: Int[Tensor, "b n"],
) -> list[Verdict]:
    """The coupled verifier with the noise of the positions that the nodes' next tokens take.

    In `half` precision only what is rounded as in plain AR is committed (`Verdict.aligned`).
    """
    verdicts = coupled(tree, ancestors, scores, randomness.noise.rows(positions))
    if not half:
        return verdicts
    return [verdict.aligned(tokens) for verdict, tokens in zip(verdicts, tree.tokens.tolist(), strict=True)]


def drawn_at(
    verify: Callable[[DraftTree, Tensor, list[torch.Generator]], list[Verdict]],
    randomness: Randomness,
    tree: DraftTree,
    ancestors: Tensor,
    scores: Tensor,
    positions: Int[Tensor, "b n"],
) -> list[Verdict]:
    """A verifier of drawn drafts with each image's own uniforms."""
    return verify(tree, scores, randomness.generators)


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype of probabilities and noise: float64 for a float64 model, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _both(tensor: Tensor, params: SamplingParams) -> Tensor:
    """The same nodes for the conditional and the unconditional rows."""
    return torch.cat((tensor, tensor)) if params.guided else tensor
