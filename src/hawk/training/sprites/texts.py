"""The prompts of `hawk train drafter --data`: captions of composed training images of the bundled model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hawk.training.sprites.composition import compose
from hawk.training.sprites.data import load_sprites
from hawk.training.sprites.records import SpriteSet
from hawk.training.texts import texts_sha

FINGERPRINT_CAPTIONS = 64
"""The number of captions whose hash identifies a data set."""


@dataclass(frozen=True)
class SpriteCaptions:
    """Captions of composed training images: every image number, however large, has a caption of its own."""

    sprites: SpriteSet

    @classmethod
    def read(cls, data: Path) -> SpriteCaptions:
        """Read the folder that `hawk data build` wrote."""
        return cls(load_sprites(data, "train"))

    @property
    def fingerprint(self) -> str:
        """A short SHA-256 of the first captions."""
        return texts_sha(self.drawn(0, FINGERPRINT_CAPTIONS))

    def drawn(self, start: int, count: int) -> list[str]:
        """The captions of the images `start`, `start + 1`, ...; a number always has the same caption."""
        return [self.caption(np.random.default_rng((1, i))) for i in range(start, start + count)]

    def caption(self, rng: np.random.Generator) -> str:
        """The caption of an image that is composed with the generator `rng`."""
        return compose(self.sprites, int(rng.choice(len(self.sprites), p=self.sprites.shares)), rng).caption

    def unseen(self, start: int, count: int, images: int) -> list[str]:
        """The captions of the images from `start` on, which no drafter has learned from."""
        return self.drawn(start, count)
