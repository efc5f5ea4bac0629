"""`hawk train drafter`: fit draft heads on tokens the target itself drew, then fit and measure the pool.

No images are needed: the target draws grids for prompts (on-policy), its guided distribution is the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from hawk.decode import NoDrafter, Target, generate
from hawk.drafters.heads import DraftHeads, HeadsConfig
from hawk.drafters.left import LeftFactor
from hawk.drafters.pool import LEAST_LOG_Q, FusedSettings, pattern_key
from hawk.files import save_tensors
from hawk.grid import Grid
from hawk.sampling import GumbelNoise, SamplingParams, guide, log_probs
from hawk.targets.llamagen import CaptionPrompt, LlamaGen
from hawk.training.loop import FitConfig, Fitted, fit

Prompts = Callable[[int, int], Any]
"""(start, count) -> the target's prompt for that many rows; a function of the numbers alone."""


@dataclass(frozen=True)
class OnPolicy:
    """Grids the target drew, and the guided state before each token: `states[:, i]` predicts token i."""

    tokens: Int[Tensor, "images n"]
    states: Float[Tensor, "images n d"]


def draw_on_policy(
    target: Target, prompts: Prompts, grid: Grid, params: SamplingParams, images: int, out: Path, batch: int = 32
) -> Int[Tensor, "images n"]:
    """Let the target draw `images` grids, a shard of `batch` at a time; finished shards under `out` are kept."""
    out.mkdir(parents=True, exist_ok=True)
    shards = []
    for start in tqdm(range(0, images, batch), desc="on-policy grids", unit="batch"):
        path = out / f"tokens-{start:06d}.safetensors"
        if not path.is_file():
            seeds = list(range(start, start + batch))
            drawn = generate(target, prompts(start, batch), grid, params, NoDrafter(), seeds).tokens
            save_tensors(path, {"tokens": drawn.to(torch.int32)})
        shards.append(load_file(path)["tokens"].long())
    return torch.cat(shards)[:images]


@torch.no_grad()
def guided_states(
    target: LlamaGen, tokens: Int[Tensor, "b n"], prompt: CaptionPrompt, grid: Grid, params: SamplingParams
) -> Float[Tensor, "b n d"]:
    """Guided last hidden state before each token, teacher-forced."""
    cond = target(tokens, prompt.features, prompt.mask, grid)
    if not params.guided:
        return cond
    uncond = target(tokens, target.null_features(prompt.features), prompt.mask, grid)
    return guide(cond, uncond, params.cfg_scale)


class HeadsLoss(nn.Module):
    """Cross-entropy of every head against the target's guided, filtered distribution at the position it predicts."""

    def __init__(self, heads: DraftHeads, output: nn.Module, grid: Grid, params: SamplingParams) -> None:
        super().__init__()
        self.heads, self.grid, self.params = heads, grid, params
        self._output = (output,)  # in a tuple: frozen, and none of our parameters

    def forward(self, states: Float[Tensor, "b n d"]) -> dict[str, Tensor]:
        """Mean nats of each head, and their mean as `loss`."""
        output = self._output[0]
        teacher = log_probs(output(states), self.params).exp()
        losses = {}
        for name, block, sources, positions in head_pairs(self.heads, self.grid):
            drafted = output(self.heads.draft_state(block, states[:, sources]))
            drafted = log_probs(drafted, SamplingParams(self.params.temperature))  # unfiltered: p's zeros need log q
            losses[name] = -(teacher[:, positions] * drafted).sum(-1).mean()
        return {"loss": torch.stack(list(losses.values())).mean(), **losses}


def head_pairs(heads: DraftHeads, grid: Grid) -> list[tuple[str, nn.Module, slice, slice]]:
    """(name, block, states it reads, positions it predicts) of every head, over a whole grid."""
    pairs = []
    for n, block in enumerate(heads.horizontal, start=1):
        pairs.append((f"horizontal-{n}", block, slice(0, grid.size - n), slice(n, grid.size)))
    for d, block in enumerate(heads.vertical, start=1):
        reach = d * grid.width
        pairs.append((f"vertical-{d}", block, slice(1, grid.size - reach + 1), slice(reach, grid.size)))
    return pairs


