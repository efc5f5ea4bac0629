"""`hawk train drafter`: fit draft heads on tokens the target itself drew.

No images are needed: the target draws grids for prompts (on-policy), its guided distribution is the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from hawk.decode import NoDrafter, Target, generate
from hawk.drafters.heads import DraftHeads, HeadsConfig
from hawk.files import save_tensors
from hawk.grid import Grid
from hawk.sampling import SamplingParams, guide, log_probs
from hawk.targets.llamagen import CaptionPrompt, LlamaGen
from hawk.training.loop import FitConfig, Fitted, fit

Prompts = Callable[[int, int], Any]
"""(start, count) -> the target's prompt for that many rows; a function of the numbers alone."""


@dataclass(frozen=True)
class OnPolicy:
    """Grids the target drew, and the guided state before each token: `states[:, i]` predicts token i."""

    tokens: Int[Tensor, "images n"]
    states: Float[Tensor, "images n d"]

    @property
    def kept(self) -> int:
        """Images to learn from; the last tenth is held out."""
        return len(self.tokens) * 9 // 10


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
    kept = data.kept

    def batch_loss(runner: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randint(kept, (config.batch_size,), generator=generator)
        return runner(data.states[chosen].to(config.device))

    def evaluate(runner: nn.Module, step: int) -> dict[str, float]:
        held_out = data.states[kept:][:16].to(config.device)
        return {name: float(value) for name, value in runner(held_out).items()}

    fitted = fit(module, batch_loss, config, out, evaluate)
    module.load_state_dict(fitted.averaged)
    return heads.eval(), fitted


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


def preset() -> FitConfig:
    """The bundled recipe."""
    return FitConfig(
        steps=1600, batch_size=6, lr=1.5e-3, weight_decay=0.01, warmup=50, ema=0.99, evaluate_every=200, save_every=100
    )
