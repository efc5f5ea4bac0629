"""A scene: a background and one or two figures, sampled from a seed and a number, and drawn."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import ImageDraw

from hawk.training.scenes.backgrounds import Background, paint, sample_background
from hawk.training.scenes.colours import COLOURS, Rgb, Shades
from hawk.training.scenes.kinds import KINDS, Kind, Spot
from hawk.training.scenes.pen import Pen
from hawk.training.scenes.worn import FACES, HATS

Size = Literal["small", "medium", "large"]
Across = Literal["left", "centre", "right"]
Along = Literal["top", "centre", "bottom"]
Layout = Literal["one", "row", "column"]
Pairs = Literal["taught", "held-out"]

OVERSAMPLING = 3
"""A picture is drawn this many times larger, then reduced."""
BLOCK = 64
"""Of so many numbers in a row, one is held out."""


@dataclass(frozen=True)
class Figure:
    """One figure. `x`, `y` and `radius` are in sides of the picture, `turn` in radians."""

    kind: str
    colour: str
    rgb: Rgb
    size: Size
    across: Across
    along: Along
    x: float
    y: float
    radius: float
    turn: float
    face: str | None = None
    hat: str | None = None

    @property
    def tilted(self) -> bool:
        """Whether it leans so much that a caption says so."""
        return abs(self.turn) > 0.3


@dataclass(frozen=True)
class Scene:
    """Figures from left to right (`row`) or from top to bottom (`column`), or one alone."""

    background: Background
    layout: Layout
    figures: tuple[Figure, ...]


# --- what is taught ------------------------------------------------------------------------------------------


def pair_is_held_out(kind: str, colour: str) -> bool:
    """Whether training never shows this kind in this colour: one pair in ten, by hash, none of the usual ones."""
    return colour not in KINDS[kind].usual and zlib.crc32(f"{colour} {kind}".encode()) % 10 == 0


def training_number(index: int) -> int:
    """The number of the training scene that comes at place `index`."""
    block, place = divmod(index, BLOCK - 1)
    return block * BLOCK + place + (place >= _held_out_place(block))


def held_out_number(index: int) -> int:
    """The number of the held-out scene that comes at place `index`."""
    return index * BLOCK + _held_out_place(index)


def _held_out_place(block: int) -> int:
    return zlib.crc32(block.to_bytes(8, "little")) % BLOCK


# --- sampling ------------------------------------------------------------------------------------------------


def scene_rng(seed: int, number: int, purpose: int = 0) -> np.random.Generator:
    """All randomness of scene `number` of `seed`; a caption takes purpose 1, so that it never moves the picture's."""
    return np.random.default_rng((seed, number, purpose))


def sample_scene(seed: int, number: int, pairs: Pairs = "taught") -> Scene:
    """Scene `number` of `seed`, a function of the two alone; `held-out` pairs are those that training never shows."""
    rng = scene_rng(seed, number)
    background = sample_background(rng)
    layout: Layout = str(rng.choice(("one", "row", "column"), p=(0.66, 0.24, 0.1)))  # type: ignore[assignment]
    figures = tuple(_figure(rng, background, layout, place, pairs) for place in range(1 if layout == "one" else 2))
    return Scene(background, layout, figures)


CELL = 1 / 16
"""Side of a token's cell, in sides of the picture.

Figures lie on whole cells, in few sizes and exact colours, so that one figure is one pattern of tokens wherever it is:
a model of a few million parameters learns the pattern once, not at each of 64 shifts within a cell.
"""
_RADII: dict[Size, float] = {"small": 3.5, "medium": 5.0, "large": 7.0}
_PAIR_RADIUS = 3.5
"""Radii of a figure that is alone, by its size, and of two figures, in cells."""
_PAIR_REACH = 4.0
"""How far from the picture's middle two figures lie, in cells."""
_LOOSE = 1.2
"""How far a figure may lie from where its scene puts it, in cells."""
_LEAN = 0.45
"""How far a tilted figure leans, in radians."""
_ACROSS: tuple[Across, ...] = ("left", "centre", "right")
_ALONG: tuple[Along, ...] = ("top", "centre", "bottom")