def train_heads(
    target: LlamaGen,
    data: OnPolicy,
    grid: Grid,
    params: SamplingParams,
    shape: HeadsConfig,
    config: FitConfig,
    out: Path,
) -> tuple[DraftHeads, Fitted]:
    """Fit heads on on-policy states; the last tenth of the images is held out."""
    torch.manual_seed(config.seed)
    heads = DraftHeads(shape)
    module = HeadsLoss(heads, target.output.requires_grad_(False), grid, params)
    kept = len(data.tokens) * 9 // 10

    def batch_loss(runner: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randint(kept, (config.batch_size,), generator=generator)
        return runner(data.states[chosen].to(config.device))

    def evaluate(runner: nn.Module, step: int) -> dict[str, float]:
        held_out = data.states[kept:][:16].to(config.device)
        return {name: float(value) for name, value in runner(held_out).items()}

    fitted = fit(module, batch_loss, config, out, evaluate)
    module.load_state_dict(fitted.averaged)
    return heads.eval(), fitted


@dataclass(frozen=True)
class PoolData:
    """Drafts against the target at sampled (root, offset): `log_q[source]` and `log_p`, `[samples, offsets, vocab]`.

    `present[source]` marks where a source has a draft; `left` is the left neighbour's token where it counts, else -1.
    """

    log_q: Float[Tensor, "sources samples offsets vocab"]
    present: Tensor
    log_p: Float[Tensor, "samples offsets vocab"]
    left: Int[Tensor, "samples offsets"]


@torch.no_grad()
def pool_data(
    heads: DraftHeads,
    output: nn.Module,
    drawn: OnPolicy,
    grid: Grid,
    params: SamplingParams,
    offsets: int,
    samples: int,
    seed: int,
) -> PoolData:
    """Draw `samples` (image, root position) pairs and collect every source's draft at offsets 1 .. `offsets`."""
    generator = torch.Generator().manual_seed(seed)
    vocab, sources = output(drawn.states[0, :1]).shape[-1], 1 + len(heads.vertical)
    log_q = torch.zeros(sources, samples, offsets, vocab)
    present = torch.zeros(sources, samples, offsets, dtype=torch.bool)
    log_p = torch.zeros(samples, offsets, vocab)
    left = torch.full((samples, offsets), -1)
    for i in range(samples):
        chosen = int(torch.randint(len(drawn.states), (), generator=generator))
        image = drawn.states[chosen]
        root = int(torch.randint(grid.size - offsets, (), generator=generator))
        wanted = torch.arange(root + 1, root + offsets + 1)
        beside = wanted % grid.width > 0
        beside[0] = False  # the sources know the root's token
        left[i, beside] = drawn.tokens[chosen, wanted[beside] - 1]
        log_p[i] = log_probs(output(image[wanted]), params)
        for n, block in enumerate(list(heads.horizontal)[:offsets]):
            log_q[0, i, n] = log_probs(output(heads.draft_state(block, image[root])), params)
            present[0, i, n] = True
        for d, block in enumerate(heads.vertical, start=1):
            above = wanted - d * grid.width
            known = (above >= 0) & (above < root)
            if known.any():
                log_q[d, i, known] = log_probs(output(heads.draft_state(block, image[above[known] + 1])), params)
                present[d, i] = known
    return PoolData(log_q, present, log_p, left)


def fit_weights(data: PoolData, steps: int = 60) -> dict[str, tuple[tuple[float, ...], ...]]:
    """Weights of the log-linear pool by pattern and offset: those that keep the most mass, sum of min(p, q)."""
    sources, _, offsets, _ = data.log_q.shape
    table = {}
    for pattern in (c for size in range(1, sources + 1) for c in combinations(range(sources), size)):
        rows = []
        for offset in range(offsets):
            here = data.present[list(pattern), :, offset].all(0)
            if 0 in pattern and not data.present[0, :, offset].any():
                break  # past the horizontal heads' reach
            rows.append(_fit_row(data.log_q[list(pattern), :, offset][:, here], data.log_p[here, offset], steps))
        table[pattern_key(pattern)] = tuple(rows)
    return table


def overlap(log_q: Float[Tensor, "*b vocab"], log_p: Float[Tensor, "*b vocab"]) -> Float[Tensor, "*b"]:
    """Mass kept: the sum over tokens of min(p, q), one less the total variation."""
    return torch.minimum(log_q.exp(), log_p.exp()).sum(-1)


def _fit_row(log_q: Tensor, log_p: Tensor, steps: int) -> tuple[float, ...]:
    """From least cross-entropy on to the largest mass kept: a product fitted to be calibrated is too flat a draft."""
    sources, samples = log_q.shape[:2]
    weights = torch.full((sources,), 1.0 / sources, requires_grad=True)
    if samples < 8:
        return tuple(weights.tolist())
    finite, p = log_q.clamp_min(LEAST_LOG_Q), log_p.exp()
    for lost in (lambda log_f: -(p * log_f).sum(-1), lambda log_f: -overlap(log_f, log_p)):
        optimizer = torch.optim.LBFGS([weights], lr=0.5, max_iter=steps, line_search_fn="strong_wolfe")

        def loss(lost: Callable[[Tensor], Tensor] = lost, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = lost(torch.einsum("s,snv->nv", weights, finite).log_softmax(-1)).mean()
            value.backward()
            return value

        optimizer.step(loss)
    return tuple(round(w, 4) for w in weights.tolist())


@torch.no_grad()
def fused_scores(
    data: PoolData, weights: dict[str, tuple[tuple[float, ...], ...]], factor: LeftFactor | None = None
) -> Float[Tensor, "samples offsets v"]:
    """The pool's log-linear product at every sample (-inf where no source is present)."""
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


class LeftLoss(nn.Module):
    """Cross-entropy of pool and left factor against the target, the factor's tables being linear in its embeddings."""

    def __init__(self, embeddings: Float[Tensor, "vocab d"], outputs: Float[Tensor, "vocab d"], rank: int) -> None:
        super().__init__()
        self.inputs = [table.detach() / table.detach().square().mean().sqrt() for table in (embeddings, outputs)]
        self.left = nn.Linear(embeddings.shape[1], rank, bias=False)
        self.here = nn.Linear(embeddings.shape[1], rank, bias=False)
        self.base = nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.here.weight)

    def tables(self) -> tuple[Float[Tensor, "vocab rank"], Float[Tensor, "vocab rank"]]:
        """The factor's `left` and `here`."""
        return self.left(self.inputs[0]), self.here(self.inputs[1])

    def forward(
        self, fused: Float[Tensor, "n vocab"], log_p: Float[Tensor, "n vocab"], left: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        """Mean nats."""
        before, here = self.tables()
        return -(log_p.exp() * (self.base * fused + before[left] @ here.T).log_softmax(-1)).sum(-1).mean()


def fit_left(
    data: PoolData,
    weights: dict[str, tuple[tuple[float, ...], ...]],
    embeddings: Float[Tensor, "vocab d"],
    outputs: Float[Tensor, "vocab d"],
    rank: int = 16,
    steps: int = 2000,
    seed: int = 0,
) -> LeftFactor:
    """Fit what left neighbours add to a pool of the given weights."""
    torch.manual_seed(seed)
    loss = LeftLoss(embeddings, outputs, rank)
    usable = (data.left >= 0) & data.present.any(0)
    fused, log_p, left = fused_scores(data, weights)[usable], data.log_p[usable], data.left[usable]
    optimizer = torch.optim.AdamW(loss.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in tqdm(range(steps), desc="left neighbours", unit="step"):
        rows = torch.randint(len(left), (min(256, len(left)),))
        optimizer.zero_grad()
        loss(fused[rows], log_p[rows], left[rows]).backward()
        optimizer.step()
    tables = [table.detach().float().contiguous().numpy() for table in loss.tables()]
    return LeftFactor(tables[0], tables[1], float(loss.base.detach()))


@torch.no_grad()
def measure_acceptance(
    data: PoolData,
    weights: dict[str, tuple[tuple[float, ...], ...]],
    seed: int,
    ranks: int = 8,
    factor: LeftFactor | None = None,
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """(edges, rate[bin][rank]): how often the candidate of a rank is the target's token, by the first one's lead."""
    fused = fused_scores(data, weights, factor).flatten(0, 1)
    log_p = data.log_p.flatten(0, 1)
    usable = fused.isfinite().any(-1)
    fused, log_p = fused[usable], log_p[usable]
    noise = GumbelNoise([seed], len(fused), fused.shape[-1], fused).rows(torch.arange(len(fused))[None])[0]
    top = (fused + noise).topk(ranks, dim=-1)
    hit = top.indices == (log_p + noise).argmax(-1, keepdim=True)
    lead = top.values[:, 0] - top.values[:, 1]
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
    data: PoolData, weights: dict[str, tuple[tuple[float, ...], ...]], seed: int, factor: LeftFactor | None = None
) -> dict[str, dict[int, dict[str, float]]]:
    """Of each source, the pool, and the pool that knows its left neighbour, at offsets 1, 2, 4, 8.

    Mass kept is the sum over tokens of min(p, q); `top1` and `top8` are coupled coverage, the chance that the target's
    token, argmax(log p + g), is among the k largest of log q + g.
    """
    fused = fused_scores(data, weights)
    named = {"horizontal": data.log_q[0], "fused": fused}
    named |= {f"vertical-{d}": data.log_q[d] for d in range(1, len(data.log_q))}
    masks = {"horizontal": data.present[0], "fused": data.present.any(0)}
    masks |= {f"vertical-{d}": data.present[d] for d in range(1, len(data.log_q))}
    if factor is not None:
        named["fused, left known"] = fused_scores(data, weights, factor)
        masks["fused, left known"] = data.present.any(0)
    quality: dict[str, dict[int, dict[str, float]]] = {}
    for name, log_q in named.items():
        for offset in (n for n in (1, 2, 4, 8) if n <= log_q.shape[1] and masks[name][:, n - 1].any()):
            o = offset - 1
            here = masks[name][:, o]
            q, log_p = log_q[here, o].log_softmax(-1), data.log_p[here, o]
            noise = GumbelNoise([seed], len(q), q.shape[-1], q).rows(torch.arange(len(q))[None])[0]
            chosen = (log_p + noise).argmax(-1, keepdim=True)
            hit = (q + noise).topk(8, dim=-1).indices == chosen
            quality.setdefault(name, {})[offset] = {
                "mass": float(overlap(q, log_p).mean()),
                "top1": float(hit[:, 0].double().mean()),
                "top8": float(hit.any(-1).double().mean()),
            }
    return quality


@torch.no_grad()
def copy_baselines(
    output: nn.Module, data: OnPolicy, grid: Grid, params: SamplingParams, images: int = 32
) -> dict[str, float]:
    """Mean probability that the target gives to a copy of the left cell and to a copy of the cell above."""
    tokens = data.tokens[:images]
    p = torch.stack([log_probs(output(row), params).exp() for row in data.states[:images]])
    left = p[:, 1:].gather(-1, tokens[:, :-1, None]).mean()
    above = p[:, grid.width :].gather(-1, tokens[:, : -grid.width, None]).mean()
    return {"left": float(left), "above": float(above)}


@dataclass(frozen=True)
class FittedPool:
    """How `hawk` fuses heads, what it knows of left neighbours, and how good its drafts are (`draft_quality`).

    `left` is None where the factor kept no more mass on held-out images.
    """

    settings: FusedSettings
    left: LeftFactor | None
    quality: dict[str, dict[int, dict[str, float]]]


def fit_pool(
    heads: DraftHeads,
    target: LlamaGen,
    drawn: OnPolicy,
    held_out: OnPolicy,
    grid: Grid,
    params: SamplingParams,
    samples: int = 300,
    seed: int = 0,
) -> FittedPool:
    """Fit the pool's weights and left factor; measure its acceptance and its quality on held-out images."""
    window = min(16, grid.size - 1)

    def sampled(images: OnPolicy, part: int, times: int = 1) -> PoolData:
        return pool_data(heads, target.output, images, grid, params, window, samples * times, seed + part)

    weights = fit_weights(sampled(held_out, 0))
    factor = fit_left(sampled(drawn, 1, 4), weights, target.tok_embeddings.weight, target.output.weight)
    unseen = sampled(held_out, 2)
    left = factor if mass_kept(unseen, weights, factor) > mass_kept(unseen, weights) else None
    edges, rate = measure_acceptance(unseen, weights, seed, factor=left)
    quality = draft_quality(sampled(held_out, 3), weights, seed, factor)
    return FittedPool(FusedSettings(weights, edges, rate, window=window), left, quality)


@torch.no_grad()
def mass_kept(
    data: PoolData, weights: dict[str, tuple[tuple[float, ...], ...]], factor: LeftFactor | None = None
) -> float:
    """Mean `overlap` of the pool and the target over samples and offsets."""
    usable = data.present.any(0)
    log_q = fused_scores(data, weights, factor)[usable].log_softmax(-1)
    return float(overlap(log_q, data.log_p[usable]).mean())


def preset() -> FitConfig:
    """The bundled recipe."""
    return FitConfig(
        steps=1600, batch_size=6, lr=1.5e-3, weight_decay=0.01, warmup=50, ema=0.99, evaluate_every=200, save_every=100
    )
