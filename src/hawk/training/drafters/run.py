"""The whole run of `hawk train drafter`: draw grids, fit each kind of drafter, fit the pool, write a drafter folder."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hawk.decoding.grid import Grid
from hawk.decoding.recording import Engine, Recordings
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
from hawk.models.loading import DTYPES, engine_named, load_on, load_spread, packed_copy
from hawk.models.protocol import ImageTarget, Model
from hawk.training.drafters.feature import feature_shape, train_feature
from hawk.training.drafters.grids import (
    Drawing,
    OnPolicy,
    SamplingRanges,
    draw_on_policy,
    hidden_states,
    origin_of,
)
from hawk.training.drafters.heads import copy_baselines, train_heads
from hawk.training.drafters.pool import FittedPool, fit_pool
from hawk.training.drafters.recipe import KindRecipe
from hawk.training.drafters.spatial import train_spatial
from hawk.training.drafters.teacher import Prompts
from hawk.training.loop import Fitted
from hawk.training.spread import Spread
from hawk.training.texts import Texts
from hawk.training.world import World

GIGABYTE = 1e9

RECORDED_IMAGES = 32
"""The number of images in each of the three recordings that the pool is fitted and measured on."""


@dataclass(frozen=True)
class Plan:
    """Which kinds of drafters to train, how to fit each of them, and on which grids.

    `images` grids of the shape `grid` are drawn with `params`, `draw_batch` at a time. `cache_gb` (10^9 bytes) is the
    disk space that the target's hidden states on them may take. `sources` are the sources of `hawk`'s pool; None
    stands for the fastest choice. With `ranges` the grids that are drawn together have a temperature and a guidance
    scale of their own, and so have the images that the pool is fitted on.
    """

    kinds: dict[str, KindRecipe]
    images: int
    params: SamplingParams
    grid: Grid
    sources: tuple[str, ...] | None = None
    draw_batch: int = 32
    cache_gb: float = 20.0
    ranges: SamplingRanges | None = None


@dataclass(frozen=True)
class FrozenModel:
    """The model that a drafter is trained for, frozen.

    Drafters learn from the target of `bare`, the model as it is read. `running` is the same target with its weights
    laid out for speed on `device`: it draws the grids, by steps of `engine`, and the pool is measured with it. `spread`
    holds the target's layers, if they are spread over the processes.
    """

    bare: Model
    running: ImageTarget
    device: torch.device
    dtype: str
    engine: Engine = "eager"
    spread: Spread | None = None

    @classmethod
    def load_spread(cls, folder: Path, device: torch.device, dtype: str, engine: str, world: World) -> FrozenModel:
        """Read the model in a folder, and spread the target's layers over the processes of `world`.

        Raises `HawkError` for one process, for an engine that records steps, and as `load_on` does.
        """
        if engine not in ("auto", "eager"):
            raise HawkError(f"with --shard-target no step can be recorded: leave --engine {engine} out")
        if world.size == 1:
            raise HawkError("--shard-target spreads a target over several processes: start the command with torchrun")
        spreads: list[Spread] = []
        bare = load_spread(folder, device, dtype, lambda blocks: spreads.append(Spread.over(blocks, world, device)))
        for module in bare.modules:
            module.requires_grad_(False)
        return cls(bare, bare.target, device, dtype, spread=spreads[0])

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: str, engine: str = "auto") -> FrozenModel:
        """Read the model in a folder, without its drafter; `engine` is as in `HawkPipeline.from_pretrained`.

        Raises `HawkError` for an engine that the device does not have, and as `load_on` does.
        """
        chosen = engine_named(engine, device)
        bare = load_on(folder, device, dtype, None, pack=False, with_drafter=False)
        for module in bare.modules:
            module.requires_grad_(False)
        return cls(bare, packed_copy(bare.target, device, dtype), device, dtype, chosen)

    def running_parts(self, parts: DraftParts) -> DraftParts:
        """A copy of a drafter's parts, laid out as they will run beside the target."""
        copy = deepcopy(parts)
        embedded = self.running.embed(torch.zeros(1, dtype=torch.long, device=self.device))
        for part in copy.modules:
            part.to(self.device, embedded.dtype)  # the dtype of the target's states
            part.eval().requires_grad_(False)
        if self.running is not self.bare.target:
            copy.pack(DTYPES[self.dtype])
        return copy


