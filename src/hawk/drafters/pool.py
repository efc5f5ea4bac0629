"""The spatial sampling pool: several sources, each with a distribution for the coming positions, merged into a tree.

`CartesianPool` is the paper's (arXiv 2510.25739, Eq. 3 and 5): each source of a depth draws its own candidates, the
tree is the Cartesian product over depths, residual verification tries each draw against its own q. `FusedPool` is
Hawk's default: the sources are multiplied (a product of experts), candidates are the top-k of log q + g under the
noise the target will use, and the tree grows best-first by measured acceptance.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hawk.canvas import Canvas
from hawk.drafters.left import LeftFactor, Shortlist
from hawk.drafters.source import OutputHead, Source
from hawk.errors import HawkError
from hawk.files import write_json
from hawk.noise import Randomness
from hawk.sampling import SamplingParams, log_probs
from hawk.tree import DraftTree, TreeBuilder, Window, batch_trees, first_branch
from hawk.verify import Scored

LEAST_LOG_Q = -30.0
"""Floor of a source's log q inside a product: what one source filtered out, another may still propose."""

HEAD_SOURCES = ("horizontal", "vertical-1", "vertical-2")
"""Sources of the draft heads."""

REFRESH = 32
"""Positions past the frontier that are scored at every step where the target's early guesses are a source."""

SHORTLISTED = 24
"""Candidates of an offset that may take a place in the tree, whatever stands to their left."""


@dataclass
class PoolMemory:
    """What a pool remembers of a batch: its parameters, its randomness, and what each source remembers.

    `ahead` holds each image's tokens after the root that its last tree foretold. `layouts` holds the weights of a fused
    pool, laid out once for each pattern of coverage (it recurs at every step).
    """

    params: SamplingParams
    randomness: Randomness
    sources: list[Any]
    ahead: list[tuple[int, ...]]
    layouts: dict[tuple[tuple[int, int, int], ...], list[Tensor]] = field(default_factory=dict)


@dataclass
class Pool:
    """Sources, and what all pools do: start them, let them see each step, ask them for log q."""

    sources: list[Source]
    head: OutputHead

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources, in their order."""
        return tuple(source.name for source in self.sources)

    def start(self, canvas: Canvas, params: SamplingParams, randomness: Randomness) -> PoolMemory:
        """Empty memories for a batch."""
        nothing: list[tuple[int, ...]] = [()] * canvas.batch
        return PoolMemory(params, randomness, [source.start(canvas) for source in self.sources], nothing)

    def observe(self, memory: PoolMemory, canvas: Canvas, scored: Scored) -> None:
        """Let every source see the step; one call of the output head answers all their queries."""
        asked: list[tuple[Callable[[Tensor], None], Tensor]] = []
        for row in range(canvas.batch):
            memory.ahead[row] = scored.verdicts[row].ahead
            if not canvas.room(row):
                continue
            for source, remembered in zip(self.sources, memory.sources, strict=True):
                source.see(remembered, canvas, row, scored)
                states = source.queries(remembered, canvas, row)
                if len(states):
                    asked.append((partial(source.receive, remembered, row), states))
        if asked:
            log_q = log_probs(self.head(torch.cat([states for _, states in asked])), memory.params)
            for (receive, _), answer in zip(asked, log_q.split([len(states) for _, states in asked]), strict=True):
                receive(answer)

    def drafts(self, memory: PoolMemory, canvas: Canvas, row: int, window: int) -> list[SourceDraft]:
        """What each source says about the `window` positions after an image's root (those that it can speak of)."""
        start, drafts = canvas.committed[row], []
        for k, (source, remembered) in enumerate(zip(self.sources, memory.sources, strict=True)):
            said = source.draft(remembered, row, start, window)
            if said is not None:
                drafts.append(SourceDraft(k, said.first, said.log_q))
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

    A depth's draws are shared by all branches (parallel heads do not see the branch), or with `own_draws` each branch
    has its own: `traversal` needs that, to the other verifiers it is all one. Nodes beyond `max_nodes` are left out
    depth by depth, a choice that looks at the tokens of earlier depths only.
    """

    depth: int = 3
    draws: int = 1
    max_nodes: int = 32
    own_draws: bool = False

    @property
    def lossless_with(self) -> tuple[str, ...]:
        """The verifiers that its drafts carry enough for."""
        return ("residual", "traversal", "coupled") if self.own_draws else ("residual", "coupled")

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
            width = len(level) * len(pool) * self.draws
            if not pool or width > room:
                break
            room -= width
            branches = len(level) if self.own_draws else 1
            drawn = [
                torch.multinomial(q.double(), branches * self.draws, replacement=True, generator=generator)
                .view(branches, -1)
                .expand(len(level), -1)
                for _, q in pool
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


@dataclass(frozen=True)
class TreeLimits:
    """What a caller asks of the trees: drafts a step, and how far past the frontier they reach; None: the method's."""

    num_draft_tokens: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("num_draft_tokens", self.num_draft_tokens), ("window", self.window)):
            if value is not None and value < 1:
                raise HawkError(f"{name} must be 1 or more, not {value}: choose method 'ar' for no drafts")