def _figure(rng: np.random.Generator, background: Background, layout: Layout, place: int, pairs: Pairs) -> Figure:
    allowed = [name for name in COLOURS if name != background.colour]
    if pairs == "held-out":
        kind, colour = _held_out_pair(rng, allowed)
    else:
        kind = KINDS[str(rng.choice(list(KINDS)))]
        colour = _colour(rng, kind, allowed)
    size, across, along = _place(rng, layout, place)
    radius = _RADII[size] if layout == "one" else _PAIR_RADIUS
    x, y = (_coordinate(rng, radius, layout, step) for step in (_ACROSS.index(across) - 1, _ALONG.index(along) - 1))
    turn = _LEAN * float(rng.choice((-1, 1))) if rng.random() < 0.08 else 0.0
    face = str(rng.choice(list(FACES))) if kind.face and rng.random() < 0.5 else None
    hat = str(rng.choice(list(HATS))) if kind.hat and rng.random() < 0.25 else None
    return Figure(kind.name, colour, COLOURS[colour], size, across, along, x, y, radius * CELL, turn, face, hat)


def _coordinate(rng: np.random.Generator, radius: float, layout: Layout, step: int) -> float:
    """A figure's middle in one direction, on whole cells; `step` is -1, 0 or 1 from the picture's middle."""
    if layout != "one" and step:
        return (8 + _PAIR_REACH * step) * CELL  # two figures keep their distance
    middle = round(8 + (8 - radius) * step + rng.uniform(-_LOOSE, _LOOSE))
    return float(np.clip(middle, np.ceil(radius), np.floor(16 - radius))) * CELL


def _colour(rng: np.random.Generator, kind: Kind, allowed: list[str]) -> str:
    """A colour that training shows this kind in: one of its usual colours in two cases of five."""
    usual = [name for name in kind.usual if name in allowed]
    if usual and rng.random() < 0.4:
        return str(rng.choice(usual))
    return str(rng.choice([name for name in allowed if not pair_is_held_out(kind.name, name)]))


def _held_out_pair(rng: np.random.Generator, allowed: list[str]) -> tuple[Kind, str]:
    """A kind and a colour that training never shows together."""
    pairs = [(kind, name) for kind in KINDS.values() for name in allowed if pair_is_held_out(kind.name, name)]
    return pairs[rng.integers(len(pairs))]


def _place(rng: np.random.Generator, layout: Layout, place: int) -> tuple[Size, Across, Along]:
    if layout == "row":
        return "medium", ("left", "right")[place], "centre"
    if layout == "column":
        return "medium", "centre", ("top", "bottom")[place]
    size: Size = ("small", "medium", "large")[rng.choice(3, p=(0.25, 0.5, 0.25))]
    if size == "large" or rng.random() < 0.5:
        return size, "centre", "centre"
    return size, _ACROSS[rng.integers(3)], _ALONG[rng.integers(3)]


# --- drawing -------------------------------------------------------------------------------------------------


def render(scene: Scene, side: int = 128) -> UInt8[np.ndarray, "side side 3"]:
    """The picture of a scene, anti-aliased."""
    large = side * OVERSAMPLING
    image = paint(scene.background, large)
    canvas = ImageDraw.Draw(image)
    for figure in scene.figures:
        _draw(figure, Pen(canvas, figure.x * large, figure.y * large, figure.radius * large, figure.turn))
    return np.asarray(image.reduce(OVERSAMPLING))


def _draw(figure: Figure, pen: Pen) -> None:
    kind, shades = KINDS[figure.kind], Shades.of(figure.rgb)
    kind.draw(pen, shades)
    if figure.face and kind.face:
        FACES[figure.face](_at(pen, kind.face), shades)
    if figure.hat and kind.hat:
        HATS[figure.hat](_at(pen, kind.hat), shades)


def _at(pen: Pen, spot: Spot) -> Pen:
    """A pen for what is worn at a spot of the figure."""
    x, y = pen.placed(((spot.x, spot.y),))[0]
    return Pen(pen.canvas, float(x), float(y), pen.radius * spot.size, pen.turn)
