"""Training a drafter for a model folder with the bundled captions: the glue of `hawk train drafter --kind heads`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from hawk.bundle import HEADS_FOLDER, LoadedModel, load_model, target_fingerprint
from hawk.drafters.heads import HeadsConfig
from hawk.drafters.left import FILE as LEFT_FILE
from hawk.files import write_json
from hawk.targets.llamagen import CaptionPrompt
from hawk.training.data import SpriteSet, compose, load_sprites
from hawk.training.drafter import (
    OnPolicy,
    copy_baselines,
    draw_on_policy,
    fit_pool,
    guided_states,
    train_heads,
)
from hawk.training.loop import FitConfig


def train_bundled_heads(folder: Path, data: Path, out: Path, images: int, config: FitConfig) -> str:
    """Draw grids for training captions, fit heads and pool, write them into the model folder; a line of figures."""
    model = load_model(folder, with_heads=False)  # there may be heads of an earlier target
    grid, params = model.target.grid, model.config.defaults
    sprites = load_sprites(data, "train")

    def prompts(start: int, count: int) -> CaptionPrompt:
        return caption_prompt(model, training_captions(sprites, start, count))

    tokens = draw_on_policy(model.target, prompts, grid, params, images, out / "grids")
    batches = tqdm(range(0, images, 16), desc="states", unit="batch")
    states = torch.cat(
        [
            guided_states(model.target, tokens[i : i + 16], prompts(i, len(tokens[i : i + 16])), grid, params)
            for i in batches
        ]
    )
    onpolicy = OnPolicy(tokens, states)
    shape = HeadsConfig(model.target.config.dim)
    heads, fitted = train_heads(model.target, onpolicy, grid, params, shape, config, out)
    kept = images * 9 // 10
    held_out = OnPolicy(tokens[kept:], states[kept:])
    pool = fit_pool(heads, model.target, OnPolicy(tokens[:kept], states[:kept]), held_out, grid, params)
    heads.save(folder / HEADS_FOLDER, target_fingerprint(folder))
    pool.settings.save(folder / HEADS_FOLDER)
    (folder / HEADS_FOLDER / LEFT_FILE).unlink(missing_ok=True)
    if pool.left is not None:
        pool.left.save(folder / HEADS_FOLDER)
    report = {
        "images": images,
        "minutes": round(fitted.seconds / 60, 1),
        "loss": fitted.scalars,
        "quality": pool.quality,
        "copy": copy_baselines(model.target.output, held_out, grid, params),
        "parameters": sum(p.numel() for p in heads.parameters()),
        "left_factor": "kept" if pool.left is not None else "left out: it kept no more mass on held-out images",
        "target_parameters": sum(p.numel() for p in model.target.parameters()),
    }
    write_json(folder / HEADS_FOLDER / "report.json", report)
    return f"{folder / HEADS_FOLDER}: {pool.quality['fused']}"


def training_captions(sprites: SpriteSet, start: int, count: int) -> list[str]:
    """Captions of `count` composed training images; the same numbers give the same captions."""
    captions = []
    for i in range(start, start + count):
        rng = np.random.default_rng((1, i))
        captions.append(compose(sprites, int(rng.choice(len(sprites), p=sprites.shares)), rng).caption)
    return captions


def caption_prompt(model: LoadedModel, captions: list[str]) -> CaptionPrompt:
    """Caption features of a model's own text encoder."""
    encoded = model.text.encode(captions)
    return CaptionPrompt(encoded.features, encoded.mask)
