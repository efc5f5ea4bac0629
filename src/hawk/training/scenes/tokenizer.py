"""Fit the bundled FSQ tokenizer on scenes, from fresh weights or from those of another tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hawk.models.tokenizers.fsq import FSQConfig, FSQTokenizer
from hawk.training.loop import FitConfig, Fitted, fit
from hawk.training.scenes.data import Split, scene_batch
from hawk.training.scenes.pause import wait_while_exists
from hawk.training.scenes.scene import scene_rng
from hawk.training.sprites.tokenizer import (
    flat_cell_share,
    reconstruction_loss,
    save_shape,
    to_tensor,
)
from hawk.training.world import World

CROP = 64
"""Side of the cut-outs that the tokenizer learns from, in pixels."""


def fit_scene_tokenizer(
    out: Path,
    config: FitConfig,
    shape: FSQConfig,
    start: FSQTokenizer | None = None,
    decoder_only: bool = False,
    pause: Path | None = None,
) -> tuple[FSQTokenizer, Fitted]:
    """Fit an `FSQTokenizer` on scenes; state and tensorboard go to `out`.

    Args:
        start: a tokenizer of the same widths to go on from; its number of codes may be another.
        decoder_only: leave the encoder as it is, so that codes keep their meaning for a target trained on them.
        pause: training waits while this file exists.
    """
    torch.manual_seed(config.seed)
    tokenizer = FSQTokenizer(shape)
    if start is not None:
        tokenizer.load_state_dict(start.state_dict())
    tokenizer.encoder.requires_grad_(not decoder_only)
    tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    own = World.join(config.device).own(config.batch_size)

    def batch_loss(module: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        wait_while_exists(pause)
        first = step * config.batch_size
        places = range(first + own.start, first + own.stop)
        images = figure_crops(places, config.seed).to(config.device)
        return reconstruction_loss(module(images), images)

    def evaluate(module: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(module, FSQTokenizer)
        return measure_scene_tokenizer(module, config.device)

    save_shape(out, shape)
    fitted = fit(tokenizer, batch_loss, config, out, evaluate)
    return tokenizer, fitted


def scene_images(split: Split, places: range, seed: int = 0) -> Float[Tensor, "b 3 h w"]:
    """Pictures of a split in [-1, 1], channels last in memory."""
    return to_tensor(list(scene_batch(split, places, seed).rgb))


def figure_crops(places: range, seed: int = 0, side: int = CROP) -> Float[Tensor, "b 3 side side"]:
    """Cut-outs of training pictures around one of their figures: what is hard to encode, at a quarter of the cost."""
    batch = scene_batch("train", places, seed)
    crops = []
    for place, picture, scene in zip(places, batch.rgb, batch.scenes, strict=True):
        rng = scene_rng(seed, place, 2)
        figure = scene.figures[rng.integers(len(scene.figures))]
        room = picture.shape[0] - side
        centre = np.array((figure.y, figure.x)) + rng.uniform(-figure.radius, figure.radius, 2)
        top, left = np.clip(centre * picture.shape[0] - side / 2, 0, room).astype(int) // 8 * 8  # cells stay whole
        crops.append(picture[top : top + side, left : left + side])
    return to_tensor(crops)


@torch.no_grad()
def measure_scene_tokenizer(tokenizer: FSQTokenizer, device: str = "cpu", count: int = 96) -> dict[str, float]:
    """On held-out scenes: PSNR in dB, used share of the codebook, entropy of the codes in nats, and flat cells.

    The entropy is that of one code without its neighbours: an upper bound on what a target must learn.
    """
    errors, seen = [], torch.zeros(tokenizer.codebook_size)
    for first in range(0, count, 16):
        images = scene_images("held-out", range(first, min(first + 16, count))).to(device)
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
