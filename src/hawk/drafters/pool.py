"""The spatial sampling pool: several sources, each with a distribution for the coming positions, merged into a tree.

`CartesianPool` is the paper's (arXiv 2510.25739, Eq. 3 and 5): each source of a depth draws its own candidates, the
tree is the Cartesian product over depths, residual verification tries each draw against its own q. `FusedPool` is
Hawk's default: the sources are multiplied (a product of experts), candidates are the top-k of log q + g under the
noise the target will use, and the tree grows best-first by measured acceptance.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import torch
from jaxtyping import Float, Int
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hawk.canvas import Canvas
from hawk.drafters.heads import HorizontalSource, VerticalMemory, VerticalSource
from hawk.errors import HawkError
from hawk.files import write_json
from hawk.sampling import Randomness, SamplingParams
from hawk.tree import DraftTree, TreeBuilder, batch_trees
from hawk.verify import Verdict

LEAST_LOG_Q = -30.0
"""Floor of a source's log q inside a product: what one source filtered out, another may still propose."""


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

    def drafts(self, memory: PoolMemory, canvas: Canvas, row: int, window: int) -> list[SourceDraft]:
        """What each source says about the `window` positions after an image's root (those that it can speak of)."""
        drafts = []
        if self.horizontal and window:
            log_q = self.horizontal.draft(memory.params, canvas, row, min(window, self.horizontal.reach))
            drafts.append(SourceDraft(0, 0, log_q))
        first_vertical = 1 if self.horizontal else 0
        root = canvas.committed[row]
        for k, (source, cache) in enumerate(zip(self.vertical, memory.vertical, strict=True), start=first_vertical):
            start, end = source.covered(cache, row, root, root + window)
            if start < end:
                drafts.append(SourceDraft(k, start - root, source.draft(cache, row, start, end)))
        return drafts


@dataclass(frozen=True)
class SourceDraft:
    """log q of one source (by index) at consecutive offsets from `first` (0 is the position after the root)."""

    source: int
    first: int
    log_q: Float[Tensor, "n vocab"]

    @property
    def end(self) -> int:
        """One past the last offset."""
        return self.first + len(self.log_q)


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
        drafts = self.drafts(memory, canvas, row, window)
        for offset in range(window):
            pool = [(d.source, d.log_q[offset - d.first].exp()) for d in drafts if d.first <= offset < d.end]
            trials = [
                (int(token), source, len(rows) + i)
                for i, (source, q) in enumerate(pool)
                for token in torch.multinomial(q.double(), self.draws, replacement=True, generator=generator)
            ]
            rows += [q for _, q in pool]
            if not trials or len(level) * len(trials) > room:
                break
            room -= len(level) * len(trials)
            level = [builder.add(parent, token, source, q) for parent in level for token, source, q in trials]
            level = list(dict.fromkeys(level))
        return builder, torch.stack(rows) if rows else torch.empty(0, memory.randomness.noise.vocab)


