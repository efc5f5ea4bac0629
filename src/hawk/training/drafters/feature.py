"""`hawk train drafter --kind feature`: fit EAGLE's feature drafter (arXiv 2401.15077) on on-policy grids."""

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
from hawk.training.drafters.teacher import Sampling, TeacherLoss, draft_log_q, guided_states, teacher_log_p
from hawk.training.loop import FitConfig, Fitted, fit, weighted_means
from hawk.training.world import World

NOISE = 0.1
"""Half-width of the uniform noise on the input states, which makes the drafter robust against its own errors.

The value is EAGLE's.
"""

HEAD_DIM = 64
"""Channels of an attention head, if the target's width is a multiple of it."""


class FeatureLoss(TeacherLoss):
    """Cross-entropy against p, plus the smooth L1 distance between predicted and true states."""

    def __init__(self, drafter: FeatureDrafter, target: ImageTarget, params: SamplingParams) -> None:
        super().__init__(target, params)
        self.drafter = drafter

    def forward(
        self,
        tokens: Int[Tensor, "b n"],
        hidden: Float[Tensor, "states b n d"],
        noise: Float[Tensor, "b n1 d"] | None = None,
        params: Sampling | None = None,
    ) -> dict[str, Tensor]:
        """Means over all tokens but the last; `noise` is added to the states that the drafter reads.

        `hidden[..., i, :]` is the state before token i. `params` are the settings of the images, where they differ from
        those of the module.
        """
        params = params or self.params
        states = guided_states(hidden, params)
        before, after = states[:, :-1], states[:, 1:]
        noisy = before if noise is None else before + noise
        positions = torch.arange(before.shape[1], device=tokens.device)[None]
        visible = positions[..., None] >= positions[:, None]
        predicted, _ = self.drafter(
            self.target.embed(tokens[:, :-1]), noisy, positions, None, additive_mask(visible, states.dtype)
        )
        log_q = draft_log_q(self.target, predicted, params)
        p = teacher_log_p(self.target, hidden[:, :, 1:], params).exp()
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
    """Fit a feature drafter on the grids of a frozen target; the last tenth of the images is held out."""
    torch.manual_seed(config.seed)
    drafter = FeatureDrafter(shape)
    module = FeatureLoss(drafter, target, params)
    own = World.join(config.device).own(config.batch_size)

    def tokens_and_states(images: Int[Tensor, " b"]) -> tuple[Tensor, Tensor]:
        return data.tokens[images].to(config.device), data.hidden(images)

    def batch_loss(runner: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        images = torch.randint(data.kept, (config.batch_size,), generator=generator)[own]
        seeds = torch.randint(1 << 62, (config.batch_size,), generator=generator)[own]
        tokens, hidden = tokens_and_states(images)
        noise = torch.stack([state_noise(int(seed), hidden.shape[2] - 1, hidden.shape[3]) for seed in seeds])
        return runner(tokens, hidden, noise.to(config.device), data.sampling(images))

    def evaluate(runner: nn.Module, step: int) -> dict[str, float]:
        parts = data.held_out(32).split(config.batch_size)
        losses = [runner(*tokens_and_states(part), None, data.sampling(part)) for part in parts]
        return weighted_means(losses, [len(part) for part in parts])

    return drafter, fit(module, batch_loss, config, out, evaluate)


def state_noise(seed: int, n: int, dim: int) -> Float[Tensor, "n dim"]:
    """Uniform noise on the states of one image. It depends on the seed alone, not on the process that trains on it."""
    return NOISE * (2 * torch.rand(n, dim, generator=torch.Generator().manual_seed(seed)) - 1)


def feature_shape(dim: int) -> FeatureConfig:
    """The shape of a drafter for a target of width `dim`.

    Its attention heads have `HEAD_DIM` channels, or more where `dim` does not split into heads of an even width.
    """
    heads = max(1, dim // HEAD_DIM)
    while dim % (2 * heads):
        heads -= 1
    return FeatureConfig(dim, heads)