def train_drafter(frozen: FrozenModel, texts: Texts, plan: Plan, out: Path, world: World | None = None) -> str | None:
    """Fit the planned kinds and the pool, write the drafter folder OUT/drafter, return a line of figures.

    Heads always begin a new drafter, and a spatial drafter does so if the folder does not exist; any other kind is
    added to the drafter in the folder. A feature drafter belongs to the method `eagle` and is no source of the pool, so
    the pool stays as it is. Under torchrun every process calls this function; rank 0 fits the pool and writes, and the
    others return None.
    """
    world = world or World()
    model, params, grid, images = frozen.bare, plan.params, plan.grid, plan.images
    folder = out / "drafter"
    parts = initial_parts(folder, model, tuple(plan.kinds))
    check_sources(plan, parts)

    def prompts(start: int, count: int) -> Condition:
        return model.condition(texts.drawn(start, count), [""] * count, grid)

    def unseen(start: int, count: int) -> Condition:
        return model.condition(texts.unseen(start, count, images), [""] * count, grid)

    origin = origin_of(model.fingerprint, params, grid, texts.fingerprint, plan.draw_batch)
    drawing = Drawing(prompts, grid, params, plan.draw_batch, origin, world, plan.ranges, frozen.spread)
    recordings = Recordings(frozen.engine)
    tokens = draw_on_policy(frozen.running, drawing, images, out / "grids", recordings)
    recordings.clear()  # a GPU needs the memory for training
    budget = plan.cache_gb * GIGABYTE
    states = hidden_states(model.target, tokens, drawing, out / "states", budget)
    data = OnPolicy(tokens, states, drawing.settings(images))
    fits: dict[str, Fitted] = {}
    for kind, recipe in plan.kinds.items():
        parts, fits[kind] = fitted_part(kind, recipe, parts, model.target, data, plan, out / kind)
    line = write_drafter(folder, frozen, parts, fits, plan, data, unseen) if world.first else None
    if frozen.spread is not None:
        frozen.spread.rest()  # rank 0 draws with the target, to fit the pool
    return line


def write_drafter(
    folder: Path,
    frozen: FrozenModel,
    parts: DraftParts,
    fits: dict[str, Fitted],
    plan: Plan,
    data: OnPolicy,
    unseen: Prompts,
) -> str:
    """Fit the pool where the fitted kinds are sources of it, write the drafter folder, return a line of figures."""
    model = frozen.bare
    losses = {kind: fitted.scalars for kind, fitted in fits.items()}
    if plan.kinds.keys() == {"feature"}:
        save_parts(folder, parts, model.fingerprint)
        return f"{folder}: {losses}"
    pool = fitted_pool(frozen, parts, plan, unseen)
    report: dict[str, Any] = {
        "images": plan.images,
        "minutes": {kind: round(fitted.seconds / 60, 1) for kind, fitted in fits.items()},
        "loss": losses,
        "quality": pool.quality,
        "copy": copy_baselines(model.target, data, plan.grid, plan.params),
        "parameters": sum(p.numel() for module in parts.modules for p in module.parameters()),
        "target_parameters": model.target.parameter_count,
    }
    save_parts(folder, replace(parts, fused=pool.settings, left=pool.left), model.fingerprint)
    write_json(folder / "report.json", report)
    write_bytes(folder / "README.md", drafter_card(model, plan, pool).encode())
    return f"{folder}: {pool.quality['fused']}"


def initial_parts(folder: Path, model: Model, kinds: tuple[str, ...]) -> DraftParts:
    """The drafter to which the new kinds are added: an empty one, or the one in the folder.

    Raises `HawkError` if the folder's drafter is for another target, or if there is none to add a feature drafter to.
    """
    if "heads" in kinds or ("spatial" in kinds and not folder.is_dir()):
        return DraftParts(FusedSettings.unfitted())
    if not folder.is_dir():
        raise HawkError(f"a feature drafter is added to heads or a spatial drafter; there are none in {folder}")
    target = model.target
    return load_parts(folder, target.hidden_size, target.vocab_size, model.fingerprint, torch.float32)


def check_sources(plan: Plan, parts: DraftParts) -> None:
    """Raise `HawkError` if the plan names a source that the trained drafter will not have."""
    heads = parts.heads.config if parts.heads else None
    if "heads" in plan.kinds:
        heads = HeadsConfig(1, **plan.kinds["heads"].shape)
    available = pool_sources(heads, "spatial" in plan.kinds or parts.spatial is not None)
    unknown = [name for name in plan.sources or () if name not in available]
    if unknown:
        raise HawkError(f"unknown source {unknown[0]!r}: choose from {', '.join(available)}, or train its kind")


def fitted_part(
    kind: str, recipe: KindRecipe, parts: DraftParts, target: ImageTarget, data: OnPolicy, plan: Plan, out: Path
) -> tuple[DraftParts, Fitted]:
    """The parts with a newly fitted drafter of one kind, and how its fit went."""
    dim = target.hidden_size
    if kind == "heads":
        heads = HeadsConfig(dim, **recipe.shape)
        trained, fitted = train_heads(target, data, plan.grid, plan.params, heads, recipe.fit, out)
        return replace(parts, heads=trained), fitted
    if kind == "spatial":
        shape = SpatialConfig(dim, **recipe.shape)
        result = train_spatial(target, data, plan.grid, plan.params, shape, recipe.fit, out)
        return replace(parts, spatial=result.drafter, left=result.left), result.fitted
    layer = replace(feature_shape(dim), **recipe.shape)
    feature, fitted = train_feature(target, data, plan.params, layer, recipe.fit, out)
    return replace(parts, feature=feature), fitted