@dataclass(frozen=True)
class FusedSettings:
    """What `FusedPool` measured or was told.

    `weights[pattern][offset - 1]` weighs the sources that are present, in their order; a pattern lists their indices,
    as in "0,1" for horizontal and vertical-1, and its last row serves all further offsets. `rate[bin][rank]` is the
    measured chance that a candidate is the target's token, by the lead of the first candidate over the second (nats of
    log q + g; `edges` split it into bins). `node_cost` is what one more node adds to the time of a step, as a share of
    a step without drafts: a tree grows while that raises the tokens expected per time. Its first branch then goes on to
    `refresh` positions past the frontier, whatever its chance: what the target says there, too early, makes the coming
    drafts (window refresh, as in Jacobi decoding). `tokens_at[reach]` is what a step commits where all its drafts are
    one branch of that reach. The node cost was measured on the machine `measured_on` ("": wherever it is).
    `sources` are the names of the pool's sources, in their order.
    """

    weights: dict[str, tuple[tuple[float, ...], ...]]
    edges: tuple[float, ...]
    rate: tuple[tuple[float, ...], ...]
    sources: tuple[str, ...] = HEAD_SOURCES
    max_nodes: int = 24
    window: int = 16
    refresh: int = 0
    node_cost: float = 0.03
    measured_on: str = ""
    tokens_at: dict[int, float] = field(default_factory=dict)

    def rates(self, lead: float) -> tuple[float, ...]:
        """Chance of each rank at a depth whose first candidate leads by `lead`."""
        return self.rate[sum(lead >= edge for edge in self.edges)]

    def limited(self, limits: TreeLimits) -> FusedSettings:
        """The same settings under a caller's limits."""
        nodes, refresh, most = self.max_nodes, self.refresh, limits.num_draft_tokens
        if limits.window is not None and refresh:
            refresh = limits.window
        if most is not None:  # the window first: without it the target's early guesses run dry
            refresh = min(refresh, most)
            nodes = most + 1 - refresh
        return replace(self, max_nodes=nodes, refresh=refresh, window=limits.window or self.window)

    def layout(self, drafts: list[SourceDraft]) -> list[Float[Tensor, "n 1"]]:
        """The weight of each draft at each of its offsets, given which sources are present there."""
        columns = []
        for draft in drafts:
            column = []
            for offset in range(draft.first, draft.end):
                present = sorted(d.source for d in drafts if d.first <= offset < d.end)
                by_offset = self.weights[pattern_key(present)]
                column.append(by_offset[min(offset, len(by_offset) - 1)][present.index(draft.source)])
            columns.append(torch.tensor(column, dtype=draft.log_q.dtype, device=draft.log_q.device)[:, None])
        return columns

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
    def unfitted(cls, sources: tuple[str, ...] = HEAD_SOURCES) -> FusedSettings:
        """Equal weights and a plain guess of acceptance, for sources whose pool has not been fitted."""
        count = len(sources)
        patterns = [c for size in range(1, count + 1) for c in combinations(range(count), size)]
        weights: dict[str, tuple[tuple[float, ...], ...]] = {
            pattern_key(c): ((1.0 / len(c),) * len(c),) for c in patterns
        }
        rate = tuple(tuple(first * 0.5**rank for rank in range(6)) for first in (0.4, 0.6, 0.8, 0.95))
        return cls(weights, (0.5, 1.5, 4.0), rate, sources, refresh=REFRESH if "stale" in sources else 0)


