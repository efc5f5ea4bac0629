"""Training a drafter for a model folder with the bundled captions: the glue of `hawk train drafter`."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from hawk.bundle import HEADS_FOLDER, LoadedModel, load_model, target_fingerprint
from hawk.drafters import feature as feature_files
from hawk.drafters import left, spatial
from hawk.drafters.heads import HeadsConfig
from hawk.drafters.methods import source_named
from hawk.drafters.parts import DraftParts, load_parts
from hawk.drafters.pool import HEAD_SOURCES, FusedPool, FusedSettings
from hawk.drafters.saved import files_of
from hawk.drafters.spatial import SpatialConfig
from hawk.errors import HawkError
from hawk.files import write_json
from hawk.grid import Grid
from hawk.packed import fast_dtype
from hawk.sampling import SamplingParams
from hawk.targets.llamagen import CaptionPrompt, LlamaGen
from hawk.training.data import SpriteSet, compose, load_sprites
from hawk.training.drafter import OnPolicy, Prompts, copy_baselines, draw_on_policy, guided_states, train_heads
from hawk.training.feature import train_feature
from hawk.training.loop import FitConfig, Fitted
from hawk.training.pool import fit_pool
from hawk.training.spatial import train_spatial

KINDS = ("heads", "spatial", "feature")
ALL_SOURCES = (*HEAD_SOURCES, "spatial", "stale")


def train_bundled_drafter(
    folder: Path,
    data: Path,
    out: Path,
    images: int,
    configs: dict[str, FitConfig],
    sources: tuple[str, ...] | None = None,
) -> str:
    """Draw grids for training captions, fit drafters and the pool, write them into the folder; a line of figures.

    `configs` holds one for each kind to train. Heads begin a drafter anew; the others are added to the heads that are
    there. `sources` are those of `hawk`'s pool, by default all that are trained; the feature drafter is `eagle`'s and
    no source, so it leaves the pool as it is.
    """
    model = load_model(folder, with_heads=False)  # there may be heads of an earlier target
    place, grid, params = folder / HEADS_FOLDER, model.target.grid, model.config.defaults
    earlier = None if "heads" in configs else heads_in(place, model)
    sprites, dim = load_sprites(data, "train"), model.target.config.dim

    def prompts(start: int, count: int) -> CaptionPrompt:
        return caption_prompt(model, training_captions(sprites, start, count))

    running = deepcopy(model.target.requires_grad_(False))  # as it will run, drawing and being drafted for
    running.pack(fast_dtype())
    tokens = draw_on_policy(running, prompts, grid, params, images, out / "grids")
    drawn = OnPolicy(tokens, states_of(model.target, tokens, prompts, grid, params))
    fits: dict[str, Fitted] = {}
    if "heads" in configs:
        fitted_heads = train_heads(model.target, drawn, grid, params, HeadsConfig(dim), configs["heads"], out / "heads")
        heads, fits["heads"] = fitted_heads
        earlier = DraftParts(FusedSettings.unfitted(HEAD_SOURCES), heads)
    assert earlier is not None
    parts = earlier
    if "spatial" in configs:
        shape = SpatialConfig(dim)
        learnt = train_spatial(model.target, drawn, grid, params, shape, configs["spatial"], out / "spatial")
        parts, fits["spatial"] = replace(parts, spatial=learnt.drafter, left=learnt.left), learnt.fitted
    if "feature" in configs:
        feature, fits["feature"] = train_feature(model.target, drawn, grid, params, configs["feature"], out / "feature")
        parts = replace(parts, feature=feature)
    losses = {kind: fitted.scalars for kind, fitted in fits.items()}
    if configs.keys() == {"feature"}:
        save_parts(place, parts, model.fingerprint)
        return f"{place}: {losses}"
    pooled = sources or (ALL_SOURCES if parts.spatial else HEAD_SOURCES)
    drafting = deepcopy(parts)
    drafting.pack(fast_dtype())
    named = [source_named(name, drafting, running) for name in pooled]
    unfitted = FusedPool(named, running.draft_head, FusedSettings.unfitted(pooled), parts.left)
    pool = fit_pool(running, unfitted, prompts, grid, params, first=images)
    save_parts(place, replace(parts, fused=pool.settings, left=pool.left), target_fingerprint(folder))
    held_out = OnPolicy(drawn.tokens[drawn.kept :], drawn.states[drawn.kept :])
    report: dict[str, Any] = {
        "images": images,
        "minutes": {kind: round(fitted.seconds / 60, 1) for kind, fitted in fits.items()},
        "loss": losses,
        "quality": pool.quality,
        "copy": copy_baselines(model.target.output, held_out, grid, params),
        "parameters": sum(p.numel() for module in parts.modules for p in module.parameters()),
        "target_parameters": sum(p.numel() for p in model.target.parameters()),
    }
    write_json(place / "report.json", report)
    return f"{place}: {pool.quality['fused']}"


def states_of(
    target: LlamaGen, tokens: Int[Tensor, "images n"], prompts: Prompts, grid: Grid, params: SamplingParams
) -> Float[Tensor, "images n d"]:
    """Guided states before each token of on-policy grids, 16 images at a time."""
    states = []
    for start in tqdm(range(0, len(tokens), 16), desc="states", unit="batch"):
        part = tokens[start : start + 16]
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_dtype() == torch.bfloat16):
            states.append(guided_states(target, part, prompts(start, len(part)), grid, params).float())
    return torch.cat(states)


def heads_in(place: Path, model: LoadedModel) -> DraftParts:
    """The drafter that another part is added to."""
    if not place.is_dir():
        raise HawkError(f"this drafter is added to draft heads, and there are none in {place}: train them first")
    shape = model.config.target
    return load_parts(place, shape.dim, shape.vocab_size, model.fingerprint, torch.float32)


def save_parts(place: Path, parts: DraftParts, fingerprint: str) -> None:
    """Write a drafter folder; parts of an earlier drafter that this one has not are removed."""
    optional = {spatial.NAME: parts.spatial, feature_files.NAME: parts.feature}
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
