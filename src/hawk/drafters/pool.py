"""The spatial sampling pool: several sources, each with a distribution for the coming positions, merged into a tree.

`CartesianPool` is the paper's (arXiv 2510.25739, Eq. 3 and 5): each source of a depth draws its own candidates, the
tree is the Cartesian product over depths, residual verification tries each draw against its own q. `FusedPool` is
Hawk's default: the sources are multiplied (a product of experts), candidates are the top-k of log q + g under the
noise the target will use, and the tree grows best-first by measured acceptance.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from hawk.canvas import Canvas
from hawk.drafters.heads import HorizontalSource, VerticalMemory, VerticalSource
from hawk.sampling import Randomness, SamplingParams
from hawk.tree import DraftTree, TreeBuilder, batch_trees
from hawk.verify import Verdict


@dataclass
class PoolMemory:
    """What a pool remembers of a batch: its parameters, its randomness, and the vertical caches."""

    params: SamplingParams
    randomness: Randomness
    vertical: list[VerticalMemory]


@dataclass
class Pool:
    """Sources, and what all pools do: start them, let them read new states, ask them for log q."""

    horizontal: HorizontalSource | None
    vertical: list[VerticalSource]

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources, horizontal first."""
        return (*(["horizontal"] if self.horizontal else []), *(source.name for source in self.vertical))

    def start(self, canvas: Canvas, params: SamplingParams, randomness: Randomness) -> PoolMemory:
        """Empty vertical caches for a batch."""
        return PoolMemory(params, randomness, [source.start(canvas, params) for source in self.vertical])

    def observe(self, memory: PoolMemory, canvas: Canvas, verdicts: list[Verdict]) -> None:
        """Let the vertical sources read the states of newly committed tokens."""
        for source, cache in zip(self.vertical, memory.vertical, strict=True):
            source.observe(cache, canvas)

    def drafts(self, memory: PoolMemory, canvas: Canvas, row: int, window: int) -> list[dict[int, Tensor]]:
        """For each offset 1 .. `window` from the root: log q `[vocab]` of every source that has one, by source index."""
        pool: list[dict[int, Tensor]] = [{} for _ in range(window)]
        if self.horizontal:
            reach = min(window, self.horizontal.reach)
            for offset, log_q in enumerate(self.horizontal.draft(memory.params, canvas, row, reach)):
                pool[offset][0] = log_q
        for k, (source, cache) in enumerate(
            zip(self.vertical, memory.vertical, strict=True), start=1 if self.horizontal else 0
        ):
            first = canvas.committed[row]
            positions = [p for p in range(first, first + window) if source.available(cache, canvas, p)]
            positions = [p for p in positions if p - cache.waiting.shape[1] < cache.read[row]]
            if positions:
                drafted = source.draft(cache, row, torch.tensor(positions))
                for position, log_q in zip(positions, drafted, strict=True):
                    pool[position - first][k] = log_q
        return pool


@dataclass
class CartesianPool(Pool):
    """The paper's pool and tree: at each depth every source draws `draws` candidates, the depths are multiplied.

    A depth's draws are shared by all branches (parallel heads do not see the branch). Nodes beyond `max_nodes` are
    left out depth by depth, a choice that does not look at the tokens drawn.
    """

    depth: int = 3
    draws: int = 1
    max_nodes: int = 32
    lossless_with: tuple[str, ...] = ("residual", "coupled")

    def propose(self, memory: PoolMemory, canvas: Canvas) -> DraftTree:
        """One tree for each image, with every draw's q."""
        builders, q = [], []
        for row in range(canvas.batch):
            builder, rows = self._grow(memory, canvas, row)
            builders.append(builder)
            q.append(rows)
        return batch_trees(builders, self.source_names, q, canvas.tokens.device)

    def _grow(self, memory: PoolMemory, canvas: Canvas, row: int) -> tuple[TreeBuilder, Float[Tensor, "draws vocab"]]:
        builder = TreeBuilder.rooted(int(canvas.tokens[row, canvas.committed[row] - 1]))
        window = min(self.depth, canvas.room(row))
        generator = memory.randomness.generators[row]
        rows: list[Tensor] = []
        level, room = [0], self.max_nodes - 1
        for sources in self.drafts(memory, canvas, row, window) if window else []:
            trials = [
                (int(token), source, len(rows) + i)
                for i, (source, log_q) in enumerate(sources.items())
                for token in torch.multinomial(log_q.exp().double(), self.draws, replacement=True, generator=generator)
            ]
            rows += [log_q.exp() for log_q in sources.values()]
            if not trials or len(level) * len(trials) > room:
                break
            room -= len(level) * len(trials)
            level = [builder.add(parent, token, source, q) for parent in level for token, source, q in trials]
            level = list(dict.fromkeys(level))
        return builder, torch.stack(rows) if rows else torch.empty(0, 0)