@dataclass(frozen=True)
class FusedSettings:
    """What `FusedPool` measured or was told.

    `weights[pattern][offset - 1]` weighs the sources that are present, in their order; a pattern lists their indices,
    as in "0,1" for horizontal and vertical-1, and its last row serves all further offsets. `rate[bin][rank]` is the
    measured chance that a candidate is the target's token, by the lead of the first candidate over the second (nats of
    log q + g; `edges` split it into bins). A node is drafted while its chance of being kept exceeds `min_gain`.
    """

    weights: dict[str, tuple[tuple[float, ...], ...]]
    edges: tuple[float, ...]
    rate: tuple[tuple[float, ...], ...]
    max_nodes: int = 24
    window: int = 16
    min_gain: float = 0.06

    def rates(self, lead: float) -> tuple[float, ...]:
        """Chance of each rank at a depth whose first candidate leads by `lead`."""
        return self.rate[sum(lead >= edge for edge in self.edges)]

    def weights_of(self, present: list[list[int]]) -> list[dict[int, float]]:
        """Weight of each source present at offset 1, 2, ..."""
        rows = []
        for offset, sources in enumerate(present):
            by_offset = self.weights[pattern_key(sources)]
            row = by_offset[min(offset, len(by_offset) - 1)]
            rows.append(dict(zip(sorted(sources), row, strict=True)))
        return rows

    def save(self, folder: Path) -> None:
        """Write `pool.json`."""
        write_json(folder / "pool.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> FusedSettings:
        """Read `pool.json`; raises `HawkError` where it is missing or not of this shape."""
        path = folder / "pool.json"
        if not path.is_file():
            raise HawkError(f"no {path}: fit the pool with `hawk train drafter --kind heads`")
        try:
            return TypeAdapter(cls).validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise HawkError(
                f"{path} is not a pool that `hawk train drafter` wrote: {error.errors()[0]['msg']}"
            ) from None

    @classmethod
    def unfitted(cls, sources: int) -> FusedSettings:
        """Equal weights and a plain guess of acceptance, for heads whose pool has not been fitted."""
        patterns = [c for size in range(1, sources + 1) for c in combinations(range(sources), size)]
        weights: dict[str, tuple[tuple[float, ...], ...]] = {
            pattern_key(c): ((1.0 / len(c),) * len(c),) for c in patterns
        }
        rate = tuple(tuple(first * 0.5**rank for rank in range(6)) for first in (0.4, 0.6, 0.8, 0.95))
        return cls(weights, (0.5, 1.5, 4.0), rate)


def pattern_key(sources: Iterable[int]) -> str:
    """Name of a set of present sources in `FusedSettings.weights`."""
    return ",".join(map(str, sorted(sources)))


@dataclass
class FusedPool(Pool):
    """Hawk's pool: a weighted product of the sources, top-k of log q + g, a best-first tree of measured acceptance."""

    settings: FusedSettings
    lossless_with: tuple[str, ...] = ("coupled",)

    @property
    def max_nodes(self) -> int:
        """Most nodes of a tree, root included."""
        return self.settings.max_nodes

    def propose(self, memory: PoolMemory, canvas: Canvas) -> DraftTree:
        """One best-first tree for each image."""
        builders = [self._grow(memory, canvas, row) for row in range(canvas.batch)]
        return batch_trees(builders, self.source_names, None, canvas.tokens.device)

    def _grow(self, memory: PoolMemory, canvas: Canvas, row: int) -> TreeBuilder:
        committed, settings = canvas.committed[row], self.settings
        builder = TreeBuilder.rooted(int(canvas.tokens[row, committed - 1]))
        drafts = self.drafts(memory, canvas, row, min(settings.window, canvas.room(row)))
        covered = [any(d.first <= offset < d.end for d in drafts) for offset in range(settings.window)]
        reach = covered.index(False) if False in covered else settings.window
        if not reach:
            return builder
        drafts = [draft for draft in drafts if draft.first < reach]
        scores = self.fuse(drafts, reach) + memory.randomness.noise.window(row, committed, reach)
        top = scores.topk(min(len(settings.rate[0]), scores.shape[-1]), dim=-1)
        rates = [settings.rates(lead) for lead in (top.values[:, 0] - top.values[:, 1]).tolist()]
        likeliest = strongest_source(drafts, top.indices).tolist()
        grow_best_first(builder, top.indices.tolist(), likeliest, rates, settings.max_nodes, settings.min_gain)
        return builder

    def fuse(self, drafts: list[SourceDraft], reach: int) -> Float[Tensor, "reach vocab"]:
        """Weighted sum of log q over the sources present at each offset (only the order of log q + g counts)."""
        fused = drafts[0].log_q.new_zeros(reach, drafts[0].log_q.shape[-1])
        weights = self.settings.weights_of([[d.source for d in drafts if d.first <= o < d.end] for o in range(reach)])
        for draft in drafts:
            end = min(draft.end, reach)
            weight = [weights[offset][draft.source] for offset in range(draft.first, end)]
            log_q = draft.log_q[: end - draft.first].clamp_min(LEAST_LOG_Q)
            fused[draft.first : end] += log_q * torch.tensor(weight, dtype=fused.dtype, device=fused.device)[:, None]
        return fused


def strongest_source(drafts: list[SourceDraft], tokens: Int[Tensor, "reach k"]) -> Int[Tensor, "reach k"]:
    """The source that gives each candidate the largest q: whose draft it is called when it is kept."""
    best = torch.full(tokens.shape, -torch.inf, device=tokens.device, dtype=drafts[0].log_q.dtype)
    source = torch.zeros_like(tokens)
    for draft in drafts:
        end = min(draft.end, len(tokens))
        here = slice(draft.first, end)
        log_q = draft.log_q[: end - draft.first].gather(-1, tokens[here])
        better = log_q > best[here]
        best[here] = torch.where(better, log_q, best[here])
        source[here] = torch.where(better, draft.source, source[here])
    return source


def grow_best_first(
    builder: TreeBuilder,
    candidates: list[list[int]],
    sources: list[list[int]],
    rates: list[tuple[float, ...]],
    max_nodes: int,
    min_gain: float,
) -> None:
    """Add the nodes likeliest to be kept; `rates[depth][rank]` is a candidate's chance given that its parent is."""
    heap = [(-rates[0][0], 0, 0, 0)]
    while heap and len(builder.tokens) < max_nodes:
        gain, parent, depth, rank = heapq.heappop(heap)
        if -gain < min_gain:
            return
        node = builder.add(parent, candidates[depth][rank], sources[depth][rank])
        if rank + 1 < len(candidates[depth]):
            heapq.heappush(heap, (gain / rates[depth][rank] * rates[depth][rank + 1], parent, depth, rank + 1))
        if depth + 1 < len(candidates):
            heapq.heappush(heap, (gain * rates[depth + 1][0], node, depth + 1, 0))
