"""The things that the bundled model was taught: their names, and where their pictures lie in feature space."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from hawk.evaluation.features import FeatureExtractor
from hawk.evaluation.scoring import TOGETHER, kept_features
from hawk.training.scenes.scores import FEWEST_PIXELS, border_colour, extent_of, figure_mask, middle_of
from hawk.training.sprites.captions import short_forms
from hawk.training.sprites.composition import compose
from hawk.training.sprites.data import load_sprites
from hawk.training.sprites.records import SPRITE_SIZE, SpriteSet

Pixels = UInt8[np.ndarray, "_ _ 3"]

OBJECT_SIDE = 112
"""Side of the cut-out of an object whose features are compared, in pixels."""
MARGIN = 1.15
"""Side of the part that is cut out, in longest sides of the object."""
NEUTRAL = 128
"""The gray that stands in place of the background, so that only the object decides."""
SCALES = (1.0, 0.75, 0.5)
"""The sizes at which the model was taught objects: the centroid of a picture is the mean of its features at all."""


@dataclass(frozen=True)
class Things:
    """The taught pictures.

    Attributes:
        labels: the things, sorted.
        names: for every name, the labels of the things that it may mean.
        rows: for every taught picture, the number of its thing in `labels`.
        centroids: for every taught picture, its unit vector in feature space; a thing has one for each style.
        pictures: taught pictures with their captions, composed as in training.
    """

    labels: tuple[str, ...]
    names: dict[str, frozenset[str]]
    rows: Int[Tensor, " pictures"]
    centroids: Float[Tensor, "pictures d"]
    pictures: Sequence[tuple[Pixels, str]]

    def ranks(self, features: Float[Tensor, "n d"]) -> Int[Tensor, "n labels"]:
        """The place of every thing in the order of distance from each picture, from 1; the nearest style counts."""
        cosines = normalize(features.double(), dim=1) @ self.centroids.T
        nearest = torch.full((len(features), len(self.labels)), -torch.inf, dtype=torch.float64)
        nearest = nearest.scatter_reduce(1, self.rows.expand(len(features), -1), cosines, "amax")
        return nearest.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1


def read_things(folder: Path, extractor: FeatureExtractor, out: Path) -> Things:
    """The taught things of a folder that `hawk data build` wrote; their features are kept in `out`.

    Raises `HawkError` if the folder holds no complete data set.
    """
    sprites = load_sprites(folder, "train")
    taught = np.flatnonzero(sprites.shares > 0)
    records = [sprites.records[number] for number in taught]
    labels = tuple(sorted({record.name for record in records}))
    names: dict[str, set[str]] = {}
    for record in records:
        for name in (*record.names, *short_forms(record)):
            names.setdefault(name, set()).add(record.name)
    mark = hashlib.sha256(repr((SCALES, OBJECT_SIDE, MARGIN, [record.key for record in records])).encode())
    mark.update((folder / "index.json").read_bytes())
    path = out / "features" / extractor.name / "things.safetensors"
    centroids = kept_features(path, mark.hexdigest(), lambda: _centroids(sprites, taught, extractor))
    return Things(
        labels,
        {name: frozenset(found) for name, found in names.items()},
        torch.tensor([labels.index(record.name) for record in records]),
        centroids.double(),
        [_composed(sprites, int(number)) for number in taught],
    )


def _composed(sprites: SpriteSet, number: int) -> tuple[Pixels, str]:
    made = compose(sprites, number, np.random.default_rng((0, number)))
    return made.rgb, made.caption


def _centroids(sprites: SpriteSet, taught: np.ndarray, extractor: FeatureExtractor) -> Float[Tensor, "pictures d"]:
    """The unit vector of every taught picture, drawn alone."""
    alone = [compose(sprites, int(number), np.random.default_rng(0), augment=False).rgb for number in taught]
    scaled = (cut_out(_reduced(picture, scale))[0] for picture in alone for scale in SCALES)
    found = normalize(object_features(scaled, extractor).double(), dim=1)
    return normalize(found.unflatten(0, (len(taught), len(SCALES))).mean(1), dim=1)


def _reduced(picture: Pixels, scale: float) -> Pixels:
    side = round(SPRITE_SIZE * scale)
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BOX))


def object_features(objects: Iterable[Pixels], extractor: FeatureExtractor) -> Float[Tensor, "n d"]:
    """The features of cut-outs."""
    return torch.cat([extractor.features(batch) for batch in _batched(objects)])


def _batched(objects: Iterable[Pixels]) -> Iterator[UInt8[Tensor, "b 3 side side"]]:
    batch: list[Pixels] = []
    for each in objects:
        batch.append(each)
        if len(batch) == TOGETHER:
            yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
            batch = []
    if batch:
        yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Layout:
    """What the pixels of a picture show: the colour behind, and where the object is.

    `middle` (across, down) and `extent` (the longest side) are in sides of the picture; None where there is no object.
    """

    behind: Float[np.ndarray, " 3"]
    middle: tuple[float, float] | None
    extent: float | None


def cut_out(picture: Pixels) -> tuple[Pixels, Layout]:
    """The object of a picture at a common size on neutral gray, and the picture's layout."""
    height, width = picture.shape[:2]
    behind = border_colour(picture)
    mask = figure_mask(picture, behind)
    rows, columns = np.nonzero(mask)
    if len(rows) < FEWEST_PIXELS:
        return np.full((OBJECT_SIDE, OBJECT_SIDE, 3), NEUTRAL, np.uint8), Layout(behind, None, None)
    x, y = middle_of(columns), middle_of(rows)
    # The few outermost pixels do not count as extent, but belong to the object.
    extent = max(extent_of(rows), extent_of(columns), 1.0) / 0.94
    reach = round(extent * MARGIN)
    canvas = np.full((height + 2 * reach, width + 2 * reach, 3), NEUTRAL, np.uint8)
    canvas[reach:-reach, reach:-reach] = np.where(mask[..., None], picture, NEUTRAL)
    left, top = x + reach - reach / 2, y + reach - reach / 2
    box = (left, top, left + reach, top + reach)
    size = (OBJECT_SIDE, OBJECT_SIDE)
    cut = Image.fromarray(canvas).resize(size, Image.Resampling.BICUBIC, box=box)
    return np.asarray(cut), Layout(behind, (x / width, y / height), extent / max(height, width))
