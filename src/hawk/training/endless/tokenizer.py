"""Fit the bundled FSQ tokenizer on endless pictures, from fresh weights or from those of another tokenizer."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from hawk.models.tokenizers.fsq import FSQConfig, FSQTokenizer
from hawk.training.ahead import Ahead
from hawk.training.endless.pause import wait_while_exists
from hawk.training.endless.pictures import Pictures
from hawk.training.loop import FitConfig, Fitted, fit
from hawk.training.sprites.tokenizer import (
    flat_cell_share,
    reconstruction_loss,
    save_shape,
    to_tensor,
)
from hawk.training.world import World


def fit_endless_tokenizer(
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
    """
    torch.manual_seed(config.seed)
    tokenizer = FSQTokenizer(shape)
    if start is not None:
        tokenizer.load_state_dict(start.state_dict())
    tokenizer.encoder.requires_grad_(not decoder_only)
    tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    own = World.join(config.device).own(config.batch_size)
    batches = Ahead(partial(_training_crops, pictures, config, own, whole), config.steps, workers)

    def batch_loss(module: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        wait_while_exists(pause)
        images = to_tensor(batches.at(step), config.device)
        return reconstruction_loss(module(images), images)

    def evaluate(module: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(module, FSQTokenizer)
        return measure_endless_tokenizer(module, pictures, config.device)

    save_shape(out, shape)
    fitted = fit(tokenizer, batch_loss, config, out, evaluate)
    return tokenizer, fitted


def _training_crops(
    pictures: Pictures, config: FitConfig, own: slice, whole: bool, step: int
) -> UInt8[Tensor, "b crop crop 3"]:
    """This process's part of the cut-outs, or of the `whole` pictures, of a step."""
    first = step * config.batch_size
    places = range(first + own.start, first + own.stop)
    drawn = pictures.batch("train", places, config.seed).rgb if whole else pictures.crops(places, config.seed)
    return torch.from_numpy(drawn)


@torch.no_grad()
def measure_endless_tokenizer(
    tokenizer: FSQTokenizer, pictures: Pictures, device: str = "cpu", count: int = 96
) -> dict[str, float]:
    """On the first split that is measured: PSNR in dB, used share of the codebook, entropy of the codes, flat cells.

    The entropy, in nats, is that of one code without its neighbours: an upper bound on what a target must learn.
    """
    errors, seen = [], torch.zeros(tokenizer.codebook_size)
    for first in range(0, count, 16):
        batch = pictures.batch(pictures.checks[0], range(first, min(first + 16, count)))
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
