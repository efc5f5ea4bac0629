"""Batches of scenes: pictures with their captions, each a function of seed and number alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from hawk.training.scenes.captions import caption
from hawk.training.scenes.scene import (
    Scene,
    held_out_number,
    render,
    sample_scene,
    scene_rng,
    training_number,
)

Split = Literal["train", "held-out", "held-out pairs"]


@dataclass(frozen=True)
class SceneBatch:
    """Pictures uint8 `[b, side, side, 3]`, their captions, and the scenes they show."""

    rgb: UInt8[np.ndarray, "b side side 3"]
    captions: tuple[str, ...]
    scenes: tuple[Scene, ...]


def scene_batch(split: Split, places: Sequence[int], seed: int = 0, side: int = 128) -> SceneBatch:
    """The scenes at some places of a split's endless row.

    `held-out` scenes have numbers that training leaves out; in `held-out pairs`, figures also have colours that
    training never shows them in.
    """
    number = training_number if split == "train" else held_out_number
    numbers = [number(place) for place in places]
    pairs: Literal["taught", "held-out"] = "held-out" if split == "held-out pairs" else "taught"
    scenes = tuple(sample_scene(seed, n, pairs) for n in numbers)
    captions = tuple(caption(scene, scene_rng(seed, n, 1)) for scene, n in zip(scenes, numbers, strict=True))
    return SceneBatch(np.stack([render(scene, side) for scene in scenes]), captions, scenes)
