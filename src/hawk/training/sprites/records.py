"""Sprites: what a data set holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hawk.training.sprites.tables import read_tables

SPRITE_SIZE = 128

Split = Literal["train", "held-out"]

STYLE_SHARES = {"flat": 1.5, "3d": 1.0}  # of the bundled target's training


@dataclass(frozen=True)
class SpriteRecord:
    """What one sprite shows. `dark_background_only`: nearly white, so it would vanish on white."""

    key: str
    name: str
    names: tuple[str, ...]
    tags: tuple[str, ...]
    style: str
    source: str
    licence: str
    split: Split
    dark_background_only: bool = False


@dataclass(frozen=True)
class SpriteSet:
    """All sprites of a split: `rgba` is uint8 [N, 128, 128, 4], not premultiplied; `records` has N."""

    rgba: NDArray[np.uint8]
    records: tuple[SpriteRecord, ...]

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """How often the bundled target's training draws each sprite: [N], sums to 1.

        It sees few pictures, so it spends them on everyday things in two styles; every sprite is drawn alike where
        there is none of those.
        """
        everyday = read_tables().everyday
        shares = np.array([STYLE_SHARES.get(r.style, 0.0) * (r.name in everyday) for r in self.records])
        return shares / shares.sum() if shares.any() else np.full(len(shares), 1 / len(shares))

    @cached_property
    def by_style(self) -> dict[str, NDArray[np.intp]]:
        """Row numbers of each style's sprites."""
        styles = np.array([record.style for record in self.records])
        return {str(style): np.flatnonzero(styles == style) for style in np.unique(styles)}
