"""Decoding with draft trees, on the host: propose -> target forward -> verify -> keep -> commit -> observe.

The same step serves every target, drafter and verifier. Without drafts it is plain AR by its definition, which the
proofs compare everything with. Drafts that are a `Window` have a step of their own (`hawk.decoding.window`), which
does the same with less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hawk.decoding.cache import KVCache
from hawk.decoding.canvas import RECOVERED, Canvas
from hawk.decoding.forward import Nodes, Scores, Target, not_finite, score, score_prompt, wide
from hawk.decoding.noise import Randomness
from hawk.decoding.relaxed import relaxed
from hawk.decoding.request import Request
from hawk.decoding.sampling import BatchParams, SamplingParams
from hawk.decoding.stats import Generation, OnStep, Stats
from hawk.decoding.tree import DraftTree, TreeBuilder, batch_trees
from hawk.decoding.verify import LOSSLESS, Verdict, Verified, coupled, residual, traversal


@runtime_checkable
class Drafter(Protocol):
    """Proposes a tree below each image's last token. `memory` is whatever `start` returned for this batch.

    `max_nodes` bounds a tree, root included. `lossless_with` names the verifiers that the drafts carry enough for.
    """

    @property
    def max_nodes(self) -> int: ...

    @property
    def lossless_with(self) -> tuple[str, ...]: ...

    def start(self, canvas: Canvas, params: SamplingParams, randomness: Randomness) -> Any:
        """Return the memory of a batch, which all other calls are handed."""
        ...

    def propose(self, memory: Any, canvas: Canvas) -> DraftTree:
        """One draft tree for each image, below its last committed token."""
        ...

    def observe(self, memory: Any, canvas: Canvas, verified: Verified) -> None:
        """Learn from the verified trees of a step, after its tokens are on the canvas."""
        ...


class NoDrafter:
    """Plain AR written directly: one node a forward, with every verifier; `Window(0)` draws the same tokens faster."""

    max_nodes: int = 1
    lossless_with: tuple[str, ...] = LOSSLESS

    def start(self, canvas: Canvas, params: SamplingParams, randomness: Randomness) -> None:
        """Plain AR remembers nothing."""

    def propose(self, memory: None, canvas: Canvas) -> DraftTree:
        """The root of each image."""
        return root_tree(canvas)

    def observe(self, memory: None, canvas: Canvas, verified: Verified) -> None:
        """Plain AR learns nothing."""


Verifier = Callable[[DraftTree, Bool[Tensor, "b n n"], Scores, Int[Tensor, "b n"]], list[Verdict]]
"""A verifier bound to its randomness: (tree, ancestors, scores, positions of the nodes' next tokens) -> verdicts."""


@dataclass
class TreeState:
    """Everything that a step reads and changes; `memory` is the drafter's own."""

    canvas: Canvas
    cache: KVCache
    padding: Int[Tensor, " rows"]
    params: BatchParams
    verify: Verifier
    memory: Any
    stats: Stats


def draw(target: Target, request: Request, drafter: Drafter, on_step: OnStep | None = None) -> Generation:
    """Draw the images of a request: `generate` for drafts that are trees."""
    state = first_token(target, request, drafter)
    names: tuple[str, ...] = ()
    while not state.canvas.done:
        names = step(state, target, drafter) or names
        if on_step:
            on_step(state.canvas, state.stats)
    canvas = state.canvas  # cloned below: tensors made in inference mode may not be trained on
    return Generation(canvas.tokens.clone(), canvas.origins.clone(), names, state.stats)


def first_token(target: Target, request: Request, drafter: Drafter) -> TreeState:
    """Read the prompts and draw the first token of every image."""
    grid = request.grid
    prefilled = target.prefill(request.conditions, request.params.guided, grid.size + drafter.max_nodes)
    like = prefilled.hidden.new_empty(0, dtype=wide(prefilled.hidden))
    params = BatchParams.alike(request.params, request.images, target.vocab_size, like)
    scores = score_prompt(target, prefilled, params)
    if bool(scores.broken.any()):
        raise not_finite(prefilled.cache.keys.dtype)
    randomness = Randomness.from_seeds(list(request.seeds), grid.size, target.vocab_size, like)
    canvas = Canvas.blank(grid, scores.states[:, 0])
    half = prefilled.cache.keys.dtype in (torch.bfloat16, torch.float16)
    verify = bind(request, randomness, half)
    memory = drafter.start(canvas, request.params, randomness)
    state = TreeState(canvas, prefilled.cache, prefilled.padding, params, verify, memory, Stats(images=request.images))
    first = root_tree(canvas)
    verdicts = verify(first, first.ancestors(), scores, torch.zeros_like(first.tokens))
    commit(state, drafter, Verified(first, scores.log_p, verdicts), [[0]] * canvas.batch)
    return state


def step(state: TreeState, target: Target, drafter: Drafter) -> tuple[str, ...]:
    """One target forward: commits at least one token to every unfinished image. Returns the tree's source names."""
    canvas = state.canvas
    tree = drafter.propose(state.memory, canvas)
    ancestors = tree.ancestors()
    depths = ancestors.sum(-1) - 1
    positions = torch.tensor(canvas.roots(), device=depths.device)[:, None].clamp(min=0) + depths
    nodes = Nodes(tree.tokens, positions, ancestors)
    scores = score(target, nodes, state.padding, state.cache, canvas.grid, state.params)
    broken = bool(scores.broken.any())  # the host waits for each step's verdicts anyway
    if broken:
        scores = scores.mended()
    verdicts = state.verify(tree, ancestors, scores, positions + 1)
    if broken:
        refuse_broken(state, scores, verdicts)
    keep(state, scores.states, verdicts)
    valid = [row[ok].tolist() for row, ok in zip(depths, tree.valid, strict=True)]
    commit(state, drafter, Verified(tree, scores.log_p, verdicts), valid)
    return tree.source_names


def refuse_broken(state: TreeState, scores: Scores, verdicts: list[Verdict]) -> None:
    """Raise `HawkError` where an unfinished image commits a node that has no distribution (`Scores.broken`)."""
    for row, (verdict, broken) in enumerate(zip(verdicts, scores.broken.tolist(), strict=True)):
        if state.canvas.room(row) and any(broken[node] for node in verdict.path):
            raise not_finite(state.cache.keys.dtype)


def keep(state: TreeState, states: Float[Tensor, "b n d"], verdicts: list[Verdict]) -> None:
    """Keep the cache entries and states of each verdict's path; a finished image keeps nothing."""
    canvas = state.canvas
    paths = []
    for row, verdict in enumerate(verdicts):
        path = verdict.path if canvas.room(row) else []
        root = canvas.committed[row]
        canvas.states[row, root : root + len(path)] = states[row, path]
        paths.append(path)
    state.cache.keep([paths[image] for image in state.params.image.tolist()])


def commit(state: TreeState, drafter: Drafter, verified: Verified, depths: list[list[int]]) -> None:
    """Put the accepted drafts and the token after them on the canvas, count them, tell the drafter."""
    canvas, tree, verdicts = state.canvas, verified.tree, verified.verdicts
    live = [bool(canvas.room(row)) for row in range(canvas.batch)]
    before = sum(canvas.committed)
    for row, verdict in enumerate(verdicts):
        drafts = verdict.path[1:]
        tokens = [*tree.tokens[row, drafts].tolist(), verdict.token]
        canvas.commit(row, tokens, [*tree.sources[row, drafts].tolist(), RECOVERED])
    state.stats.record(tree, depths, verdicts, live)
    state.stats.committed += sum(canvas.committed) - before
    drafter.observe(state.memory, canvas, verified)


def root_tree(canvas: Canvas) -> DraftTree:
    """The last committed token of each image, and no draft."""
    roots = [canvas.tokens[row, max(count - 1, 0)].item() for row, count in enumerate(canvas.committed)]
    return batch_trees([TreeBuilder.rooted(int(root)) for root in roots], (), device=canvas.tokens.device)


def bind(request: Request, randomness: Randomness, half: bool) -> Verifier:
    """The request's verifier, bound to the randomness of its images; `half`: see `coupled_at`."""
    if request.verifier == "coupled":
        return partial(coupled_at, randomness, half)
    if request.relaxation is not None:
        return partial(drawn_at, partial(relaxed, relaxation=request.relaxation), randomness)
    return partial(drawn_at, {"residual": residual, "traversal": traversal}[request.verifier], randomness)


def coupled_at(
    randomness: Randomness,
    half: bool,
    tree: DraftTree,
    ancestors: Bool[Tensor, "b n n"],
    scores: Scores,
    positions: Int[Tensor, "b n"],
) -> list[Verdict]:
    """The coupled verifier, with the noise of the positions that the nodes' next tokens take.

    In `half` precision it commits only tokens whose logits are rounded as in plain AR (`Verdict.aligned`).
    """
    verdicts = coupled(tree, ancestors, scores.logits, randomness.noise.rows(positions))
    if not half:
        return verdicts
    return [verdict.aligned(tokens) for verdict, tokens in zip(verdicts, tree.tokens.tolist(), strict=True)]


def drawn_at(
    verify: Callable[[DraftTree, Float[Tensor, "b n vocab"], list[torch.Generator]], list[Verdict]],
    randomness: Randomness,
    tree: DraftTree,
    ancestors: Bool[Tensor, "b n n"],
    scores: Scores,
    positions: Int[Tensor, "b n"],
) -> list[Verdict]:
    """A verifier of drawn drafts, with the uniform numbers of each image."""
    return verify(tree, scores.log_p, randomness.generators)
