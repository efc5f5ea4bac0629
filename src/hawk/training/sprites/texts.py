"""The bundled model's own texts: captions of composed training images, for `hawk train drafter --data`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hawk.training.sprites.data import SpriteSet, compose, load_sprites
from hawk.training.texts import texts_sha

TOLD_APART_BY = 64
"""Captions that tell one data set from another."""


@dataclass(frozen=True)
class SpriteCaptions:
    """Captions of composed training images, one for every number without end; all images compose their own."""

    sprites: SpriteSet

    @classmethod
    def read(cls, data: Path) -> SpriteCaptions:
        """From the folder that `hawk data build` wrote."""
        return cls(load_sprites(data, "train"))

    @property
    def fingerprint(self) -> str:
        """A short sha256 of the first captions."""
        return texts_sha(self.drawn(0, TOLD_APART_BY))

    def drawn(self, start: int, count: int) -> list[str]:
        """The same numbers give the same captions."""
        return [self.caption(np.random.default_rng((1, i))) for i in range(start, start + count)]

    def caption(self, rng: np.random.Generator) -> str:
        """Of a composed image."""
        return compose(self.sprites, int(rng.choice(len(self.sprites), p=self.sprites.shares)), rng).caption

    def unseen(self, start: int, count: int, images: int) -> list[str]:
        """Captions go on."""
        return self.drawn(start, count)
