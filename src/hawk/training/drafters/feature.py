"""`hawk train drafter --kind feature`: fit EAGLE's feature drafter on on-policy grids (arXiv 2401.15077)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hawk.decoding.sampling import SamplingParams
from hawk.drafters.feature import FeatureConfig, FeatureDrafter
from hawk.models.protocol import ImageTarget
from hawk.nn.layers import additive_mask
from hawk.training.drafters.grids import OnPolicy
from hawk.training.drafters.teacher import draft_log_q, guided_states, teacher_log_p
from hawk.training.loop import FitConfig, Fitted, fit, mean_measured
from hawk.training.world import World

NOISE = 0.1
"""Half-width of the uniform noise on the input states, so that the drafter bears its own errors (the paper's value)."""

HEAD_DIM = 64
"""Channels of an attention head, where the target's width allows."""


class FeatureLoss(nn.Module):
    """Cross-entropy against the target's guided, filtered p, and smooth L1 between predicted and true states."""

    def __init__(self, drafter: FeatureDrafter, target: ImageTarget, params: SamplingParams) -> None:
        super().__init__()
        self.drafter, self.params = drafter, params
        self._target = (target,)  # in a tuple: frozen, and none of our parameters

    def forward(
        self,
        tokens: Int[Tensor, "b n"],
        hidden: Float[Tensor, "parts b n d"],
        noise: Float[Tensor, "b n1 d"] | None = None,
    ) -> dict[str, Tensor]:
        """Means over all tokens but the last (`hidden[..., i, :]` predicts token i); `noise` is added to the states."""
        target, states = self._target[0], guided_states(hidden, self.params)
        before, after = states[:, :-1], states[:, 1:]
        noisy = before if noise is None else before + noise
        positions = torch.arange(before.shape[1], device=tokens.device)[None]
        visible = positions[..., None] >= positions[:, None]
        predicted, _ = self.drafter(
            target.embed(tokens[:, :-1]), noisy, positions, None, additive_mask(visible, states.dtype)
        )
        log_q = draft_log_q(target, predicted, self.params)
        p = teacher_log_p(target, hidden[:, :, 1:], self.params).exp()
        nats, distance = -(p * log_q).sum(-1).mean(), F.smooth_l1_loss(predicted.float(), after.float())
        return {"loss": nats + distance, "nats": nats, "distance": distance}


def train_feature(
    target: ImageTarget,
    data: OnPolicy,
    params: SamplingParams,
    shape: FeatureConfig,
    config: FitConfig,
    out: Path,
) -> tuple[FeatureDrafter, Fitted]:
    """Fit on the grids of a frozen target; the last tenth of the images is held out."""
    torch.manual_seed(config.seed)
    drafter = FeatureDrafter(shape)
    module = FeatureLoss(drafter, target, params)
    own = World.join(config.device).own(config.batch_size)

    def forced(images: Int[Tensor, " b"]) -> tuple[Tensor, Tensor]:
        return data.tokens[images].to(config.device), data.hidden(images)

    def batch_loss(runner: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        images = torch.randint(data.kept, (config.batch_size,), generator=generator)[own]
        seeds = torch.randint(1 << 62, (config.batch_size,), generator=generator)[own]
        tokens, hidden = forced(images)
        noise = torch.stack([state_noise(int(seed), hidden.shape[2] - 1, hidden.shape[3]) for seed in seeds])
        return runner(tokens, hidden, noise.to(config.device))

    def evaluate(runner: nn.Module, step: int) -> dict[str, float]:
        parts = data.held_out(32).split(config.batch_size)
        return mean_measured([runner(*forced(part)) for part in parts], [len(part) for part in parts])

    fitted = fit(module, batch_loss, config, out, evaluate)
    module.load_state_dict(fitted.averaged)
    return drafter.eval(), fitted


def state_noise(seed: int, n: int, dim: int) -> Float[Tensor, "n dim"]:
    """Noise on the states of one image, from a seed of its own: the same whichever process trains on it."""
    return NOISE * (2 * torch.rand(n, dim, generator=torch.Generator().manual_seed(seed)) - 1)


def feature_shape(dim: int) -> FeatureConfig:
    """The drafter's layer for a target of width `dim`: heads of `HEAD_DIM` channels, wider where they must be even."""
    heads = max(1, dim // HEAD_DIM)
    while dim % (2 * heads):
        heads -= 1
    return FeatureConfig(dim, heads)
