"""Fit and measure `hawk`'s pool on real decoding: record the drafts of every source, and the target's p beside them.

The recordings come from decoding runs with the pool itself, so that each source drafts as it does in use.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from hawk.decoding.canvas import Canvas
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.noise import GumbelNoise, Randomness
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.stats import Stats
from hawk.decoding.tree import DraftTree
from hawk.decoding.verify import Verified
from hawk.drafters.left import LeftFactor
from hawk.drafters.pool import LEAST_LOG_Q, Drafts, FusedPool, PoolMemory, fused_drafter
from hawk.drafters.settings import FusedSettings, pattern_key
from hawk.drafters.source import Draft
from hawk.machine import machine_name
from hawk.models.protocol import ImageTarget
from hawk.training.drafters.grids import SamplingRanges
from hawk.training.drafters.losses import overlap
from hawk.training.drafters.teacher import Prompts, forced_hidden, teacher_log_p

REACHES = (1, 3, 7, 11, 15, 17, 19, 23, 27, 31, 47, 63)
"""The windows whose speed is measured.

With the root, most of them fill whole tiles of a CPU's matrix units; 17 is a row of 16 cells and one more.
"""

GROUP = 4
"""Most images that a pool is fitted on with one setting, where the settings are drawn from ranges."""

LIKELY_RANKS = 2
"""Most nodes of a draft tree are candidates of the first two ranks."""

Weights = dict[str, tuple[tuple[float, ...], ...]]
"""The type of `FusedSettings.weights`."""


@dataclass(frozen=True)
class PoolData:
    """The drafts of every source and the target's p, at sampled roots and the offsets after each root.

    `present` marks where a source has a draft. `left` is the token of the left cell where the left factor applies: not
    in the first column and not right after the root; it is -1 elsewhere.
    """

    log_q: Float[Tensor, "sources samples offsets vocab"]
    present: Bool[Tensor, "sources samples offsets"]
    log_p: Float[Tensor, "samples offsets vocab"]
    left: Int[Tensor, "samples offsets"]


@dataclass(frozen=True)
class Recorded:
    """The sources' drafts in one decoding step of image `row`; they begin at position `start`, the frontier plus 1."""

    row: int
    start: int
    drafts: Drafts


@dataclass
class Recorder:
    """A drafter that drafts as `pool` does and records the sources' drafts in a random `share` of all steps."""

    pool: FusedPool
    offsets: int
    share: float
    generator: torch.Generator
    kept: list[Recorded] = field(default_factory=list)
    canvas: Canvas | None = None

    @property
    def max_nodes(self) -> int:
        """The largest number of nodes of the pool's trees."""
        return self.pool.max_nodes

    @property
    def lossless_with(self) -> tuple[str, ...]:
        """The verifiers with which the pool is lossless."""
        return self.pool.lossless_with

    def start(self, canvas: Canvas, params: SamplingParams, randomness: Randomness) -> PoolMemory:
        """Start the pool, and keep the canvas: after decoding it holds the target's hidden states."""
        self.canvas = canvas
        return self.pool.start(canvas, params, randomness)

    def propose(self, memory: PoolMemory, canvas: Canvas) -> DraftTree:
        """The pool's tree; in a sampled step the sources' drafts are recorded first."""
        for row in range(canvas.batch):
            window = min(self.offsets, canvas.room(row))
            if window and torch.rand((), generator=self.generator) < self.share:
                drafts = self.pool.drafts(memory, canvas, row, window)
                drafts = {k: Draft(draft.first, draft.log_q.clone()) for k, draft in drafts.items()}
                self.kept.append(Recorded(row, canvas.committed[row], drafts))
        return self.pool.propose(memory, canvas)

    def observe(self, memory: PoolMemory, canvas: Canvas, verified: Verified) -> None:
        """Let the pool observe what the target scored."""
        self.pool.observe(memory, canvas, verified)


