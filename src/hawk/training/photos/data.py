"""Photographs as an endless set of pictures: cut-outs at many scales, flipped, turned a little, in changed light."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from hawk.training.captioned import Captioned
from hawk.training.photos.sources import Photo

LONGEST = 1600
"""Photographs are reduced to so many pixels at their longer side."""
HELD_OUT = 0.2
"""The right part of each photograph that training never sees, as a share of its width."""
CLOSE, WIDE = 180, 400
"""Cut-outs with sides below `CLOSE` or above `WIDE` (pixels of the reduced photograph) are said to be so."""
SCALES: dict[str, tuple[str, ...]] = {
    "close": ("a close view of", "close"),
    "middle": ("a photo of", ""),
    "wide": ("a wide view of", "wide"),
}
SMALL_WORDS = ("a", "of", "photo", "view", "close", "wide")
MARGIN = 1.2
"""A cut-out is taken so much larger, to be turned."""
CROP = 64


@dataclass(frozen=True)
class PhotoPictures:
    """Cut-outs of photographs (`Pictures`). `held-out` ones lie in the right part of a photograph, all others left."""

    photos: tuple[Photo, ...]
    rgb: tuple[UInt8[np.ndarray, "h w 3"], ...]
    side: int = 128
    checks: tuple[str, ...] = ("held-out", "taught places")

    @classmethod
    def load(cls, photos: Sequence[Photo]) -> PhotoPictures:
        """Read the photographs, reduced to `LONGEST`."""
        return cls(tuple(photos), tuple(_reduced(photo.path) for photo in photos))

    @property
    def vocabulary(self) -> Mapping[str, str]:
        subjects = {word for photo in self.photos for word in photo.subject.split()}
        return {word: word for word in sorted({*SMALL_WORDS, *subjects})}

    @property
    def examples(self) -> Sequence[str]:
        return [photo.subject for photo in self.photos]

    def batch(self, split: str, places: Sequence[int], seed: int = 0) -> Captioned:
        made = [self._picture(split, place, seed) for place in places]
        return Captioned(np.stack([rgb for rgb, _ in made]), tuple(caption for _, caption in made))

    def crops(self, places: Sequence[int], seed: int = 0) -> UInt8[np.ndarray, "b crop crop 3"]:
        cut = []
        for place, picture in zip(places, self.batch("train", places, seed).rgb, strict=True):
            top, left = np.random.default_rng((seed, place, 3)).integers(0, (self.side - CROP) // 8 + 1, 2) * 8
            cut.append(picture[top : top + CROP, left : left + CROP])
        return np.stack(cut)

    def _picture(self, split: str, place: int, seed: int) -> tuple[UInt8[np.ndarray, "side side 3"], str]:
        rng = np.random.default_rng((seed, place, zlib.crc32(split.encode())))
        index = int(rng.integers(len(self.photos)))
        zone = _zone(self.rgb[index], held_out=split == "held-out")
        widest = min(zone.shape[:2]) / MARGIN
        side = float(np.exp(rng.uniform(np.log(min(100.0, widest)), np.log(widest))))
        scale = "close" if side < CLOSE else "wide" if side > WIDE else "middle"
        words = f"{SCALES[scale][rng.integers(2)]} {self.photos[index].subject}"
        return _relit(self._cut(zone, side, rng), rng), words.strip()

    def _cut(
        self, zone: UInt8[np.ndarray, "h w 3"], side: float, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "side side 3"]:
        """A cut-out of `side` pixels at a random place, turned by up to six degrees, half of them flipped."""
        room = int(side * MARGIN)
        top, left = (int(rng.integers(0, length - room + 1)) for length in zone.shape[:2])
        large = round(self.side * MARGIN)
        image = Image.fromarray(zone[top : top + room, left : left + room])
        image = image.resize((large, large), Image.Resampling.LANCZOS)
        image = image.rotate(float(rng.uniform(-6, 6)), Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        edge = (large - self.side) // 2
        return np.asarray(image)[edge : edge + self.side, edge : edge + self.side]


def _zone(rgb: UInt8[np.ndarray, "h w 3"], held_out: bool) -> UInt8[np.ndarray, "h z 3"]:
    border = round(rgb.shape[1] * (1 - HELD_OUT))
    return rgb[:, border:] if held_out else rgb[:, :border]


def _relit(rgb: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """The picture in other light: each channel brighter or darker by up to a tenth, all by up to a fifth."""
    gain = rng.uniform(0.9, 1.1, 3) * rng.uniform(0.8, 1.2)
    return np.clip(rgb * gain, 0, 255).astype(np.uint8)


def _reduced(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    with Image.open(path) as image:
        image.draft("RGB", (LONGEST, LONGEST))  # JPEG decodes large photographs at a half or a quarter
        reduced = image.convert("RGB")
    reduced.thumbnail((LONGEST, LONGEST))
    return np.asarray(reduced)
