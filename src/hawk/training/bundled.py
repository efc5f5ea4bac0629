"""Training a drafter for a model folder with the bundled captions: the glue of `hawk train drafter`."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hawk.bundle import HEADS_FOLDER, LoadedModel, load_model, target_fingerprint
from hawk.drafters import feature, left, spatial
from hawk.drafters.heads import HeadsConfig
from hawk.drafters.methods import source_named
from hawk.drafters.parts import DraftParts, load_parts
from hawk.drafters.pool import HEAD_SOURCES, FusedPool, FusedSettings
from hawk.drafters.saved import files_of
from hawk.drafters.spatial import SpatialConfig
from hawk.errors import HawkError
from hawk.files import write_json
from hawk.packed import fast_dtype
from hawk.targets.llamagen import CaptionPrompt
from hawk.training.data import SpriteSet, compose, load_sprites
from hawk.training.drafter import OnPolicy, copy_baselines, draw_on_policy, guided_states, train_heads
from hawk.training.feature import train_feature
from hawk.training.loop import FitConfig
from hawk.training.pool import fit_pool
from hawk.training.spatial import train_spatial

KINDS = ("heads", "spatial", "feature")
ALL_SOURCES = (*HEAD_SOURCES, "spatial", "stale")


def train_bundled_drafter(
    folder: Path, data: Path, out: Path, kind: str, images: int, config: FitConfig, sources: tuple[str, ...] | None
) -> str:
    """Draw grids for training captions, fit a drafter and the pool, write them into the folder; a line of figures.

    Heads begin a drafter anew; the others are added to the heads that are there. `sources` are those of `hawk`'s pool,
    by default all that are trained; the feature drafter is `eagle`'s and no source.
    """
    model = load_model(folder, with_heads=False)  # there may be heads of an earlier target
    grid, params = model.target.grid, model.config.defaults
    sprites, place = load_sprites(data, "train"), folder / HEADS_FOLDER

    def prompts(start: int, count: int) -> CaptionPrompt:
        return caption_prompt(model, training_captions(sprites, start, count))

    running = deepcopy(model.target.requires_grad_(False))  # as it will run, drawing and being drafted for
    running.pack(fast_dtype())
    tokens = draw_on_policy(running, prompts, grid, params, images, out / "grids")
    batches = tqdm(range(0, images, 16), desc="states", unit="batch")
    states = torch.cat(
        [
            guided_states(model.target, tokens[i : i + 16], prompts(i, len(tokens[i : i + 16])), grid, params)
            for i in batches
        ]
    )
    drawn, dim = OnPolicy(tokens, states), model.target.config.dim
    if kind == "heads":
        heads, fitted = train_heads(model.target, drawn, grid, params, HeadsConfig(dim), config, out / "heads")
        parts = DraftParts(FusedSettings.unfitted(sources or HEAD_SOURCES), heads)
    elif kind == "feature":
        learnt_feature, fitted = train_feature(model.target, drawn, grid, params, config, out / "feature")
        save_parts(place, replace(heads_in(place, model), feature=learnt_feature), model.fingerprint)
        return f"{place}: {fitted.scalars}"
    else:
        earlier = heads_in(place, model)
        learnt = train_spatial(model.target, drawn, grid, params, SpatialConfig(dim), config, out / "spatial")
        fitted, fused = learnt.fitted, FusedSettings.unfitted(sources or ALL_SOURCES)
        parts = replace(earlier, fused=fused, spatial=learnt.drafter, left=learnt.left)
    drafting = deepcopy(parts)
    drafting.pack(fast_dtype())
    named = [source_named(name, drafting, running) for name in parts.fused.sources]
    unfitted = FusedPool(named, running.draft_head, parts.fused, parts.left)
    pool = fit_pool(running, unfitted, prompts, grid, params, first=images)
    save_parts(place, replace(parts, fused=pool.settings, left=pool.left), target_fingerprint(folder))
    held_out = OnPolicy(tokens[drawn.kept :], states[drawn.kept :])
    report: dict[str, Any] = {
        "images": images,
        "minutes": round(fitted.seconds / 60, 1),
        "loss": fitted.scalars,
        "quality": pool.quality,
        "copy": copy_baselines(model.target.output, held_out, grid, params),
        "parameters": sum(p.numel() for module in parts.modules for p in module.parameters()),
        "target_parameters": sum(p.numel() for p in model.target.parameters()),
    }
    write_json(place / "report.json", report)
    return f"{place}: {pool.quality['fused']}"


def heads_in(place: Path, model: LoadedModel) -> DraftParts:
    """The drafter that another part is added to."""
    if not place.is_dir():
        raise HawkError(f"this drafter is added to draft heads, and there are none in {place}: train them first")
    shape = model.config.target
    return load_parts(place, shape.dim, shape.vocab_size, model.fingerprint, torch.float32)


def save_parts(place: Path, parts: DraftParts, fingerprint: str) -> None:
    """Write a drafter folder; parts of an earlier drafter that this one has not are removed."""
    optional = {spatial.NAME: parts.spatial, feature.NAME: parts.feature}
    missing = [file for name, part in optional.items() if part is None for file in files_of(name)]
    for file in (*missing, *([] if parts.left else [left.FILE])):
        (place / file).unlink(missing_ok=True)
    if parts.heads is not None:
        parts.heads.save(place, fingerprint)
    if parts.spatial is not None:
        parts.spatial.save(place, fingerprint)
    if parts.feature is not None:
        parts.feature.save(place, fingerprint)
    if parts.left is not None:
        parts.left.save(place)
    parts.fused.save(place)


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