def fitted_pool(frozen: FrozenModel, parts: DraftParts, plan: Plan, unseen: Prompts) -> FittedPool:
    """`hawk`'s pool over the trained parts, fitted and measured as it will run, on the images of `unseen`.

    If the plan names no sources, two pools are fitted: the target's stale guesses alone, and the stale guesses with all
    trained sources. The faster one is returned.
    """
    running, target = frozen.running_parts(parts), frozen.running
    images = min(RECORDED_IMAGES, plan.draw_batch)

    def fitted(sources: tuple[str, ...]) -> FittedPool:
        named = [source_named(name, running, target) for name in sources]
        left = parts.left if "spatial" in sources else None  # it is trained with the spatial drafter
        unfitted = FusedPool(named, target.draft_head, FusedSettings.unfitted(sources), left)
        first, ranges = plan.images, plan.ranges
        return fit_pool(target, unfitted, unseen, plan.grid, plan.params, first, images, ranges=ranges)

    trained = pool_sources(parts.heads.config if parts.heads else None, parts.spatial is not None)
    candidates = [plan.sources] if plan.sources else [JACOBI, trained]
    return min((fitted(sources) for sources in candidates), key=lambda pool: pool.seconds)


def pool_sources(heads: HeadsConfig | None, with_spatial: bool) -> tuple[str, ...]:
    """All sources of a pool: those of the draft heads, if any, the spatial drafter, and the target's stale guesses."""
    head_sources = ("horizontal", *(f"vertical-{d + 1}" for d in range(heads.vertical))) if heads else ()
    return (*head_sources, *(("spatial",) if with_spatial else ()), *JACOBI)


def save_parts(folder: Path, parts: DraftParts, fingerprint: str) -> None:
    """Write a drafter folder, and remove the files of parts that an earlier drafter had and this one does not have."""
    optional = {heads_files.NAME: parts.heads, spatial.NAME: parts.spatial, feature_files.NAME: parts.feature}
    missing = [file for name, part in optional.items() if part is None for file in files_of(name)]
    for file in (*missing, *([] if parts.left else [left.FILE])):
        (folder / file).unlink(missing_ok=True)
    for part in (parts.heads, parts.spatial, parts.feature):
        if part is not None:
            part.save(folder, fingerprint)
    if parts.left is not None:
        parts.left.save(folder)
    parts.fused.save(folder)


def drafter_card(model: Model, plan: Plan, pool: FittedPool) -> str:
    """The README.md of a drafter folder, which the hub shows as its card."""
    rows = "".join(
        f"| {offset} | {quality['mass']:.3f} | {quality['top1']:.3f} | {quality['top8']:.3f} |\n"
        for offset, quality in pool.quality["fused"].items()
    )
    params, ranges = plan.params, plan.ranges or SamplingRanges()
    cfg_scale = between(ranges.cfg_scales, params.cfg_scale)
    temperature = between(ranges.temperatures, params.temperature)
    return f"""---
library_name: hawk
base_model: {model.name}
---

# A drafter for {model.name}

This drafter makes {model.name} faster without changing what it draws. It fits only the target with the fingerprint
`{model.fingerprint}` (of its config and output head); Hawk refuses it for any other target.

```python
from hawk import HawkPipeline

pipe = HawkPipeline.from_pretrained("{model.name}", drafter="PATH_OR_ID_OF_THIS_FOLDER")
image = pipe("a red apple").images[0]
```

Kinds: {", ".join(plan.kinds)}; sources of `hawk`'s pool: {", ".join(pool.settings.sources)}. It was trained on
{plan.images} grids of {plan.grid.height}x{plan.grid.width} tokens that the target drew itself (CFG {cfg_scale},
temperature {temperature}, top-k {params.top_k}, top-p {params.top_p}). At other settings fewer drafts are
accepted.

The quality of the pool's drafts, measured while decoding, by the number of positions ahead of the frontier: the mass
that draft and target share, and how often the target's token is the first candidate or among the first eight.

| ahead | mass | first | first eight |
|---|---|---|---|
{rows}
Everything measured is in `report.json`.
"""


def between(span: tuple[float, float] | None, value: float) -> str:
    """The words for a range, or for the single value where there is none."""
    return f"{value}" if span is None else f"{span[0]} to {span[1]}"
