"""`hawk train tokenizer`: fit the bundled FSQ tokenizer on composed sprites."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from hawk.files import read_json, write_json
from hawk.models.tokenizers.fsq import FSQConfig, FSQTokenizer
from hawk.training.loop import FitConfig, Fitted, fit, load_averaged, step_generator
from hawk.training.sprites.composition import compose
from hawk.training.sprites.data import load_sprites
from hawk.training.sprites.records import SpriteSet
from hawk.training.world import World

GRADIENT_WEIGHT = 0.25
"""The weight of the error of image gradients, relative to the pixel error."""


def train_tokenizer(
    data: Path, out: Path, config: FitConfig, shape: FSQConfig | None = None
) -> tuple[FSQTokenizer, Fitted]:
    """Fit an `FSQTokenizer` on the sprites under `data`; state and tensorboard go to `out`."""
    train, held_out = load_sprites(data, "train"), load_sprites(data, "held-out")
    torch.manual_seed(config.seed)
    tokenizer = FSQTokenizer(shape)
    tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    world = World.join(config.device)
    part = world.own(config.batch_size)

    def batch_loss(module: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        own = step_generator(config.seed, step, world.rank)  # each process composes different images
        images = image_batch(train, part.stop - part.start, own).to(config.device)
        return reconstruction_loss(module(images), images)

    def evaluate(module: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(module, FSQTokenizer)
        return measure_tokenizer(module, held_out, config.device)

    save_shape(out, tokenizer.config)
    return tokenizer, fit(tokenizer, batch_loss, config, out, evaluate)


def reconstruction_loss(output: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
    """L1 and L2 error of the pixels, plus the L1 error of horizontal and vertical differences at full and half size.

    L1 alone would predict the median, so the many white pixels would win against colours: L2 prevents that. The
    differences keep edges sharp.
    """
    pixel = F.l1_loss(output, images) + 4 * F.mse_loss(output, images)
    edge = _gradient_error(output, images)
    edge = edge + _gradient_error(F.avg_pool2d(output, 2), F.avg_pool2d(images, 2))
    return {"loss": pixel + GRADIENT_WEIGHT * edge, "pixel": pixel.detach(), "edge": edge.detach()}


def _gradient_error(output: Tensor, images: Tensor) -> Tensor:
    error = output - images
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def image_batch(sprites: SpriteSet, size: int, generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """`size` composed training images with values in [-1, 1], channels last in memory."""
    rng = np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator)))
    indices = rng.integers(len(sprites.records), size=size)
    return to_tensor(_stacked([compose(sprites, int(i), rng).rgb for i in indices]))


def _stacked(pictures: list[UInt8[np.ndarray, "h w 3"]]) -> UInt8[Tensor, "b h w 3"]:
    return torch.from_numpy(np.stack(pictures))


def to_tensor(images: UInt8[Tensor, "b h w 3"], device: str = "cpu") -> Float[Tensor, "b 3 h w"]:
    """Convert pictures into a float batch on `device`, with values in [-1, 1]."""
    scaled = images.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return scaled.contiguous(memory_format=torch.channels_last)


def measure_tokenizer(tokenizer: FSQTokenizer, sprites: SpriteSet, device: str) -> dict[str, float]:
    """PSNR (dB) and the used share of the codebook on unaugmented images, and `flat_cell_share`."""
    errors, used = [], torch.zeros(tokenizer.codebook_size, dtype=torch.bool)
    count = min(256, len(sprites.records))
    for start in range(0, count, 32):
        rng = np.random.default_rng(start)
        chunk = range(start, min(start + 32, count))
        images = to_tensor(_stacked([compose(sprites, i, rng, augment=False).rgb for i in chunk]), device)
        codes = tokenizer.encode(images)
        used[codes.flatten().cpu()] = True
        errors.append(((tokenizer.decode(codes) - images) / 2).square().mean((1, 2, 3)))
    psnr = -10 * torch.cat(errors).clamp_min(1e-10).log10().mean()
    return {
        "psnr": float(psnr),
        "codes_used": float(used.float().mean()),
        "flat_cells": flat_cell_share(tokenizer, device),
    }


def flat_cell_share(tokenizer: FSQTokenizer, device: str = "cpu", colours: int = 64, size: int = 128) -> float:
    """The mean share of cells with the image's most frequent code, in images that each show one random colour."""
    rgb = torch.rand(colours, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = tokenizer.encode(rgb.expand(-1, -1, size, size).to(device)).flatten(1)
    return float((codes == codes.mode(1, keepdim=True).values).float().mean())


def preset() -> FitConfig:
    """The recipe of the bundled tokenizer: under ten minutes on two cores with AMX."""
    return FitConfig(steps=2200, batch_size=8, lr=6e-4, weight_decay=0.01, warmup=100, evaluate_every=200)


def save_shape(out: Path, shape: FSQConfig) -> None:
    """Write the tokenizer's shape beside its training state."""
    write_json(out / "tokenizer.json", shape.to_dict())


def load_tokenizer(run: Path) -> FSQTokenizer:
    """The tokenizer, with averaged weights, from a run folder that `hawk train tokenizer` wrote."""
    tokenizer = FSQTokenizer(FSQConfig.from_dict(read_json(run / "tokenizer.json")))
    tokenizer.load_state_dict(load_averaged(run / "state.pt"))
    return tokenizer.eval()
