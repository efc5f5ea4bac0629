"""`hawk train target`: fit the bundled text-to-image transformer on captioned sprites."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from hawk.decoding.grid import Grid
from hawk.errors import HawkError
from hawk.models.llamagen.target import LlamaGen, LlamaGenConfig
from hawk.models.llamagen.words import StaticTextEncoder
from hawk.models.tokenizers.fsq import ImageTokenizer
from hawk.training.ahead import Ahead
from hawk.training.captioned import Captioned, CaptionedTokens, Readable, readable, tokenised
from hawk.training.loop import FitConfig, Fitted, fit
from hawk.training.sprites.composition import compose
from hawk.training.sprites.data import load_sprites
from hawk.training.sprites.records import SPRITE_SIZE, SpriteSet
from hawk.training.world import World


@dataclass(frozen=True)
class Dropouts:
    """What is hidden from the target while it is trained, as shares of the images.

    `caption`: the null caption replaces the caption (for CFG). `blind`: all input tokens are hidden. `hazy`: a random
    part of them is hidden. Without hidden tokens the target would learn to continue an image from its own tokens and to
    ignore the caption. `hidden` is the rate of ordinary dropout.
    """

    caption: float = 0.1
    hidden: float = 0.0
    blind: float = 0.35
    hazy: float = 0.35


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


def train_target(
    data: Path,
    tokenizer: ImageTokenizer,
    text: StaticTextEncoder,
    shape: LlamaGenConfig,
    config: FitConfig,
    out: Path,
    dropouts: Dropouts | None = None,
    start: dict[str, Tensor] | None = None,
    workers: int = 0,
) -> tuple[LlamaGen, Fitted]:
    """Fit a target on the sprites under `data`, tokenised by `tokenizer`; `out` holds its state and tensorboard files.

    Training starts from the weights `start`, or from random ones. `workers` processes compose images in advance.
    """
    rates = dropouts or Dropouts()
    train, held_out = load_sprites(data, "train"), load_sprites(data, "held-out")
    torch.manual_seed(config.seed)
    target = LlamaGen(shape, dropout=rates.hidden)
    target.initialize()
    if start is not None:
        try:
            target.load_state_dict(start)
        except RuntimeError as error:
            raise HawkError(
                "the model to start from has another shape: give one with the layers and widths of this target"
            ) from error
    module = TeacherForced(target, target.grid)
    encode = partial(tokenised, tokenizer=tokenizer, device=config.device, half=True)
    checks = [encode(readable(compose_batch(held_out, 32, np.random.default_rng(i)), text)) for i in range(6)]
    world = World.join(config.device)
    own = world.own(config.batch_size)
    make = partial(step_batch, train, text, own.stop - own.start, config.seed, world.rank)
    batches = Ahead(make, config.steps, workers)

    def batch_loss(runner: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": training_loss(runner, encode(batches.at(step)), rates, config.batch_size, own, generator)}

    def evaluate(runner: nn.Module, step: int) -> dict[str, float]:
        with torch.autocast(config.device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            return {
                name: sum(held_out_loss(runner, batch, null) for batch in checks) / len(checks)
                for name, null in (("nll", False), ("nll_null", True))
            }

    return target, fit(module, batch_loss, config, out, evaluate)


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


def compose_batch(sprites: SpriteSet, size: int, rng: np.random.Generator) -> Captioned:
    """Compose `size` images of sprites, drawn with the probabilities `sprites.shares`."""
    composed = [compose(sprites, int(i), rng) for i in rng.choice(len(sprites), size=size, p=sprites.shares)]
    return Captioned(np.stack([image.rgb for image in composed]), tuple(image.caption for image in composed))


def step_batch(sprites: SpriteSet, text: StaticTextEncoder, size: int, seed: int, rank: int, step: int) -> Readable:
    """The batch of a step in the process `rank`."""
    return readable(compose_batch(sprites, size, np.random.default_rng((seed, step, rank))), text)


def preset() -> FitConfig:
    """The recipe of the bundled target."""
    return FitConfig(
        steps=9000,
        batch_size=16,
        lr=1e-3,
        weight_decay=0.1,
        warmup=200,
        ema=0.998,
        muon=True,
        keep_every=1000,
        evaluate_every=250,
    )


def bundled_shape(tokenizer: ImageTokenizer, text: StaticTextEncoder) -> LlamaGenConfig:
    """The shape of the bundled target, for its image tokenizer and its text encoder."""
    side = SPRITE_SIZE // tokenizer.downsample
    base = LlamaGenConfig(dim=384, n_layer=8, n_head=6, vocab_size=tokenizer.codebook_size, caption_keys=True)
    return replace(base, caption_dim=text.width, caption_tokens=text.tokens, height=side, width=side)
