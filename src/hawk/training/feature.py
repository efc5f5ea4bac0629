"""`hawk train drafter --kind feature`: fit EAGLE's feature drafter on on-policy grids (arXiv 2401.15077)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hawk.drafters.feature import FeatureConfig, FeatureDrafter
from hawk.grid import Grid
from hawk.layers import additive_mask
from hawk.sampling import SamplingParams, log_probs
from hawk.targets.llamagen import LlamaGen
from hawk.training.drafter import OnPolicy
from hawk.training.loop import FitConfig, Fitted, fit

NOISE = 0.1
"""Half-width of the uniform noise on the input states, so that the drafter bears its own errors (the paper's value)."""


class FeatureLoss(nn.Module):
    """Cross-entropy against the target's guided, filtered p, and smooth L1 between predicted and true states."""

    def __init__(self, drafter: FeatureDrafter, target: LlamaGen, grid: Grid, params: SamplingParams) -> None:
        super().__init__()
        self.drafter, self.grid, self.params = drafter, grid, params
        self._frozen = (target.tok_embeddings, target.output)  # in a tuple: none of our parameters

    def forward(self, tokens: Int[Tensor, "b n"], states: Float[Tensor, "b n d"]) -> dict[str, Tensor]:
        """Means over all tokens but the last (`states[:, i]` predicts token i)."""
        embeddings, output = self._frozen
        before, after = states[:, :-1], states[:, 1:]
        noisy = before + NOISE * (2 * torch.rand_like(before) - 1) if self.training else before
        positions = torch.arange(before.shape[1], device=tokens.device)[None]
        visible = positions[..., None] >= positions[:, None]
        predicted, _ = self.drafter(
            embeddings(tokens[:, :-1]), noisy, positions, None, additive_mask(visible, states.dtype)
        )
        log_q = log_probs(output(predicted), SamplingParams(self.params.temperature))  # unfiltered: p's zeros need it
        p = log_probs(output(after), self.params).exp()
        nats, distance = -(p * log_q).sum(-1).mean(), F.smooth_l1_loss(predicted.float(), after.float())
        return {"loss": nats + distance, "nats": nats, "distance": distance}


def train_feature(
    target: LlamaGen, data: OnPolicy, grid: Grid, params: SamplingParams, config: FitConfig, out: Path
) -> tuple[FeatureDrafter, Fitted]:
    """Fit on on-policy grids; the last tenth of the images is held out."""
    torch.manual_seed(config.seed)
    drafter = FeatureDrafter(FeatureConfig(target.config.dim, target.config.n_head))
    target.tok_embeddings.requires_grad_(False)
    target.output.requires_grad_(False)
    module = FeatureLoss(drafter, target, grid, params)
    kept = data.kept

    def batch_loss(runner: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randint(kept, (config.batch_size,), generator=generator)
        return runner(data.tokens[chosen].to(config.device), data.states[chosen].to(config.device))

    def evaluate(runner: nn.Module, step: int) -> dict[str, float]:
        held_out = (data.tokens[kept:][:32].to(config.device), data.states[kept:][:32].to(config.device))
        return {name: float(value) for name, value in runner(*held_out).items()}

    fitted = fit(module, batch_loss, config, out, evaluate)
    module.load_state_dict(fitted.averaged)
    return drafter.eval(), fitted


def preset() -> FitConfig:
    """The bundled recipe."""
    return FitConfig(steps=1600, batch_size=6, lr=1e-3, weight_decay=0.05, warmup=100, ema=0.99, evaluate_every=400)
