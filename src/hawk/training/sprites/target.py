"""`hawk train target`: fit the bundled text-to-image transformer on captioned sprites."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hawk.decoding.grid import Grid
from hawk.models.llamagen.target import LlamaGen, LlamaGenConfig
from hawk.models.llamagen.words import StaticTextEncoder
from hawk.models.tokenizers.fsq import ImageTokenizer
from hawk.training.loop import FitConfig, Fitted, fit
from hawk.training.sprites.data import SpriteSet, compose, load_sprites
from hawk.training.sprites.tokenizer import to_tensor
from hawk.training.world import World


@dataclass(frozen=True)
class CaptionedTokens:
    """A training batch: image tokens in raster order with caption features and their padding mask."""

    tokens: Int[Tensor, "b n"]
    features: Float[Tensor, "b t d"]
    mask: Bool[Tensor, "b t"]


@dataclass(frozen=True)
class Dropouts:
    """What is withheld while training the target.

    `caption` replaces whole captions by the null caption (CFG). An image's own tokens soon tell what it shows, and only
    where they are missing must the caption be read: in a share `blind` of images all input tokens are hidden, in a
    share `hazy` a random part of them. `hidden` is ordinary dropout.
    """

    caption: float = 0.1
    hidden: float = 0.0
    blind: float = 0.35
    hazy: float = 0.35


class TeacherForced(nn.Module):
    """The target with its cross-entropy, as one module so that it compiles into one graph."""

    def __init__(self, target: LlamaGen, grid: Grid, caption_dropout: float) -> None:
        super().__init__()
        self.target, self.grid, self.caption_dropout = target, grid, caption_dropout

    def forward(
        self, tokens: Tensor, features: Tensor, mask: Tensor, dropped: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        """Mean negative log-likelihood per token in nats; `dropped` `[b]` marks captions to replace by the null one."""
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
    """Fit a target on the sprites under `data`, tokenised by `tokenizer`; state and tensorboard go to `out`.

    `start` holds weights to begin from in place of fresh ones; `workers` processes compose images ahead of time.
    """
    rates = dropouts or Dropouts()
    train, held_out = load_sprites(data, "train"), load_sprites(data, "held-out")
    torch.manual_seed(config.seed)
    target = LlamaGen(shape, dropout=rates.hidden)
    target.initialize()
    if start is not None:
        target.load_state_dict(start)
    module = TeacherForced(target, target.grid, rates.caption)
    encode = partial(tokenised, tokenizer=tokenizer, text=text, device=config.device)
    checks = [encode(compose_batch(held_out, 32, np.random.default_rng(i))) for i in range(6)]
    world = World.join(config.device)
    own = world.own(config.batch_size)
    batches = Batches(train, own.stop - own.start, config.seed, config.steps, workers, world.rank)

    def batch_loss(runner: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = encode(batches.at(step))
        dropped = torch.rand(config.batch_size, generator=generator)[own] < rates.caption
        seen = seen_tokens(torch.Size((config.batch_size, batch.tokens.shape[1])), rates, generator)[own]
        device = config.device
        return {"loss": runner(batch.tokens, batch.features, batch.mask, dropped.to(device), seen.to(device))}

    def evaluate(runner: nn.Module, step: int) -> dict[str, float]:
        losses = [_held_out_loss(runner, batch, config) for batch in checks]
        conditional, null = (sum(column) / len(losses) for column in zip(*losses, strict=True))
        return {"nll": conditional, "nll_null": null}

    fitted = fit(module, batch_loss, config, out, evaluate)
    module.load_state_dict(fitted.averaged)
    return target.eval(), fitted


def seen_tokens(shape: torch.Size, rates: Dropouts, generator: torch.Generator) -> Bool[Tensor, "b n"]:
    """Which input tokens an image may see: all of them, none (`rates.blind`), or a random part (`rates.hazy`)."""
    fate = torch.rand(shape[0], generator=generator)
    hidden = torch.rand(shape[0], generator=generator).sqrt()  # mostly much of it
    hidden = torch.where(fate < rates.blind + rates.hazy, hidden, 0.0)
    hidden = torch.where(fate < rates.blind, 1.0, hidden)
    return torch.rand(shape, generator=generator) >= hidden[:, None]


def _held_out_loss(runner: nn.Module, batch: CaptionedTokens, config: FitConfig) -> tuple[float, float]:
    """Nats per token with the caption and with the null caption."""
    with torch.autocast(config.device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
        kept, dropped = (
            runner(
                batch.tokens,
                batch.features,
                batch.mask,
                torch.full((len(batch.tokens),), flag, device=batch.tokens.device),
            ).item()
            for flag in (False, True)
        )
    return kept, dropped


@dataclass(frozen=True)
class ComposedBatch:
    """Images uint8 `[b, 128, 128, 3]` and their captions."""

    rgb: NDArray[np.uint8]
    captions: list[str]


def compose_batch(sprites: SpriteSet, size: int, rng: np.random.Generator) -> ComposedBatch:
    """Compose `size` images of sprites drawn by their shares."""
    composed = [compose(sprites, int(i), rng) for i in rng.choice(len(sprites), size=size, p=sprites.shares)]
    return ComposedBatch(np.stack([image.rgb for image in composed]), [image.caption for image in composed])


class Batches(Dataset[ComposedBatch]):
    """The batch of each step, which depends on seed, step and rank alone; composed ahead by `workers` processes."""

    def __init__(self, sprites: SpriteSet, size: int, seed: int, steps: int, workers: int, rank: int = 0) -> None:
        self.sprites, self.size, self.seed, self.steps, self.workers = sprites, size, seed, steps, workers
        self.rank = rank
        self.ahead: Iterator[ComposedBatch] | None = None

    def __getitem__(self, step: int) -> ComposedBatch:
        return compose_batch(self.sprites, self.size, np.random.default_rng((self.seed, step, self.rank)))

    def at(self, step: int) -> ComposedBatch:
        """The batch of a step; steps are asked for in order, from any first one."""
        if not self.workers:
            return self[step]
        if self.ahead is None:
            order = range(step, self.steps)
            self.ahead = iter(DataLoader(self, batch_size=None, sampler=order, num_workers=self.workers))
        return next(self.ahead)


@torch.no_grad()
def tokenised(batch: ComposedBatch, tokenizer: ImageTokenizer, text: StaticTextEncoder, device: str) -> CaptionedTokens:
    """Image tokens and caption features of composed images, on `device`."""
    with torch.autocast(device, torch.bfloat16):
        codes = tokenizer.encode(to_tensor(list(batch.rgb)).to(device))
    encoded = text.encode(batch.captions)
    return CaptionedTokens(codes.flatten(1), encoded.features.to(device), encoded.mask.to(device))


def preset() -> FitConfig:
    """The bundled recipe."""
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


def bundled_shape(tokenizer: ImageTokenizer, text: StaticTextEncoder, image_size: int = 128) -> LlamaGenConfig:
    """The bundled model's shape for a tokenizer and a text encoder."""
    side = image_size // tokenizer.downsample
    base = LlamaGenConfig(dim=384, n_layer=8, n_head=6, vocab_size=tokenizer.codebook_size, caption_keys=True)
    return replace(base, caption_dim=text.width, caption_tokens=text.tokens, height=side, width=side)
