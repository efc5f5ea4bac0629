"""DraftParts: everything that is trained to draft for a target, and the folder that holds it."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hawk.drafters.feature import FeatureDrafter
from hawk.drafters.heads import DraftHeads
from hawk.drafters.left import LeftFactor
from hawk.drafters.settings import HEAD_SOURCES, FusedSettings, depth_of
from hawk.drafters.spatial import SpatialDrafter
from hawk.errors import HawkError
from hawk.nn.packed import pack_linears

POOL = "pool.json"
"""The file of the pool's settings. Heads alone can draft without it; every other part is saved with it."""


@dataclass(frozen=True)
class DraftParts:
    """Draft heads, spatial and feature drafter, left factor, and the settings by which `hawk`'s pool fuses its sources.

    All but `fused` may be None: not trained, or of no use for this target.
    """

    fused: FusedSettings
    heads: DraftHeads | None = None
    spatial: SpatialDrafter | None = None
    left: LeftFactor | None = None
    feature: FeatureDrafter | None = None

    @property
    def modules(self) -> list[nn.Module]:
        """The networks among the parts."""
        return [part for part in (self.heads, self.spatial, self.feature) if part is not None]

    def pack(self, dtype: torch.dtype) -> None:
        """Pack the frozen networks for drafting on a CPU, with their layers' weights in `dtype`.

        The networks are in float32 or in `dtype`; for float16, which holds weights only, they become float32 first.
        """
        for part in self.modules:
            if dtype == torch.float16:
                part.float()
            if isinstance(part, SpatialDrafter):
                part.pack(dtype)
            else:
                pack_linears(part, dtype)


def drafters_mark(parts: DraftParts | None) -> str:
    """The first 16 digits of the sha256 of all drafters' weights; "" for none."""
    if parts is None:
        return ""
    digest = hashlib.sha256()
    for module in parts.modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_parts(folder: Path, dim: int, vocab: int, fingerprint: str, dtype: torch.dtype) -> DraftParts:
    """Read a drafter folder of the target with that fingerprint; `HawkError` for another target's or a damaged one."""
    heads = DraftHeads.load(folder, fingerprint)
    spatial = SpatialDrafter.load(folder, fingerprint)
    feature = FeatureDrafter.load(folder, fingerprint)
    if heads is None and spatial is None:
        raise HawkError(f"no draft heads in {folder}: train them with `hawk train drafter --kind heads`")
    left = LeftFactor.load(folder, vocab)
    if any(part is not None for part in (spatial, left, feature)) and not (folder / POOL).is_file():
        raise HawkError(f"the drafter is damaged: {folder / POOL} is missing: fetch or train it again")
    parts = DraftParts(load_pool(folder, heads), heads, spatial, left, feature)
    for part in parts.modules:
        width = part.config.dim
        if width != dim:
            raise HawkError(f"the drafter in {folder} is {width} wide, the target {dim}")
        part.to(dtype).requires_grad_(False)
    return parts


def load_pool(folder: Path, heads: DraftHeads | None) -> FusedSettings:
    """The settings of `hawk`'s pool from `pool.json`; unfitted ones, and a warning, where there are heads alone."""
    path = folder / POOL
    if not path.is_file():
        if heads is None:
            raise HawkError(f"no {path}: fit the pool with `hawk train drafter`")
        warnings.warn(
            f"{path} is missing, so method hawk drafts with settings that were not fitted and is slower than it could "
            "be: fetch the whole drafter, or train it with `hawk train drafter --kind heads`",
            stacklevel=2,
        )
        return FusedSettings.unfitted(HEAD_SOURCES[: 1 + heads.config.vertical])
    settings = FusedSettings.load(folder)
    ranks = {len(row) for row in settings.rate}
    if len(settings.rate) != len(settings.edges) + 1 or len(ranks) != 1 or 0 in ranks:
        raise HawkError(f"{path}: one more row of rate than edges is needed, all of one length")
    if settings.max_nodes < 1 or settings.window < 1:
        raise HawkError(f"{path}: max_nodes and window must be 1 or more")
    missing = sorted(FusedSettings.unfitted(settings.sources).weights.keys() - settings.weights.keys())
    if missing:
        raise HawkError(f"{path} has no weights for the sources {missing[0]}: train the drafter again")
    for pattern, rows in settings.weights.items():
        if not rows or {len(row) for row in rows} != {len(pattern.split(","))}:
            raise HawkError(f"{path}: the weights of the sources {pattern} must be rows of a number for each source")
    deepest = max(map(depth_of, settings.sources))
    if heads is not None and deepest > heads.config.vertical:
        raise HawkError(f"{path} names vertical-{deepest}, but there are {heads.config.vertical} vertical heads")
    return settings
