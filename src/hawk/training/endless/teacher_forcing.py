"""The loss that a target is trained with: teacher forcing, with captions and input tokens hidden at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from hawk.decoding.grid import Grid
from hawk.models.llamagen.target import LlamaGen
from hawk.training.captioned import CaptionedTokens


@dataclass(frozen=True)
class Dropouts:
    """What is hidden from the target while it is trained, as shares of the images.

    `caption`: the null caption replaces the caption (for CFG). `blind`: all input tokens are hidden. `hazy`: a random
    part of them is hidden. Without hidden tokens the target would learn to continue an image from its own tokens and to
    ignore the caption. `hidden` is the rate of ordinary dropout.
    """

    caption: float = 0.1
    hidden: float = 0.0
    blind: float = 0.05
    hazy: float = 0.05


class TeacherForced(nn.Module):
    """The target with its cross-entropy loss, in one module so that both compile into one graph."""

    def __init__(self, target: LlamaGen, grid: Grid) -> None:
        super().__init__()
        self.target, self.grid = target, grid

    def forward(
        self, tokens: Tensor, features: Tensor, mask: Tensor, dropped: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        """Mean negative log-likelihood per token in nats.

        `dropped` [b] marks the captions to replace by the null caption. `seen` [b, n] marks the input tokens that the
        target sees; None shows all of them.
        """
        features = torch.where(dropped[:, None, None], self.target.null_features(features), features)
        hidden = self.target(tokens, features, mask, self.grid, seen)
        logits = self.target.output(hidden).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def seen_tokens(shape: torch.Size, rates: Dropouts, generator: torch.Generator) -> Bool[Tensor, "b n"]:
    """Which input tokens the target sees of each image: all, none (a share `blind`), or a random part (`hazy`)."""
    fate = torch.rand(shape[0], generator=generator)
    hidden = torch.rand(shape[0], generator=generator).sqrt()  # large parts are more likely than small ones
    hidden = torch.where(fate < rates.blind + rates.hazy, hidden, 0.0)
    hidden = torch.where(fate < rates.blind, 1.0, hidden)
    return torch.rand(shape, generator=generator) >= hidden[:, None]


def training_loss(
    runner: nn.Module, batch: CaptionedTokens, rates: Dropouts, size: int, own: slice, generator: torch.Generator
) -> Tensor:
    """The loss of this process's part `own` of a batch of `size` images, with captions and tokens hidden at random.

    The choice is drawn for the whole batch, so it does not depend on the number of processes.
    """
    device = batch.tokens.device
    dropped = torch.rand(size, generator=generator)[own] < rates.caption
    seen = seen_tokens(torch.Size((size, batch.tokens.shape[1])), rates, generator)[own]
    hidden = None if bool(seen.all()) else seen.to(device)
    return runner(batch.tokens, batch.features, batch.mask, dropped.to(device), hidden)


def held_out_loss(runner: nn.Module, batch: CaptionedTokens, null: bool) -> float:
    """The loss of a batch in nats per token, with the captions or (`null`) with the null caption."""
    dropped = torch.full((len(batch.tokens),), null, device=batch.tokens.device)
    return float(runner(batch.tokens, batch.features, batch.mask, dropped))