@dataclass(frozen=True)
class Acceptance:
    """Measured chance that a candidate is the target's token, by rank, given how far the first candidate leads.

    `edges` split the lead (difference of the two largest log q + g, in nats) into bins; `rate[bin][rank]`.
    """

    edges: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0, 1.6, 2.4, 3.6, 5.0, 7.0)
    rate: tuple[tuple[float, ...], ...] = field(
        default_factory=lambda: tuple(
            tuple(p * 0.6 ** (r + 1) for r in range(8)) for p in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
        )
    )

    def bin(self, lead: float) -> int:
        """Which bin a lead falls into."""
        return sum(lead >= edge for edge in self.edges)


@dataclass
class FusedPool(Pool):
    """Hawk's pool: a weighted product of the sources, top-k of log q + g, a best-first tree of measured acceptance.

    `weights[i]` are (horizontal, vertical-1, vertical-2, ...) at offset i + 1; the last row serves all further ones.
    A node is added while its chance of being kept exceeds `min_gain` (its cost in units of a committed token).
    """

    weights: tuple[tuple[float, ...], ...] = ((0.7, 0.5, 0.1),)
    acceptance: Acceptance = field(default_factory=Acceptance)
    max_nodes: int = 24
    window: int = 16
    branching: int = 6
    min_gain: float = 0.06
    lossless_with: tuple[str, ...] = ("coupled",)

    def propose(self, memory: PoolMemory, canvas: Canvas) -> DraftTree:
        """One best-first tree for each image."""
        builders = [self._grow(memory, canvas, row) for row in range(canvas.batch)]
        return batch_trees(builders, (*self.source_names, "pool"), None, canvas.tokens.device)

    def _grow(self, memory: PoolMemory, canvas: Canvas, row: int) -> TreeBuilder:
        committed = canvas.committed[row]
        builder = TreeBuilder.rooted(int(canvas.tokens[row, committed - 1]))
        window = min(self.window, canvas.room(row))
        pool = self.drafts(memory, canvas, row, window) if window else []
        reach = next((i for i, sources in enumerate(pool) if not sources), len(pool))
        if not reach:
            return builder
        fused = self.fuse(pool[:reach])
        positions = torch.arange(committed, committed + reach).expand(canvas.batch, -1)
        scores = fused + memory.randomness.noise.rows(positions)[row]
        top = scores.topk(min(self.branching, scores.shape[-1]), dim=-1)
        leads = (top.values[:, 0] - top.values[:, 1]).tolist()
        rates = [self.acceptance.rate[self.acceptance.bin(lead)] for lead in leads]
        grow_best_first(builder, top.indices.tolist(), rates, len(self.source_names), self.max_nodes, self.min_gain)
        return builder

    def fuse(self, pool: list[dict[int, Tensor]]) -> Float[Tensor, "window vocab"]:
        """Weighted sum of log q over the sources of each offset (unnormalised: only the order of log q + g counts).

        Where a source is missing its weight goes to the others, so that the product keeps its sharpness.
        """
        first = 0 if self.horizontal else 1
        rows = []
        for i, sources in enumerate(pool):
            weights = self.weights[min(i, len(self.weights) - 1)]
            present = {k: weights[k + first] for k in sources}
            total = sum(weights) / max(sum(present.values()), 1e-6)
            rows.append(sum(sources[k] * (w * total) for k, w in present.items()))
        return torch.stack(rows)


def grow_best_first(
    builder: TreeBuilder,
    candidates: list[list[int]],
    rates: list[tuple[float, ...]],
    source: int,
    max_nodes: int,
    min_gain: float,
) -> None:
    """Add the nodes likeliest to be kept: `rates[depth][rank]` is the chance of a candidate given its parent is kept."""
    heap = [(-rates[0][0], 0, 0, 0)]
    while heap and len(builder.tokens) < max_nodes:
        gain, parent, depth, rank = heapq.heappop(heap)
        if -gain < min_gain:
            return
        node = builder.add(parent, candidates[depth][rank], source)
        if rank + 1 < len(candidates[depth]):
            heapq.heappush(heap, (gain / rates[depth][rank] * rates[depth][rank + 1], parent, depth, rank + 1))
        if depth + 1 < len(candidates):
            heapq.heappush(heap, (gain * rates[depth + 1][0], node, depth + 1, 0))
