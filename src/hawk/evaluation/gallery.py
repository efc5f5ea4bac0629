"""Every kind of figure in every colour, as pictures show them, to look up what a drawn picture shows.

No network judges: the figure of a picture is cut out at a common size and compared with figures drawn by the code that
draws the training pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from hawk.training.scenes.backgrounds import Background
from hawk.training.scenes.colours import COLOURS
from hawk.training.scenes.kinds import KINDS
from hawk.training.scenes.scene import Figure, Scene, render

Pixels = UInt8[np.ndarray, "_ _ 3"]

CROP = 24
"""Side of the cut-outs that are compared, in pixels."""
APART = 48
"""How far a pixel's colour is from the background's where it belongs to a figure (Euclidean, of 441)."""
SIDE = 64
"""Side of the pictures that the cut-outs are made from, in pixels."""
FEWEST_PIXELS = 10
"""With fewer pixels (of a picture of `SIDE`) that are not the background's, a picture shows no figure."""
UNSEEN = np.full(CROP * CROP * 3, np.inf)
"""The cut-out of a figure in the colour of its background."""
MARGIN = 1.2
"""Side of the part that is cut out, in longest sides of the figure."""


@dataclass(frozen=True)
class Seen:
    """What a picture shows.

    Attributes:
        behind: the name of the background's colour.
        kinds: all kinds of figures, the closest one first; empty where no figure is seen.
        colours: for each kind, the colour in which it is closest.
        middle: the middle of the figure, across and down, in sides of the picture; None where no figure is seen.
        extent: the figure's longest side, in sides of the picture; 0 where no figure is seen.
    """

    behind: str
    kinds: tuple[str, ...] = ()
    colours: Mapping[str, str] = field(default_factory=dict)
    middle: tuple[float, float] | None = None
    extent: float = 0.0


@dataclass(frozen=True)
class Gallery:
    """The cut-outs of every kind in every colour, on each colour of background, drawn when they are first needed."""

    drawn: dict[str, Float[np.ndarray, "kinds colours n"]] = field(default_factory=dict)

    def on(self, behind: str) -> Float[np.ndarray, "kinds colours n"]:
        """The cut-outs on a background of that colour."""
        if behind not in self.drawn:
            rgb = np.array(COLOURS[behind], dtype=float)
            cuts = ([cut_out(drawn_alone(kind, colour, behind), rgb) for colour in COLOURS] for kind in KINDS)
            self.drawn[behind] = np.array([[UNSEEN if cut is None else cut.pixels for cut in row] for row in cuts])
        return self.drawn[behind]

    def see(self, picture: Pixels) -> Seen:
        """What a picture with a plain background shows."""
        behind = border_colour(picture)
        colour, cut = nearest_colour(behind), cut_out(picture, behind)
        if cut is None:
            return Seen(colour)
        distances = np.square(self.on(colour) - cut.pixels).sum(2)
        kinds, colours = list(KINDS), list(COLOURS)
        return Seen(
            colour,
            tuple(kinds[number] for number in distances.min(1).argsort(kind="stable")),
            {kind: colours[closest] for kind, closest in zip(kinds, distances.argmin(1), strict=True)},
            cut.middle,
            cut.extent,
        )


@dataclass(frozen=True)
class CutOut:
    """A figure at a common size and place (`pixels`), and where it was: as `Seen` has it."""

    pixels: Float[np.ndarray, " n"]
    middle: tuple[float, float]
    extent: float


def drawn_alone(kind: str, colour: str, behind: str) -> Pixels:
    """A figure alone in the middle of a plain background."""
    rgb = COLOURS[behind]
    plain = Background("plain", behind, rgb, rgb, "vertical", 0.2, (0.0, 0.0))
    figure = Figure(kind, colour, COLOURS[colour], "medium", "centre", "centre", x=0.5, y=0.5, radius=5 / 16, turn=0.0)
    return render(Scene(plain, "one", (figure,)), SIDE)


def cut_out(picture: Pixels, behind: Float[np.ndarray, " 3"]) -> CutOut | None:
    """The figure of a picture on a plain background of the colour `behind`; None where there is none."""
    height, width = picture.shape[:2]
    rows, columns = np.nonzero(figure_mask(picture, behind))
    if len(rows) < FEWEST_PIXELS * height * width / SIDE**2:
        return None
    x, y = middle_of(columns), middle_of(rows)
    extent = max(4.0, extent_of(rows), extent_of(columns))
    reach = extent * MARGIN / 2
    wide = Image.new("RGB", (width * 3, height * 3), tuple(round(value) for value in behind))
    wide.paste(Image.fromarray(picture), (width, height))
    box = (x + width - reach, y + height - reach, x + width + reach, y + height + reach)
    cut = wide.transform((CROP, CROP), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    return CutOut(np.asarray(cut, dtype=float).ravel(), (x / width, y / height), extent / max(height, width))


def border_colour(picture: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, " 3"]:
    """The median colour at the top, the left and the right edge."""
    border = np.concatenate([picture[:4].reshape(-1, 3), picture[:, :4].reshape(-1, 3), picture[:, -4:].reshape(-1, 3)])
    return np.median(border, axis=0)


def nearest_colour(rgb: Float[np.ndarray, " 3"]) -> str:
    """The palette's colour that is closest."""
    return min(COLOURS, key=lambda name: float(np.square(rgb - np.array(COLOURS[name])).sum()))


def figure_mask(
    picture: UInt8[np.ndarray, "height width 3"], behind: Float[np.ndarray, " 3"]
) -> Bool[np.ndarray, "height width"]:
    """Pixels that are not the background's."""
    return np.square(picture - behind).sum(-1) > APART**2


def middle_of(places: np.ndarray) -> float:
    """The middle of the rows, or of the columns, that a figure's pixels lie in; a few stray pixels do not move it."""
    low, high = np.quantile(places, (0.03, 0.97))
    return float(low + high) / 2


def extent_of(places: np.ndarray) -> float:
    """How many rows, or columns, a figure's pixels lie in, without the outermost few."""
    low, high = np.quantile(places, (0.03, 0.97))
    return float(high - low)