def pattern_key(sources: Iterable[int]) -> str:
    """Name of a set of present sources in `FusedSettings.weights`."""
    return ",".join(map(str, sorted(sources)))


@dataclass
class FusedPool(Pool):
    """Hawk's pool: a weighted product of the sources, top-k of log q + g, a best-first tree of measured acceptance."""

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
        return batch_trees(builders, self.source_names, None, canvas.tokens.device)

    def _grow(self, memory: PoolMemory, canvas: Canvas, row: int) -> TreeBuilder:
        committed, settings = canvas.committed[row], self.settings
        builder = TreeBuilder.rooted(int(canvas.tokens[row, committed - 1]))
        window = min(max(settings.window, settings.refresh), self.max_nodes - 1, canvas.room(row))
        drafts = unbroken(self.drafts(memory, canvas, row, window))
        reach = max((draft.end for draft in drafts), default=0)
        noise = memory.randomness.noise.window(row, committed, reach)
        fused = self.fuse(memory, drafts, noise)
        candidates = self.shortlist(canvas, row, fused, noise)
        node = 0
        for token in memory.ahead[row][:window]:
            node = builder.add(node, token, source=0)
        depth = min(reach, settings.window)
        if builder.depths[node] < depth:
            below = partial(self.children, candidates)
            grow_best_first(builder, below, depth, settings.max_nodes, settings.node_cost, node)
        self.extend(builder, canvas, row, candidates)
        builder.sources[1:] = strongest_sources(drafts, builder.tokens[1:], builder.depths[1:])
        return builder.first_branch_first()

    def extend(self, builder: TreeBuilder, canvas: Canvas, row: int, candidates: Shortlist) -> None:
        """Go on along the first branch to `refresh` positions; where no source speaks, a cell repeats the one above."""
        committed, width = canvas.committed[row], canvas.grid.width
        until = min(self.settings.refresh, canvas.room(row))
        branch = [0, *first_branch(builder.parents, 0)]
        tokens = canvas.tokens[row, max(0, committed - width) : committed].tolist()
        tokens += [builder.tokens[node] for node in branch[1:]]
        node = branch[-1]
        for offset in range(len(branch) - 1, until):
            spoken = offset < len(candidates)
            tokens.append(candidates.best(offset, tokens[-1]) if spoken else tokens[max(0, len(tokens) - width)])
            node = builder.add(node, tokens[-1], source=0)

    def children(self, candidates: Shortlist, offset: int, left: int) -> Children:
        """The candidates below a node that holds `left`, and their measured chances."""
        tokens, lead = candidates.ranked(offset, left, len(self.settings.rate[0]))
        return Children(tokens, self.settings.rates(lead))

    def shortlist(
        self, canvas: Canvas, row: int, fused: Float[Tensor, "reach vocab"], noise: Float[Tensor, "reach vocab"]
    ) -> Shortlist:
        """The largest of log q + g at each offset, on the host: as many as may be a node's children."""
        start, vocab = canvas.committed[row], fused.shape[-1]
        wanted = len(self.settings.rate[0]) if self.left is None else SHORTLISTED
        scores, tokens = (fused + noise).topk(min(wanted, vocab), dim=-1)
        columns = [(start + offset) % canvas.grid.width for offset in range(len(fused))]
        return Shortlist(
            tokens=tokens.cpu().numpy(),
            scores=scores.cpu().numpy(),
            noise=noise.gather(-1, tokens).cpu().numpy(),
            told=[offset > 0 and column > 0 for offset, column in enumerate(columns)],
            factor=self.left,
        )

    def fuse(
        self, memory: PoolMemory, drafts: list[SourceDraft], like: Float[Tensor, "reach vocab"]
    ) -> Float[Tensor, "reach vocab"]:
        """Weighted sum of log q over the sources present at each offset (only the order of log q + g counts)."""
        pattern = tuple((draft.source, draft.first, draft.end) for draft in drafts)
        if pattern not in memory.layouts:
            memory.layouts[pattern] = self.settings.layout(drafts)
        fused = torch.zeros_like(like)
        for draft, weights in zip(drafts, memory.layouts[pattern], strict=True):
            fused[draft.first : draft.end].addcmul_(draft.log_q.clamp_min(LEAST_LOG_Q), weights)
        return fused


