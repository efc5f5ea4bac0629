"""`hawk train tokenizer`: fit the FSQ tokenizer on endless pictures, from fresh weights or from another tokenizer's."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from hawk.errors import HawkError
from hawk.files import read_json, write_bytes
from hawk.models.folder import load_model
from hawk.models.tokenizers.fsq import FSQConfig, FSQTokenizer
from hawk.pictures.contact_sheet import contact_sheet
from hawk.pictures.png import png_bytes
from hawk.training.ahead import Ahead
from hawk.training.captioned import to_tensor
from hawk.training.endless.pause import wait_while_exists
from hawk.training.endless.pictures import Pictures
from hawk.training.loop import FitConfig, Fitted, fit, keep_settings, load_averaged
from hawk.training.world import World

SHAPE_FILE = "tokenizer.json"
"""The tokenizer's shape, in its run folder."""
GRADIENT_WEIGHT = 0.25
"""The weight of the error of image gradients, relative to the pixel error."""
CHECKED = 96
"""Held-out pictures that a tokenizer is measured on."""
SHOWN = 10
"""Pictures in a row of the sheet of reconstructions."""


def preset() -> FitConfig:
    """The recipe of the tokenizer for two CPU cores."""
    return FitConfig(
        steps=2000, batch_size=16, lr=4e-4, weight_decay=0.01, warmup=10, ema=0.98, save_every=20, evaluate_every=500
    )


