"""The spatial sampling pool: several sources, each with a distribution for the coming positions, merged into a tree.

`CartesianPool` is the paper's pool (arXiv 2510.25739, Eq. 3 and 5): at each depth every source draws its own
candidates, the tree is the Cartesian product over depths, and residual verification tries each draw against its own q.
`FusedPool` is Hawk's pool for trained drafters: it multiplies the sources (a product of experts), takes as candidates
the top-k of log q + g under the noise that the target will use, and grows the tree best-first by measured acceptance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hawk.decoding.canvas import Canvas
from hawk.decoding.noise import Randomness
from hawk.decoding.sampling import BatchParams, SamplingParams, draws
from hawk.decoding.tree import DraftTree, TreeBuilder, Window, batch_trees, first_branch
from hawk.decoding.verify import Verified
from hawk.drafters.best_first import Shortlist, grow_best_first
from hawk.drafters.left import LeftFactor
from hawk.drafters.settings import FusedSettings, pattern_key
from hawk.drafters.source import Draft, OutputHead, Source, draft_log_probs

LEAST_LOG_Q = -30.0
"""Floor of a source's log q inside a product, so that a token which one source filtered out may still be proposed."""


SHORTLISTED = 24
"""Number of candidates of an offset on the shortlist, before the left factor reorders them."""


Drafts = dict[int, Draft]
"""What the sources of a pool propose for one image: a draft by the index of its source."""