def fused_drafter(
    sources: list[Source], head: OutputHead, settings: FusedSettings, left: LeftFactor | None = None
) -> FusedPool | Window:
    """The pool of these sources; where the target's early guesses are all there is, the window that drafts the same.

    (A tree beside the window gains less than the same nodes spent on a wider one: benchmarks/README.md.)
    """
    if settings.refresh and tuple(source.name for source in sources) == ("stale",):
        return Window(settings.refresh)
    return FusedPool(sources, head, settings, left)


def unbroken(drafts: list[SourceDraft]) -> list[SourceDraft]:
    """The drafts up to the first offset that no source covers."""
    reach = 0
    while any(draft.first <= reach < draft.end for draft in drafts):
        reach = max(draft.end for draft in drafts if draft.first <= reach)
    return [
        draft if draft.end <= reach else SourceDraft(draft.source, draft.first, draft.log_q[: reach - draft.first])
        for draft in drafts
        if draft.first < reach
    ]


def strongest_sources(drafts: list[SourceDraft], tokens: list[int], depths: list[int]) -> list[int]:
    """Of each drafted node the source that gives its token the largest q: whose draft it is called.

    A node past what the sources cover is called the first one's.
    """
    if len(drafts) < 2:
        return [drafts[0].source if drafts else 0] * len(tokens)
    offsets, drafted = np.array(depths, np.intp) - 1, np.array(tokens, np.intp)
    said = np.full((len(drafts), len(tokens)), -np.inf)
    for row, draft in zip(said, drafts, strict=True):
        covered = (offsets >= draft.first) & (offsets < draft.end)
        row[covered] = draft.log_q.cpu().numpy()[offsets[covered] - draft.first, drafted[covered]]
    return [drafts[k].source for k in said.argmax(0)]


@dataclass(frozen=True)
class Children:
    """Candidates below a node, best first, and the chance of each given that the node is kept."""

    tokens: list[int]
    rates: tuple[float, ...]


def grow_best_first(
    builder: TreeBuilder,
    below: Callable[[int, int], Children],
    depth: int,
    max_nodes: int,
    node_cost: float,
    root: int = 0,
) -> None:
    """Add the nodes below `root` likeliest to be kept, down to `depth`; `below(offset, token)` are a node's children.

    A node's chance of being kept is what it adds to the tokens expected of the step. Growth ends where the best one
    left adds less than its time is worth: so expected tokens / time is largest.
    """
    above = builder.depths[root]
    first = below(above, builder.tokens[root])
    heap = [(-first.rates[0], root, above, 0, first)]
    expected, time = 1.0 + above, 1.0 + above * node_cost
    while heap and len(builder.tokens) < max_nodes:
        gain, parent, offset, rank, siblings = heapq.heappop(heap)
        if -gain * time < node_cost * expected:
            return
        expected, time = expected - gain, time + node_cost
        token = siblings.tokens[rank]
        node = builder.add(parent, token, source=0)
        if rank + 1 < len(siblings.tokens):
            other = gain / siblings.rates[rank] * siblings.rates[rank + 1]
            heapq.heappush(heap, (other, parent, offset, rank + 1, siblings))
        if offset + 1 < depth:
            children = below(offset + 1, token)
            heapq.heappush(heap, (gain * children.rates[0], node, offset + 1, 0, children))