def record_drafts(
    target: ImageTarget,
    pool: FusedPool,
    prompt: Any,
    grid: Grid,
    params: SamplingParams,
    seeds: list[int],
    samples: int = 300,
    offsets: int = 16,
) -> PoolData:
    """Decode one image per seed and record about `samples` steps, each with the drafts of `offsets` positions."""
    steps = len(seeds) * grid.size / 3  # about: a step commits three tokens or so
    recorder = Recorder(pool, min(offsets, grid.size - 1), min(1.0, samples / steps), torch.Generator().manual_seed(0))
    tokens = generate(target, Request(prompt, grid, params, seeds), recorder).tokens
    assert recorder.canvas is not None
    hidden = recorder.canvas.states.clone()[None]  # no longer an inference tensor
    if not target.linear_head:  # p does not follow from the guided state, which the canvas holds
        hidden = forced_hidden(target, tokens, prompt, grid, params)
    tokens = tokens.cpu()
    shape = (len(recorder.kept), recorder.offsets)
    log_q = torch.zeros(len(pool.sources), *shape, target.vocab_size)
    present = torch.zeros(len(pool.sources), *shape, dtype=torch.bool)
    log_p = torch.zeros(*shape, target.vocab_size)
    left = torch.full(shape, -1)
    for i, step in enumerate(recorder.kept):
        coming = torch.arange(step.start, min(step.start + recorder.offsets, grid.size))
        with torch.no_grad():
            log_p[i, : len(coming)] = teacher_log_p(target, hidden[:, step.row : step.row + 1, coming], params)[0]
        has_left = coming % grid.width > 0
        has_left[0] = False  # the left cell is the root, whose token the sources know already
        left[i, : len(coming)][has_left] = tokens[step.row, coming[has_left] - 1]
        for source, draft in step.drafts.items():
            log_q[source, i, draft.first : draft.end] = draft.log_q
            present[source, i, draft.first : draft.end] = True
    return PoolData(log_q, present, log_p, left)


def joined(parts: Sequence[PoolData]) -> PoolData:
    """The samples of several recordings of the same pool, one after the other."""
    return PoolData(
        torch.cat([part.log_q for part in parts], dim=1),
        torch.cat([part.present for part in parts], dim=1),
        torch.cat([part.log_p for part in parts]),
        torch.cat([part.left for part in parts]),
    )


def fit_weights(data: PoolData, steps: int = 60) -> Weights:
    """The pool's weights for each pattern (the set of sources that are present) and offset: those that keep most mass.

    The mass kept is `overlap`. A source alone has weight 1. At an offset where a pattern never occurs, it has the
    weights of the offset before, or equal weights at the first offset.
    """
    sources, _, offsets, _ = data.log_q.shape
    occur = [Counter(map(tuple, data.present[:, :, offset].T.tolist())) for offset in range(offsets)]
    patterns = [c for size in range(1, sources + 1) for c in combinations(range(sources), size)]
    table: Weights = {}
    for pattern in tqdm(patterns, desc="weights", unit="pattern"):
        if len(pattern) == 1:
            table[pattern_key(pattern)] = ((1.0,),)
            continue
        flags = tuple(k in pattern for k in range(sources))
        rows: list[tuple[float, ...]] = []
        last = max((offset for offset in range(offsets) if occur[offset][flags]), default=0)
        for offset in range(last + 1):
            if occur[offset][flags]:
                here = data.present[list(pattern), :, offset].all(0)
                rows.append(_fit_row(data.log_q[list(pattern), :, offset][:, here], data.log_p[here, offset], steps))
            else:
                rows.append(rows[-1] if rows else (1.0 / len(pattern),) * len(pattern))
        table[pattern_key(pattern)] = tuple(rows)
    return table


def _fit_row(log_q: Tensor, log_p: Tensor, steps: int) -> tuple[float, ...]:
    """The weights at one offset: first those of least cross-entropy, and from there on those that keep the most mass.

    Cross-entropy alone gives a calibrated product, which is flatter than the best draft.
    """
    sources, samples = log_q.shape[:2]
    weights = torch.full((sources,), 1.0 / sources, requires_grad=True)
    if samples < 8:
        return tuple(weights.tolist())
    finite, p = log_q.clamp_min(LEAST_LOG_Q), log_p.exp()
    for objective in (lambda log_f: -(p * log_f).sum(-1), lambda log_f: -overlap(log_f, log_p)):
        optimizer = torch.optim.LBFGS([weights], lr=0.5, max_iter=steps, line_search_fn="strong_wolfe")

        def loss(
            objective: Callable[[Tensor], Tensor] = objective, optimizer: torch.optim.Optimizer = optimizer
        ) -> Tensor:
            optimizer.zero_grad()
            value = objective(torch.einsum("s,snv->nv", weights, finite).log_softmax(-1)).mean()
            # the fewer the samples, the closer the weights stay to equal ones
            value = value + (weights - 1.0 / sources).square().sum() / samples
            value.backward()
            return value

        optimizer.step(loss)
    return tuple(round(w, 4) for w in weights.tolist())


@torch.no_grad()
def fused_scores(
    data: PoolData, weights: Weights, factor: LeftFactor | None = None
) -> Float[Tensor, "samples offsets v"]:
    """The pool's log-linear product at every sample and offset; -inf where no source is present."""
    sources, samples, offsets, _ = data.log_q.shape
    fused = torch.full_like(data.log_p, -torch.inf)
    for i in range(samples):
        for offset in range(offsets):
            present = [k for k in range(sources) if data.present[k, i, offset]]
            if present:
                rows = weights[pattern_key(present)]
                row = torch.tensor(rows[min(offset, len(rows) - 1)])
                fused[i, offset] = torch.einsum("s,sv->v", row, data.log_q[present, i, offset].clamp_min(LEAST_LOG_Q))
    if factor is not None:
        known = data.left >= 0
        left, here = (torch.from_numpy(table) for table in (factor.left, factor.here))
        fused[known] = factor.base * fused[known] + left[data.left[known]] @ here.T
    return fused