@dataclass
class PoolMemory:
    """A pool's memory of a batch: the parameters, the randomness, and the memory of each source.

    `ahead` holds the tokens after each image's root that are known already (`Verdict.ahead`). `layouts` caches the
    weights of a fused pool for each pattern of covered offsets, since patterns recur at every step. `broken` names the
    sources whose logits gave no distribution (`DraftScores.broken`).
    """

    params: BatchParams
    randomness: Randomness
    sources: list[Any]
    ahead: list[tuple[int, ...]]
    layouts: dict[tuple[tuple[int, int, int], ...], list[Tensor]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Asked:
    """Draft states of a source for the output head, and what takes their log q."""

    source: str
    states: Float[Tensor, "n d"]
    receive: Callable[[Tensor], None]


@dataclass
class Pool:
    """The sources of a pool, and the part that all pools share: show each step to the sources, collect their drafts."""

    sources: list[Source]
    head: OutputHead

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources, in their order."""
        return tuple(source.name for source in self.sources)

    def start(self, canvas: Canvas, params: SamplingParams, randomness: Randomness) -> PoolMemory:
        """Empty memories of a batch."""
        nothing: list[tuple[int, ...]] = [()] * canvas.batch
        shared = BatchParams.alike(params, 1, randomness.noise.vocab, randomness.noise.held)
        return PoolMemory(shared, randomness, [source.start(canvas) for source in self.sources], nothing)

    def observe(self, memory: PoolMemory, canvas: Canvas, verified: Verified) -> None:
        """Show the step to every source, and answer all their queries by one call of the output head."""
        asked: list[Asked] = []
        for row in range(canvas.batch):
            memory.ahead[row] = verified.verdicts[row].ahead
            if not canvas.room(row):
                continue
            for source, remembered in zip(self.sources, memory.sources, strict=True):
                source.see(remembered, canvas, row, verified)
                states = source.queries(remembered, canvas, row)
                if len(states):
                    asked.append(Asked(source.name, states, partial(source.receive, remembered, row)))
        if asked:
            sizes = [len(each.states) for each in asked]
            scores = draft_log_probs(self.head, torch.cat([each.states for each in asked]), memory.params)
            for each, answer in zip(asked, scores.log_q.split(sizes), strict=True):
                each.receive(answer)
            if scores.broken is not None:
                broken = zip(asked, scores.broken.split(sizes), strict=True)
                memory.broken |= {each.source for each, rows in broken if bool(rows.any())}

    def drafts(self, memory: PoolMemory, canvas: Canvas, row: int, window: int) -> Drafts:
        """The drafts for the `window` positions after an image's root, by the index of their source."""
        start = canvas.committed[row]
        drafts = {
            k: source.draft(remembered, row, start, window)
            for k, (source, remembered) in enumerate(zip(self.sources, memory.sources, strict=True))
        }
        return {k: draft for k, draft in drafts.items() if draft is not None}


@dataclass
class CartesianPool(Pool):
    """The paper's pool and tree: at each depth every source draws `draws` candidates, and the depths are multiplied.

    All branches share the draws of a depth, since parallel heads do not see the branch. With `own_draws` each branch
    has its own draws, which `traversal` needs and the other verifiers do not. A depth that would exceed `max_nodes` is
    left out, with all deeper ones; that choice depends on the tokens of earlier depths only.
    """

    depth: int = 3
    draws: int = 1
    max_nodes: int = 32
    own_draws: bool = False

    @property
    def lossless_with(self) -> tuple[str, ...]:
        """Names of the verifiers that the drafts carry enough for."""
        return ("residual", "traversal", "coupled") if self.own_draws else ("residual", "coupled")

    def propose(self, memory: PoolMemory, canvas: Canvas) -> DraftTree:
        """One tree for each image, with every draw's q."""
        builders, q = [], []
        for row in range(canvas.batch):
            builder, rows = self._grow(memory, canvas, row)
            builders.append(builder)
            q.append(rows)
        return batch_trees(builders, self.source_names, q, canvas.tokens.device, memory.broken)

    def _grow(self, memory: PoolMemory, canvas: Canvas, row: int) -> tuple[TreeBuilder, Float[Tensor, "draws vocab"]]:
        builder = TreeBuilder.rooted(int(canvas.tokens[row, canvas.committed[row] - 1]))
        window = min(self.depth, canvas.room(row))
        generator = memory.randomness.generators[row]
        rows: list[Tensor] = []
        level, room = [0], self.max_nodes - 1
        drafts = self.drafts(memory, canvas, row, window)
        for offset in range(window):
            pool = [(k, d.log_q[offset - d.first].exp()) for k, d in drafts.items() if d.first <= offset < d.end]
            width = len(level) * len(pool) * self.draws
            if not pool or width > room:
                break
            room -= width
            branches = len(level) if self.own_draws else 1
            drawn = [
                draws(q, branches * self.draws, generator).view(branches, -1).expand(len(level), -1) for _, q in pool
            ]
            below = [
                builder.add(parent, token, source, len(rows) + i)
                for branch, parent in enumerate(level)
                for i, (source, _) in enumerate(pool)
                for token in drawn[i][branch].tolist()
            ]
            rows += [q for _, q in pool]
            level = list(dict.fromkeys(below))
        return builder, torch.stack(rows) if rows else torch.empty(0, memory.randomness.noise.vocab)


@dataclass
class FusedPool(Pool):
    """Hawk's pool: a weighted product of the sources, the top-k of log q + g, and a best-first tree."""

    settings: FusedSettings
    left: LeftFactor | None = None
    lossless_with: tuple[str, ...] = ("coupled",)

    @property
    def max_nodes(self) -> int:
        """Most nodes of a tree, root included."""
        return self.settings.max_nodes + self.settings.refresh

    def propose(self, memory: PoolMemory, canvas: Canvas) -> DraftTree:
        """One best-first tree for each image."""
        builders = [self._grow(memory, canvas, row) for row in range(canvas.batch)]
        return batch_trees(builders, self.source_names, None, canvas.tokens.device, memory.broken)

    def _grow(self, memory: PoolMemory, canvas: Canvas, row: int) -> TreeBuilder:
        committed, settings = canvas.committed[row], self.settings
        builder = TreeBuilder.rooted(int(canvas.tokens[row, committed - 1]))
        window = min(max(settings.window, settings.refresh), self.max_nodes - 1, canvas.room(row))
        drafts = unbroken(self.drafts(memory, canvas, row, window))
        reach = max((draft.end for draft in drafts.values()), default=0)
        noise = memory.randomness.noise.window(row, committed, reach)
        fused = self.fuse(memory, drafts, noise)
        candidates = self.shortlist(canvas, row, fused, noise)
        node = 0
        for token in memory.ahead[row][:window]:
            node = builder.add(node, token, source=0)
        depth = min(reach, settings.window)
        if builder.depths[node] < depth:
            grow_best_first(builder, candidates.below, depth, settings.max_nodes, settings.node_cost, node)
        self.extend(builder, canvas, row, candidates)
        builder.sources[1:] = strongest_sources(drafts, builder.tokens[1:], builder.depths[1:])
        return builder.first_branch_first()

    def extend(self, builder: TreeBuilder, canvas: Canvas, row: int, candidates: Shortlist) -> None:
        """Extend the first branch to `refresh` positions; past the sources' offsets, a cell repeats the cell above."""
        committed, width = canvas.committed[row], canvas.grid.width
        until = min(self.settings.refresh, canvas.room(row))
        branch = [0, *first_branch(builder.parents, 0)]
        tokens = canvas.tokens[row, max(0, committed - width) : committed].tolist()
        tokens += [builder.tokens[node] for node in branch[1:]]
        node = branch[-1]
        for offset in range(len(branch) - 1, until):
            covered = offset < len(candidates)
            tokens.append(candidates.best(offset, tokens[-1]) if covered else tokens[max(0, len(tokens) - width)])
            node = builder.add(node, tokens[-1], source=0)

    def shortlist(
        self, canvas: Canvas, row: int, fused: Float[Tensor, "reach vocab"], noise: Float[Tensor, "reach vocab"]
    ) -> Shortlist:
        """The tokens with the largest log q + g at each offset, on the host: as many as may be a node's children."""
        start, vocab = canvas.committed[row], fused.shape[-1]
        wanted = len(self.settings.rate[0]) if self.left is None else SHORTLISTED
        scores, tokens = (fused + noise).topk(min(wanted, vocab), dim=-1)
        columns = [(start + offset) % canvas.grid.width for offset in range(len(fused))]
        return Shortlist(
            tokens=tokens.cpu().numpy(),
            scores=scores.cpu().numpy(),
            noise=noise.gather(-1, tokens).cpu().numpy(),
            beside_left=[offset > 0 and column > 0 for offset, column in enumerate(columns)],
            factor=self.left,
            settings=self.settings,
        )

    def fuse(self, memory: PoolMemory, drafts: Drafts, like: Float[Tensor, "reach vocab"]) -> Tensor:
        """Weighted sum of log q over the sources present at each offset (only the order of log q + g counts)."""
        pattern = tuple((k, draft.first, draft.end) for k, draft in drafts.items())
        if pattern not in memory.layouts:
            memory.layouts[pattern] = weights_by_offset(self.settings, drafts)
        fused = torch.zeros_like(like)
        for draft, weights in zip(drafts.values(), memory.layouts[pattern], strict=True):
            fused[draft.first : draft.end].addcmul_(draft.log_q.clamp_min(LEAST_LOG_Q), weights)
        return fused


def weights_by_offset(settings: FusedSettings, drafts: Drafts) -> list[Float[Tensor, "n 1"]]:
    """The weight of each draft at each of its offsets, given which sources are present at that offset."""
    columns = []
    for k, draft in drafts.items():
        column = []
        for offset in range(draft.first, draft.end):
            present = sorted(other for other, d in drafts.items() if d.first <= offset < d.end)
            by_offset = settings.weights[pattern_key(present)]
            column.append(by_offset[min(offset, len(by_offset) - 1)][present.index(k)])
        columns.append(torch.tensor(column, dtype=draft.log_q.dtype, device=draft.log_q.device)[:, None])
    return columns


def fused_drafter(
    sources: list[Source], head: OutputHead, settings: FusedSettings, left: LeftFactor | None = None
) -> FusedPool | Window:
    """The pool of these sources, or, where stale guesses are the only source, the window that drafts the same tokens.

    (A tree beside the window gains less than the same number of nodes in a wider window: benchmarks/README.md.)
    """
    if settings.refresh and tuple(source.name for source in sources) == ("stale",):
        ladder, paced = settings.ladder, settings.paced
        return Window(ladder[-1].reach if ladder and paced else settings.refresh, ladder=ladder, paced=paced)
    return FusedPool(sources, head, settings, left)


def unbroken(drafts: Drafts) -> Drafts:
    """The drafts up to the first offset that no source covers."""
    reach = 0
    while any(draft.first <= reach < draft.end for draft in drafts.values()):
        reach = max(draft.end for draft in drafts.values() if draft.first <= reach)
    return {k: draft.until(reach) for k, draft in drafts.items() if draft.first < reach}


def strongest_sources(drafts: Drafts, tokens: list[int], depths: list[int]) -> list[int]:
    """For each drafted node the source that gives its token the largest q: the draft is counted under that source.

    A node at an offset that no source covers is counted under the first one.
    """
    if len(drafts) < 2:
        return [next(iter(drafts), 0)] * len(tokens)
    offsets, drafted = np.array(depths, np.intp) - 1, np.array(tokens, np.intp)
    log_q = np.full((len(drafts), len(tokens)), -np.inf)
    for row, draft in zip(log_q, drafts.values(), strict=True):
        covered = (offsets >= draft.first) & (offsets < draft.end)
        row[covered] = draft.log_q.cpu().numpy()[offsets[covered] - draft.first, drafted[covered]]
    sources = list(drafts)
    return [sources[k] for k in log_q.argmax(0)]
