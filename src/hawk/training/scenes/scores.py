"""Whether a drawn picture shows what was asked for: one figure in a colour at a place on a plain background.

No network judges: a picture is compared with scenes rendered in every kind and in every colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from hawk.training.scenes.backgrounds import Background
from hawk.training.scenes.captions import PLACES
from hawk.training.scenes.colours import COLOURS, Rgb
from hawk.training.scenes.kinds import KINDS
from hawk.training.scenes.scene import Figure, Pairs, Scene, held_out_number, render, sample_scene

Picture = UInt8[np.ndarray, "side side 3"]

APART = 48
"""How far a pixel's colour is from the background's where it belongs to a figure (Euclidean, of 441)."""
NEAR = 0.13
"""How far a figure's middle may lie from where it was asked for, in sides of the picture."""
FEWEST_PIXELS = 40
"""With fewer pixels that are not the background's, a picture shows no figure."""
CROP = 24
"""Side of the cut-out that is compared, in pixels."""


@dataclass(frozen=True)
class Faithfulness:
    """Shares of pictures (or, of one picture, 0 or 1) in which each thing is as asked."""

    kind: float
    colour: float
    background: float
    place: float
    everything: float


def plain_question(index: int, seed: int = 0, pairs: Pairs = "taught") -> Scene:
    """A held-out scene reduced to one bare figure on a plain background."""
    scene = sample_scene(seed, held_out_number(index), pairs)
    colours = [name for name in COLOURS if name != scene.figures[0].colour]
    colour = scene.background.colour
    colour = colours[index % len(colours)] if colour in (None, scene.figures[0].colour) else colour
    assert colour is not None
    background = Background("plain", colour, COLOURS[colour], COLOURS[colour], "vertical", 0.2, (0.0, 0.0))
    return Scene(background, scene.layout, (_bare(scene.figures[0]),))


def plain_caption(scene: Scene) -> str:
    """What is asked for, in full."""
    figure = scene.figures[0]
    size = {"small": "small ", "medium": "", "large": "large "}[figure.size]
    place = PLACES[figure.across, figure.along][0]
    return f"a {size}{figure.colour} {figure.kind} {place} on a {scene.background.colour} background"


def judge(picture: Picture, scene: Scene) -> Faithfulness:
    """Compare a picture with the scene that was asked for."""
    behind = border_colour(picture)
    background = nearest_colour(behind) == scene.background.colour
    mask = figure_mask(picture, behind)
    if mask.sum() < FEWEST_PIXELS:
        return Faithfulness(0.0, 0.0, float(background), 0.0, 0.0)
    figure, seen = scene.figures[0], _cut_out(picture, mask)
    kinds = {name: _template(scene, replace(figure, kind=name)) for name in KINDS}
    colours = {name: _template(scene, replace(figure, colour=name, rgb=rgb)) for name, rgb in COLOURS.items()}
    kind, colour = _closest(seen, kinds) == figure.kind, _closest(seen, colours) == figure.colour
    rows, columns = np.nonzero(mask)
    middle = np.array((middle_of(columns), middle_of(rows))) / len(picture)
    place = bool(np.abs(middle - (figure.x, figure.y)).max() < NEAR)
    everything = kind and colour and background and place
    return Faithfulness(float(kind), float(colour), float(background), float(place), float(everything))


def mean_of(scores: Sequence[Faithfulness]) -> Faithfulness:
    """The share of pictures in which each thing is as asked."""
    return Faithfulness(*(float(np.mean([getattr(s, f.name) for s in scores])) for f in fields(Faithfulness)))


def border_colour(picture: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, " 3"]:
    """The median colour at the top, the left and the right edge."""
    border = np.concatenate([picture[:4].reshape(-1, 3), picture[:, :4].reshape(-1, 3), picture[:, -4:].reshape(-1, 3)])
    return np.median(border, axis=0)


def nearest_colour(rgb: Float[np.ndarray, " 3"], palette: Mapping[str, Rgb] = COLOURS) -> str:
    """The palette's colour that is closest."""
    return min(palette, key=lambda name: float(np.square(rgb - np.array(palette[name])).sum()))


def figure_mask(
    picture: UInt8[np.ndarray, "height width 3"], behind: Float[np.ndarray, " 3"]
) -> Bool[np.ndarray, "height width"]:
    """Pixels that are not the background's."""
    return np.square(picture - behind).sum(-1) > APART**2


def _bare(figure: Figure) -> Figure:
    return replace(figure, face=None, hat=None, turn=0.0, rgb=COLOURS[figure.colour])


def middle_of(places: np.ndarray) -> float:
    """The middle of the rows, or of the columns, that a figure's pixels lie in; a few stray pixels do not move it."""
    low, high = np.quantile(places, (0.03, 0.97))
    return float(low + high) / 2


def extent_of(places: np.ndarray) -> float:
    """How many rows, or columns, a figure's pixels lie in, without the outermost few."""
    low, high = np.quantile(places, (0.03, 0.97))
    return float(high - low)


def _template(scene: Scene, figure: Figure) -> Float[np.ndarray, " n"]:
    picture = render(replace(scene, figures=(figure,)))
    return _cut_out(picture, figure_mask(picture, np.array(scene.background.main, dtype=float)))


def _cut_out(picture: Picture, mask: Bool[np.ndarray, "side side"]) -> Float[np.ndarray, " n"]:
    """The figure's surroundings at a common size and place, so that only shape and colours are left to compare."""
    if not mask.any():
        return np.zeros(CROP * CROP * 3)
    rows, columns = np.nonzero(mask)
    x, y = middle_of(columns), middle_of(rows)
    reach = max(4.0, extent_of(rows), extent_of(columns)) * 0.6
    box = (x - reach, y - reach, x + reach, y + reach)
    cut = Image.fromarray(picture).transform((CROP, CROP), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    return np.asarray(cut, dtype=float).ravel()


def _closest(seen: Float[np.ndarray, " n"], templates: dict[str, Float[np.ndarray, " n"]]) -> str:
    return min(templates, key=lambda name: float(np.square(seen - templates[name]).sum()))