def fit_tokenizer(
    pictures: Pictures,
    out: Path,
    config: FitConfig,
    shape: FSQConfig,
    start: FSQTokenizer | None = None,
    decoder_only: bool = False,
    pause: Path | None = None,
    workers: int = 0,
    whole: bool = False,
) -> tuple[FSQTokenizer, Fitted]:
    """Fit an `FSQTokenizer` on cut-outs of pictures; state and tensorboard go to `out`.

    Args:
        start: a tokenizer of the same widths to go on from; its number of codes may be another.
        decoder_only: leave the encoder as it is, so that codes keep their meaning for a target trained on them.
        pause: training waits while this file exists.
        workers: processes that draw pictures in advance.
        whole: learn from whole pictures, which a GPU has the time for.

    Raises:
        HawkError: `start` has another shape, or `out` holds a run of another shape or of other settings.
    """
    world = World.join(config.device)
    torch.manual_seed(config.seed)
    tokenizer = FSQTokenizer(shape)
    if start is not None:
        try:
            tokenizer.load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise HawkError(
                f"the tokenizer to start from has {len(start.config.levels)} levels, not {len(shape.levels)}: "
                "give as many levels as it has"
            ) from error
    tokenizer.encoder.requires_grad_(not decoder_only)
    tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    own = world.own(config.batch_size)
    batches = Ahead(partial(training_pixels, pictures, config, own, whole), config.steps, workers)

    def batch_loss(module: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        wait_while_exists(pause)
        images = to_tensor(batches.at(step), config.device)
        return reconstruction_loss(module(images), images)

    def evaluate(module: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(module, FSQTokenizer)
        return measure_tokenizer(module, pictures, config.device)

    keep_settings(out, SHAPE_FILE, shape.to_dict(), world)
    return tokenizer, fit(tokenizer, batch_loss, config, out, evaluate)


def training_pixels(
    pictures: Pictures, config: FitConfig, own: slice, whole: bool, step: int
) -> UInt8[Tensor, "b crop crop 3"]:
    """This process's part of the cut-outs, or of the `whole` pictures, of a step."""
    first = step * config.batch_size
    places = range(first + own.start, first + own.stop)
    drawn = pictures.batch("train", places, config.seed).rgb if whole else pictures.crops(places, config.seed)
    return torch.from_numpy(drawn)


def reconstruction_loss(output: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
    """L1 and L2 error of the pixels, plus the L1 error of horizontal and vertical differences at full and half size.

    L1 alone would predict the median, so that a plain background would win against the colours of small things: L2
    prevents that. The differences keep edges sharp.
    """
    pixel = F.l1_loss(output, images) + 4 * F.mse_loss(output, images)
    edge = _gradient_error(output, images)
    edge = edge + _gradient_error(F.avg_pool2d(output, 2), F.avg_pool2d(images, 2))
    return {"loss": pixel + GRADIENT_WEIGHT * edge, "pixel": pixel.detach(), "edge": edge.detach()}


def _gradient_error(output: Tensor, images: Tensor) -> Tensor:
    error = output - images
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


@torch.no_grad()
def measure_tokenizer(tokenizer: FSQTokenizer, pictures: Pictures, device: str = "cpu") -> dict[str, float]:
    """On the first split that is measured: PSNR in dB, used share of the codebook, entropy of the codes, flat cells.

    The entropy, in nats, is that of one code without its neighbours: an upper bound on what a target must learn.
    """
    errors, seen = [], torch.zeros(tokenizer.codebook_size)
    for first in range(0, CHECKED, 16):
        batch = pictures.batch(pictures.checks[0], range(first, min(first + 16, CHECKED)))
        images = to_tensor(torch.from_numpy(batch.rgb), device)
        codes = tokenizer.encode(images)
        seen += torch.bincount(codes.flatten(), minlength=tokenizer.codebook_size).cpu()
        errors.append(((tokenizer.decode(codes) - images) / 2).square().mean((1, 2, 3)))
    share = seen / seen.sum()
    return {
        "psnr": float(-10 * torch.cat(errors).clamp_min(1e-10).log10().mean()),
        "codes_used": float((seen > 0).float().mean()),
        "code_entropy": float(-(share * share.clamp_min(1e-12).log()).sum()),
        "flat_cells": flat_cell_share(tokenizer, device),
    }


def flat_cell_share(tokenizer: FSQTokenizer, device: str = "cpu", colours: int = 64, size: int = 128) -> float:
    """The mean share of cells with the image's most frequent code, in images that each show one random colour."""
    rgb = torch.rand(colours, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = tokenizer.encode(rgb.expand(-1, -1, size, size).to(device)).flatten(1)
    return float((codes == codes.mode(1, keepdim=True).values).float().mean())


@torch.no_grad()
def save_reconstructions(tokenizer: FSQTokenizer, pictures: Pictures, path: Path, device: str = "cpu") -> None:
    """Write a sheet of held-out pictures with their captions, each above its reconstruction."""
    batch = pictures.batch(pictures.checks[0], range(2 * SHOWN))
    images = to_tensor(torch.from_numpy(batch.rgb), device)
    restored = pixels(tokenizer.decode(tokenizer.encode(images)))
    rows = [row for first in (0, SHOWN) for row in (batch.rgb[first : first + SHOWN], restored[first : first + SHOWN])]
    captions = [caption for first in (0, SHOWN) for caption in (*batch.captions[first : first + SHOWN], *[""] * SHOWN)]
    sheet = contact_sheet([image for row in rows for image in row], captions, columns=SHOWN)
    write_bytes(path, png_bytes(sheet, {}))


def pixels(images: Float[Tensor, "b 3 h w"]) -> UInt8[np.ndarray, "b h w 3"]:
    """The pictures of a batch with values in [-1, 1]."""
    scaled = (images.float().permute(0, 2, 3, 1).cpu() + 1) * 127.5
    return scaled.round().clamp(0, 255).to(torch.uint8).numpy()


def load_tokenizer(folder: Path) -> FSQTokenizer:
    """The tokenizer of a model folder, or of a run folder of `hawk train tokenizer` (there the averaged weights).

    Raises `HawkError` if the folder has no tokenizer that also encodes images.
    """
    if not (folder / "config.json").is_file():
        if not (folder / SHAPE_FILE).is_file():
            raise HawkError(
                f"{folder} holds no tokenizer: give a run folder of `hawk train tokenizer`, or a model folder"
            )
        tokenizer = FSQTokenizer(FSQConfig.from_dict(read_json(folder / SHAPE_FILE)))
        tokenizer.load_state_dict(load_averaged(folder / "state.pt"))
        return tokenizer.eval()
    loaded = load_model(folder, with_heads=False).tokenizer
    if not isinstance(loaded, FSQTokenizer):
        raise HawkError(f"the image tokenizer of {folder} only decodes: training needs one that also encodes images")
    return loaded
