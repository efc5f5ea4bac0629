"""`hawk train drafter`: grids from the target, drafters of several kinds, the pool over them, a drafter folder."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hawk.decoding.grid import Grid
from hawk.decoding.request import Condition
from hawk.decoding.sampling import SamplingParams
from hawk.drafters import feature as feature_files
from hawk.drafters import heads as heads_files
from hawk.drafters import left, spatial
from hawk.drafters.heads import HeadsConfig
from hawk.drafters.methods import JACOBI, source_named
from hawk.drafters.parts import DraftParts, load_parts
from hawk.drafters.pool import FusedPool
from hawk.drafters.saved import files_of
from hawk.drafters.settings import FusedSettings
from hawk.drafters.spatial import SpatialConfig
from hawk.errors import HawkError
from hawk.files import write_bytes, write_json
from hawk.models.loading import DTYPES, load_on, packed_copy
from hawk.models.protocol import ImageTarget, Model
from hawk.training.drafters.feature import feature_shape, train_feature
from hawk.training.drafters.grids import OnPolicy, draw_on_policy, hidden_states, origin_of
from hawk.training.drafters.heads import copy_baselines, train_heads
from hawk.training.drafters.pool import FittedPool, fit_pool
from hawk.training.drafters.recipe import KindRecipe
from hawk.training.drafters.spatial import train_spatial
from hawk.training.drafters.teacher import Prompts
from hawk.training.loop import Fitted
from hawk.training.texts import Texts
from hawk.training.world import World

GIGABYTE = 1e9

MEASURED_TOGETHER = 32
"""Images of one recording of the pool; there are three."""


@dataclass(frozen=True)
class Plan:
    """What to train a drafter of, and on what.

    `kinds` names how each kind is fitted. `sources` are those of `hawk`'s pool, None the fastest. `images`
    grids of `grid` are drawn with `params`, `draw_batch` at a time; `cache_gb` (10^9 bytes) is the disk that the
    target's states on them may take.
    """

    kinds: dict[str, KindRecipe]
    images: int
    params: SamplingParams
    grid: Grid
    sources: tuple[str, ...] | None = None
    draw_batch: int = 32
    cache_gb: float = 20.0


@dataclass(frozen=True)
class Trained:
    """The model, bare (drafters learn from its target), and the target as it runs (it draws, and is drafted for)."""

    bare: Model
    running: ImageTarget
    place: torch.device
    dtype: str

    @classmethod
    def load(cls, folder: Path, place: torch.device, dtype: str) -> Trained:
        """Read it once; frozen."""
        bare = load_on(folder, place, dtype, None, pack=False, with_drafter=False)
        for module in bare.modules:
            module.requires_grad_(False)
        return cls(bare, packed_copy(bare.target, place, dtype), place, dtype)

    def drafting(self, parts: DraftParts) -> DraftParts:
        """Parts as they will run beside it."""
        copy = deepcopy(parts)
        embedded = self.running.embed(torch.zeros(1, dtype=torch.long, device=self.place))
        for part in copy.modules:
            part.to(self.place, embedded.dtype)  # of the target's states
            part.eval().requires_grad_(False)
        if self.running is not self.bare.target:
            copy.pack(DTYPES[self.dtype])
        return copy


def train_drafter(
    trained: Trained, texts: Texts, plan: Plan, out: Path, place: Path | None = None, world: World | None = None
) -> str | None:
    """Fit the planned kinds and the pool and write them to a drafter folder, `place` or OUT/drafter; a line of figures.

    Heads begin a drafter anew, as a spatial drafter does where there is none; else a kind is added to what the folder
    holds. The feature drafter is `eagle`'s and no source, so it leaves the pool as it is. Under torchrun all processes
    call this; the first fits the pool and writes, the others return None.
    """
    world = world or World()
    model, params, grid, images = trained.bare, plan.params, plan.grid, plan.images
    folder = place or out / "drafter"
    parts = begun(folder, model, tuple(plan.kinds))
    check_sources(plan, parts)

    def prompts(start: int, count: int) -> Condition:
        return model.condition(texts.drawn(start, count), [""] * count, grid)

    def unseen(start: int, count: int) -> Condition:
        return model.condition(texts.unseen(start, count, images), [""] * count, grid)

    batch = plan.draw_batch
    origin = origin_of(model.fingerprint, params, grid, texts.fingerprint, batch)
    drawing = (grid, params, images, out / "grids", batch, origin, world)
    tokens = draw_on_policy(trained.running, prompts, *drawing)
    states = (grid, params, out / "states", plan.cache_gb * GIGABYTE, batch, origin, world)
    data = OnPolicy(tokens, hidden_states(model.target, tokens, prompts, *states))
    fits: dict[str, Fitted] = {}
    for kind, recipe in plan.kinds.items():
        parts, fits[kind] = fitted_part(kind, recipe, parts, model.target, data, plan, out / kind)
    if not world.first:
        return None
    losses = {kind: fitted.scalars for kind, fitted in fits.items()}
    if plan.kinds.keys() == {"feature"}:
        save_parts(folder, parts, model.fingerprint)
        return f"{folder}: {losses}"
    pool = fitted_pool(trained, parts, plan, unseen)
    report: dict[str, Any] = {
        "images": images,
        "minutes": {kind: round(fitted.seconds / 60, 1) for kind, fitted in fits.items()},
        "loss": losses,
        "quality": pool.quality,
        "copy": copy_baselines(model.target, data, grid, params),
        "parameters": sum(p.numel() for module in parts.modules for p in module.parameters()),
        "target_parameters": model.target.parameter_count,
    }
    save_parts(folder, replace(parts, fused=pool.settings, left=pool.left), model.fingerprint)
    write_json(folder / "report.json", report)
    if place is None:  # a folder of its own; a model has a card
        write_bytes(folder / "README.md", drafter_card(model, plan, pool).encode())
    return f"{folder}: {pool.quality['fused']}"


def begun(folder: Path, model: Model, kinds: tuple[str, ...]) -> DraftParts:
    """The drafter that kinds are added to: an empty one, or what the folder holds (`HawkError`: of another target)."""
    if "heads" in kinds or ("spatial" in kinds and not folder.is_dir()):
        return DraftParts(FusedSettings.unfitted())
    if not folder.is_dir():
        raise HawkError(f"a feature drafter is added to heads or a spatial drafter; there are none in {folder}")
    target = model.target
    return load_parts(folder, target.hidden_size, target.vocab_size, model.fingerprint, torch.float32)


def check_sources(plan: Plan, parts: DraftParts) -> None:
    """`HawkError` for a source of the plan that there will not be."""
    heads, spatial_part = parts.heads, "spatial" in plan.kinds or parts.spatial is not None
    shape = HeadsConfig(1, **plan.kinds["heads"].shape) if "heads" in plan.kinds else heads and heads.config
    there = (*(head_sources(shape) if shape else ()), *(("spatial",) if spatial_part else ()), "stale")
    unknown = [name for name in plan.sources or () if name not in there]
    if unknown:
        raise HawkError(f"unknown source {unknown[0]!r}: choose from {', '.join(there)}, or train its kind")


def fitted_part(
    kind: str, recipe: KindRecipe, parts: DraftParts, target: ImageTarget, data: OnPolicy, plan: Plan, out: Path
) -> tuple[DraftParts, Fitted]:
    """The parts with one kind trained."""
    dim = target.hidden_size
    if kind == "heads":
        heads = HeadsConfig(dim, **recipe.shape)
        trained, fitted = train_heads(target, data, plan.grid, plan.params, heads, recipe.fit, out)
        return replace(parts, heads=trained), fitted
    if kind == "spatial":
        shape = SpatialConfig(dim, **recipe.shape)
        learnt = train_spatial(target, data, plan.grid, plan.params, shape, recipe.fit, out)
        return replace(parts, spatial=learnt.drafter, left=learnt.left), learnt.fitted
    layer = replace(feature_shape(dim), **recipe.shape)
    feature, fitted = train_feature(target, data, plan.params, layer, recipe.fit, out)
    return replace(parts, feature=feature), fitted


def fitted_pool(trained: Trained, parts: DraftParts, plan: Plan, unseen: Prompts) -> FittedPool:
    """`hawk`'s pool over the trained parts, measured as it will run, on prompts that nothing was drawn for.

    Without sources in the plan: the faster of the target's early guesses alone and of these with all that is trained.
    """
    drafting, target = trained.drafting(parts), trained.running
    together = min(MEASURED_TOGETHER, plan.draw_batch)

    def fitted(sources: tuple[str, ...]) -> FittedPool:
        named = [source_named(name, drafting, target) for name in sources]
        left = parts.left if "spatial" in sources else None  # it is trained beside the spatial drafter
        unfitted = FusedPool(named, target.draft_head, FusedSettings.unfitted(sources), left)
        return fit_pool(target, unfitted, unseen, plan.grid, plan.params, first=plan.images, images=together)

    candidates = [plan.sources] if plan.sources else [JACOBI, sources_of(parts)]
    return min((fitted(sources) for sources in candidates), key=lambda pool: pool.seconds)


def sources_of(parts: DraftParts) -> tuple[str, ...]:
    """Sources of a pool of all that is trained, and the target's early guesses."""
    heads = head_sources(parts.heads.config) if parts.heads else ()
    return (*heads, *(("spatial",) if parts.spatial else ()), *JACOBI)


