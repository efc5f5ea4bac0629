"""The decoder: propose -> tree -> target forward -> guide, filter -> verify -> keep -> observe.

The same step serves every target, drafter and verifier; plain AR is the step with a drafter that proposes nothing.
Drafts that are a `Window` have a step of their own (`hawk.window`), which does the same with less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hawk.cache import KVCache
from hawk.canvas import RECOVERED, Canvas
from hawk.errors import HawkError
from hawk.forward import Target, both, guided_logits, guided_state, wide
from hawk.grid import Grid
from hawk.noise import Randomness
from hawk.relaxed import LOSSY, Relaxation, relaxed
from hawk.sampling import SamplingParams, log_probs
from hawk.stats import Generation, OnStep, Stats
from hawk.tree import DraftTree, TreeBuilder, Window, batch_trees
from hawk.verify import LOSSLESS, Scored, Verdict, Verifier, coupled, residual, traversal
from hawk.window import Sessions, draw


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
class DecodeState:
    """Everything that a step reads and changes."""

    canvas: Canvas
    cache: KVCache
    padding: Int[Tensor, " rows"]
    params: SamplingParams
    verify: Verifier
    memory: Any
    stats: Stats


def generate(
    target: Target,
    prompt: Any,
    grid: Grid,
    params: SamplingParams,
    drafter: Drafter | Window,
    seeds: list[int],
    verifier: str = "coupled",
    on_step: OnStep | None = None,
    relaxation: Relaxation | None = None,
    sessions: Sessions | None = None,
) -> Generation:
    """Draw one image for each seed (`prompt` holds as many rows).

    `relaxation` is for the verifier "relaxed", the only one that is lossy, and for no other. `sessions` keeps what was
    captured on a GPU from one call to the next. Raises `HawkError` for an unknown verifier or one that the drafter's
    drafts cannot be verified by.
    """
    check_verifier(verifier, drafter, relaxation)
    with torch.inference_mode():
        if isinstance(drafter, Window):
            return draw(target, prompt, grid, params, drafter, seeds, on_step, sessions)
        state = begin(target, prompt, grid, params, drafter, seeds, verifier, relaxation)
        names: tuple[str, ...] = ()
        while not state.canvas.done:
            names = step(state, target, drafter) or names
            if on_step:
                on_step(state.canvas, state.stats)
    canvas = state.canvas  # cloned below: tensors made in inference mode may not be trained on
    return Generation(canvas.tokens.clone(), canvas.origins.clone(), names, state.stats)


def check_verifier(verifier: str, drafter: Drafter | Window, relaxation: Relaxation | None) -> None:
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
        both(tree.tokens, params),
        both(positions.clamp(max=canvas.grid.size - 1), params),
        both(ancestors, params),
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