@torch.no_grad()
def measure_acceptance(
    data: PoolData,
    weights: Weights,
    seed: int,
    ranks: int = 8,
    factor: LeftFactor | None = None,
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """(edges, rate[bin][rank]): how often the candidate of each rank is the target's token.

    Samples are sorted into bins by the lead of the first candidate over the second; `edges` divides the bins. An offset
    counts only where the target's tokens before it were likely candidates: elsewhere decoding never reaches its node.
    """
    fused = fused_scores(data, weights, factor)
    samples, offsets, vocab = fused.shape
    noise = GumbelNoise([seed], samples * offsets, vocab, fused).rows(torch.arange(samples * offsets)[None])
    noise = noise.view_as(fused)
    top = (fused + noise).topk(ranks, dim=-1)
    hits = top.indices == (data.log_p + noise).argmax(-1, keepdim=True)
    accepted = hits[..., :LIKELY_RANKS].any(-1).cumprod(1).bool()  # a node is reached if all before it are accepted
    usable = fused.isfinite().any(-1)
    usable[:, 1:] &= accepted[:, :-1]
    hit, lead = hits[usable], (top.values[..., 0] - top.values[..., 1])[usable]
    edges = tuple(round(float(e), 4) for e in torch.quantile(lead, torch.linspace(0.1, 0.9, 9)).unique())
    bins = torch.bucketize(lead, torch.tensor(edges), right=True)
    rate = []
    for b in range(len(edges) + 1):
        chosen = hit[bins == b].double()
        smoothed = (chosen.sum(0) + 0.25) / (len(chosen) + 4)
        rate.append(tuple(round(float(r), 5) for r in smoothed))
    return edges, tuple(rate)


@torch.no_grad()
def draft_quality(
    data: PoolData, names: tuple[str, ...], weights: Weights, seed: int, factor: LeftFactor | None = None
) -> dict[str, dict[int, dict[str, float]]]:
    """The quality of each source, of the pool, and of the pool with the left factor, at the offsets 1, 2, 4, 8.

    `mass` is the mean mass kept, `overlap`. `top1` and `top8` are coupled coverage: how often the target's token,
    argmax(log p + g), is among the k largest of log q + g.
    """
    known = data.present.any(0)
    named = {**dict(zip(names, data.log_q, strict=True)), "fused": fused_scores(data, weights)}
    masks = {**dict(zip(names, data.present, strict=True)), "fused": known}
    if factor is not None:
        named["fused, left known"] = fused_scores(data, weights, factor)
        masks["fused, left known"] = known
    quality: dict[str, dict[int, dict[str, float]]] = {}
    for name, log_q in named.items():
        for offset in (n for n in (1, 2, 4, 8) if n <= log_q.shape[1] and masks[name][:, n - 1].any()):
            o = offset - 1
            here = masks[name][:, o]
            q, log_p = log_q[here, o].log_softmax(-1), data.log_p[here, o]
            noise = GumbelNoise([seed], len(q), q.shape[-1], q).rows(torch.arange(len(q))[None])[0]
            chosen = (log_p + noise).argmax(-1, keepdim=True)
            hits = (q + noise).topk(8, dim=-1).indices == chosen
            quality.setdefault(name, {})[offset] = {
                "mass": float(overlap(q, log_p).mean()),
                "top1": float(hits[:, 0].double().mean()),
                "top8": float(hits.any(-1).double().mean()),
            }
    return quality


@dataclass(frozen=True)
class FittedPool:
    """The fitted settings of `hawk`'s pool, the mean seconds an image takes with it, and its `draft_quality`.

    `left` is the left factor, or None if the pool keeps no more mass with it on other images than it was fitted on.
    """

    settings: FusedSettings
    seconds: float
    left: LeftFactor | None
    quality: dict[str, dict[int, dict[str, float]]]


def fit_pool(
    target: ImageTarget,
    pool: FusedPool,
    prompts: Prompts,
    grid: Grid,
    params: SamplingParams,
    first: int,
    images: int = 32,
    samples: int = 300,
    ranges: SamplingRanges | None = None,
) -> FittedPool:
    """Fit the weights of a pool and measure its acceptance, its quality and its speed, on images from `first` on.

    The weights are fitted on one run of `images` images, acceptance is measured on a second run with those weights, and
    quality on a third. The pool's left factor is scaled on the first run and dropped if it keeps no more mass on the
    second. With `ranges` each run is made of groups of at most `GROUP` images, and every group has a setting of its
    own, as has every image whose speed is measured.
    """
    group = images if ranges is None else min(GROUP, images)

    def setting(start: int) -> SamplingParams:
        return params if ranges is None else ranges.setting(params, start)

    def recorded(part: int, settings: FusedSettings) -> PoolData:
        begin, window = first + part * images, settings.window
        drafting = FusedPool(pool.sources, pool.head, settings, pool.left)
        found = []
        for start in range(begin, begin + images, group):
            seeds = list(range(start, min(start + group, begin + images)))
            prompt, share = prompts(start, len(seeds)), round(samples * len(seeds) / images)
            found.append(record_drafts(target, drafting, prompt, grid, setting(start), seeds, share, window))
        return joined(found)

    settings = pool.settings
    data = recorded(0, settings)
    settings = replace(settings, weights=fit_weights(data))
    factor = None if pool.left is None else weigh_left(data, settings.weights, pool.left)
    unseen = recorded(1, settings)
    kept = factor is not None and mass_kept(unseen, settings.weights, factor) > mass_kept(unseen, settings.weights)
    left = factor if kept else None
    edges, rate = measure_acceptance(unseen, settings.weights, first, factor=left)
    quality = draft_quality(recorded(2, settings), pool.source_names, settings.weights, first, factor)
    pool = FusedPool(pool.sources, pool.head, settings, left)
    timed = min(6, images)
    seeds = list(range(first, first + timed))
    priced = measure_cost(target, pool, prompts(first, timed), grid, [setting(seed) for seed in seeds], seeds)
    return FittedPool(replace(priced.settings, edges=edges, rate=rate), priced.seconds, left, quality)


@dataclass(frozen=True)
class Priced:
    """Settings with the cost of a node and the best window on this machine, and the mean seconds an image takes."""

    settings: FusedSettings
    seconds: float


def measure_cost(
    target: ImageTarget, pool: FusedPool, prompt: Any, grid: Grid, params: Sequence[SamplingParams], seeds: list[int]
) -> Priced:
    """The pool's settings with the cost of a node on this machine, the tokens that windows commit, and the best window.

    One image per seed, with its setting in `params`, is decoded with every window of `REACHES` (in turn, without a
    tree), and whole steps are timed, drafting and verifying included. A pool that does not refresh its window still
    does not refresh it afterwards.
    """
    settings = pool.settings
    reaches = [reach for reach in REACHES if reach < grid.size]
    steps: dict[int, list[Stats]] = {reach: [] for reach in reaches}
    seconds: dict[int, list[float]] = {reach: [] for reach in reaches}
    for i, seed in enumerate(tqdm(seeds, desc="windows", unit="image")):
        for reach in reaches:
            chain = replace(settings, max_nodes=1, refresh=reach)
            drafter = fused_drafter(pool.sources, pool.head, chain, pool.left)
            started = time.perf_counter()
            stats = generate(target, Request(prompt.rows(slice(i, i + 1)), grid, params[i], [seed]), drafter).stats
            seconds[reach].append(time.perf_counter() - started)
            steps[reach].append(stats)
    nodes = [statistics.median(stats.nodes / stats.nfe for stats in steps[reach]) for reach in reaches]
    per_step = [
        statistics.median(t / stats.nfe for t, stats in zip(seconds[reach], steps[reach], strict=True))
        for reach in reaches
    ]
    slope, base = statistics.linear_regression(nodes, per_step)
    window = min(reaches, key=lambda reach: sum(seconds[reach]))
    tokens = grid.size * len(seeds)
    known = replace(
        settings,
        node_cost=round(max(slope, 0.0) / (base + slope), 4),
        refresh=window if settings.refresh else 0,
        measured_on=machine_name(target.device, target.weight_dtype),
        tokens_at={reach: round(tokens / sum(s.nfe for s in steps[reach]), 2) for reach in reaches},
    )
    return Priced(known, statistics.mean(seconds[window]))


def weigh_left(data: PoolData, weights: Weights, factor: LeftFactor) -> LeftFactor:
    """The left factor, scaled so that the pool with the given weights keeps the most mass."""
    scales = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5)
    return max((factor.scaled(scale) for scale in scales), key=lambda scaled: mass_kept(data, weights, scaled))


@torch.no_grad()
def mass_kept(data: PoolData, weights: Weights, factor: LeftFactor | None = None) -> float:
    """The mean `overlap` of the pool's q and the target's p over samples and offsets."""
    usable = data.present.any(0)
    log_q = fused_scores(data, weights, factor)[usable].log_softmax(-1)
    return float(overlap(log_q, data.log_p[usable]).mean())
