"""The content of a data set: the record of each sprite, and the set of all sprites of a split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hawk.training.sprites.tables import read_tables

SPRITE_SIZE = 128

Split = Literal["train", "held-out"]

STYLE_SHARES = {"flat": 1.5, "3d": 1.0}
"""How often the bundled target's training draws each style, relative to the others; it draws no other styles."""


@dataclass(frozen=True)
class SpriteRecord:
    """What one sprite shows and where it comes from.

    `name` is its label, the first of `names`. `dark_background_only` marks a nearly white object, which would be
    invisible on a white background.
    """

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
    """All N sprites of a split: `rgba` is uint8 [N, 128, 128, 4], not premultiplied; `records` has N entries."""

    rgba: NDArray[np.uint8]
    records: tuple[SpriteRecord, ...]

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """The probability with which the bundled target's training draws each sprite: [N], sums to 1.

        That training is short, so it draws only everyday things in two styles. In a set without any of them, all
        sprites are equally likely.
        """
        everyday = read_tables().everyday
        shares = np.array([STYLE_SHARES.get(r.style, 0.0) * (r.name in everyday) for r in self.records])
        return shares / shares.sum() if shares.any() else np.full(len(shares), 1 / len(shares))

    @cached_property
    def by_style(self) -> dict[str, NDArray[np.intp]]:
        """The row numbers of the sprites of each style."""
        styles = np.array([record.style for record in self.records])
        return {str(style): np.flatnonzero(styles == style) for style in np.unique(styles)}
