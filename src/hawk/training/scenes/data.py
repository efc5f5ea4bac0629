"""Scenes as an endless set of pictures: each picture and its caption are a function of seed and number alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from hawk.training.captioned import Captioned
from hawk.training.scenes.captions import MOODS, PATTERN_WORDS, SIZES, caption, vocabulary
from hawk.training.scenes.colours import COLOURS
from hawk.training.scenes.kinds import KINDS
from hawk.training.scenes.scene import (
    Pairs,
    Scene,
    held_out_number,
    render,
    sample_scene,
    scene_rng,
    training_number,
)
from hawk.training.scenes.worn import HATS

CROP = 64
"""Side of the cut-outs that the tokenizer learns from, in pixels."""


@dataclass(frozen=True)
class ScenePictures:
    """Drawn scenes (`Pictures`).

    `held-out` scenes have numbers that training leaves out; in `held-out pairs`, figures also have colours that
    training never shows them in.
    """

    side: int = 128
    checks: tuple[str, ...] = ("held-out", "held-out pairs")

    @property
    def vocabulary(self) -> Mapping[str, str]:
        return vocabulary()

    @property
    def examples(self) -> Sequence[str]:
        return [*KINDS, *COLOURS, *PATTERN_WORDS, *SIZES, *MOODS, *HATS]

    def batch(self, split: str, places: Sequence[int], seed: int = 0) -> Captioned:
        scenes = self.scenes(split, places, seed)
        captions = tuple(self.captions(split, places, seed))
        return Captioned(np.stack([render(scene, self.side) for scene in scenes]), captions)

    def captions(self, split: str, places: Sequence[int], seed: int = 0) -> list[str]:
        """The captions of the pictures at some places of a split's row, which are not drawn for them."""
        scenes = self.scenes(split, places, seed)
        numbers = [_number(split, place) for place in places]
        return [caption(scene, scene_rng(seed, n, 1)) for n, scene in zip(numbers, scenes, strict=True)]

    def scenes(self, split: str, places: Sequence[int], seed: int = 0) -> list[Scene]:
        """What the pictures at some places of a split's row show."""
        pairs: Pairs = "held-out" if split == "held-out pairs" else "taught"
        return [sample_scene(seed, _number(split, place), pairs) for place in places]

    def crops(self, places: Sequence[int], seed: int = 0) -> UInt8[np.ndarray, "b crop crop 3"]:
        """Cut-outs around one figure of each picture: what is hard to encode, at a quarter of the cost."""
        crops = []
        for place, scene in zip(places, self.scenes("train", places, seed), strict=True):
            rng = scene_rng(seed, place, 2)
            figure = scene.figures[rng.integers(len(scene.figures))]
            centre = np.array((figure.y, figure.x)) + rng.uniform(-figure.radius, figure.radius, 2)
            corner = np.clip(centre * self.side - CROP / 2, 0, self.side - CROP)
            top, left = corner.astype(int) // 8 * 8  # token cells stay whole
            crops.append(render(scene, self.side)[top : top + CROP, left : left + CROP])
        return np.stack(crops)


def _number(split: str, place: int) -> int:
    return training_number(place) if split == "train" else held_out_number(place)