def head_sources(shape: HeadsConfig) -> tuple[str, ...]:
    """Sources of draft heads."""
    return ("horizontal", *(f"vertical-{d + 1}" for d in range(shape.vertical)))


def save_parts(place: Path, parts: DraftParts, fingerprint: str) -> None:
    """Write a drafter folder; parts of an earlier drafter that this one has not are removed."""
    optional = {heads_files.NAME: parts.heads, spatial.NAME: parts.spatial, feature_files.NAME: parts.feature}
    missing = [file for name, part in optional.items() if part is None for file in files_of(name)]
    for file in (*missing, *([] if parts.left else [left.FILE])):
        (place / file).unlink(missing_ok=True)
    for part in (parts.heads, parts.spatial, parts.feature):
        if part is not None:
            part.save(place, fingerprint)
    if parts.left is not None:
        parts.left.save(place)
    parts.fused.save(place)


def drafter_card(model: Model, plan: Plan, pool: FittedPool) -> str:
    """README.md of a drafter folder, as the hub shows it."""
    rows = "".join(
        f"| {offset} | {said['mass']:.3f} | {said['top1']:.3f} | {said['top8']:.3f} |\n"
        for offset, said in pool.quality["fused"].items()
    )
    params = plan.params
    return f"""---
library_name: hawk
base_model: {model.name}
---

# A drafter for {model.name}

Speeds {model.name} up without changing what it draws. It fits the target of fingerprint `{model.fingerprint}` alone
(config and output head); Hawk refuses it for any other.

```python
from hawk import HawkPipeline

pipe = HawkPipeline.from_pretrained("{model.name}", drafter="PATH_OR_ID_OF_THIS_FOLDER")
image = pipe("a red apple").images[0]
```

Kinds: {", ".join(plan.kinds)}; sources of `hawk`'s pool: {", ".join(pool.settings.sources)}. Trained on {plan.images}
grids of {plan.grid.height}x{plan.grid.width} tokens that the target drew itself at CFG {params.cfg_scale}, temperature
{params.temperature}, top-k {params.top_k}, top-p {params.top_p}; at other settings fewer drafts are kept.

What the pool's drafts are worth, measured while decoding: the mass that draft and target share, and how often the
target's token is its first or among its first eight candidates, by positions ahead.

| ahead | mass | first | first eight |
|---|---|---|---|
{rows}
Everything measured is in `report.json`.
"""
