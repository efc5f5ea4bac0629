"""A pen that draws in the coordinates of one thing: -1 to 1 in both directions, y down, turned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import ImageDraw

from hawk.training.scenes.colours import Rgb

Real = int | float
"""A coordinate: whole ones are written without a point."""
Point = tuple[Real, Real]
Points = Sequence[Point] | Float[np.ndarray, "n 2"]

_ANGLES = np.linspace(0, 2 * math.pi, 40, endpoint=False)
_CIRCLE = np.stack((np.cos(_ANGLES), np.sin(_ANGLES)), axis=1)


@dataclass(frozen=True)
class Pen:
    """Draws on `canvas` around (`x`, `y`) at `radius`, all in canvas pixels; `turn` in radians, clockwise."""

    canvas: ImageDraw.ImageDraw
    x: Real
    y: Real
    radius: Real
    turn: Real = 0.0

    def placed(self, points: Points) -> Float[np.ndarray, "n 2"]:
        """Canvas coordinates of points of the thing."""
        own = np.asarray(points, dtype=float) * self.radius
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return own @ np.array(((cos, sin), (-sin, cos))) + (self.x, self.y)

    def polygon(self, points: Points, fill: Rgb) -> None:
        """A filled polygon."""
        self.canvas.polygon(_tuples(self.placed(points)), fill=fill)

    def blob(self, points: Points, fill: Rgb) -> None:
        """A filled smooth closed curve through the points."""
        self.polygon(smooth(np.asarray(points, dtype=float)), fill)

    def ellipse(self, x: Real, y: Real, rx: Real, ry: Real, fill: Rgb, turn: Real = 0.0) -> None:
        """A filled ellipse around (`x`, `y`) with half axes `rx` and `ry`, itself turned by `turn`."""
        self.polygon(np.add(_turned(_CIRCLE * (rx, ry), turn), (x, y)), fill)

    def disc(self, x: Real, y: Real, r: Real, fill: Rgb) -> None:
        """A filled circle."""
        self.ellipse(x, y, r, r, fill)

    def box(self, left: Real, top: Real, right: Real, bottom: Real, fill: Rgb) -> None:
        """A filled rectangle."""
        self.polygon(((left, top), (right, top), (right, bottom), (left, bottom)), fill)

    def round_box(self, left: Real, top: Real, right: Real, bottom: Real, r: Real, fill: Rgb) -> None:
        """A filled rectangle with corners rounded at radius `r`."""
        centres = np.array(((right - r, bottom - r), (left + r, bottom - r), (left + r, top + r), (right - r, top + r)))
        corners = [_CIRCLE[10 * i : 10 * i + 11] if i < 3 else np.vstack((_CIRCLE[30:], _CIRCLE[:1])) for i in range(4)]
        self.polygon(np.concatenate([c * r + centre for c, centre in zip(corners, centres, strict=True)]), fill)

    def line(self, points: Points, width: Real, fill: Rgb) -> None:
        """An open line of `width` (in units of the thing) with round ends."""
        corners = _tuples(self.placed(points))
        pixels = max(1.0, width * self.radius)
        self.canvas.line(corners, fill=fill, width=round(pixels), joint="curve")
        for x, y in (corners[0], corners[-1]):
            r = pixels / 2
            self.canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def arc(self, x: Real, y: Real, rx: Real, ry: Real, start: Real, stop: Real, width: Real, fill: Rgb) -> None:
        """A part of an ellipse as a line, from `start` to `stop` degrees (0 is right, 90 is down)."""
        self.line(arc_points(x, y, rx, ry, start, stop), width, fill)


def arc_points(
    x: Real, y: Real, rx: Real, ry: Real, start: Real, stop: Real, count: int = 16
) -> Float[np.ndarray, "count 2"]:
    """Points on an ellipse from `start` to `stop` degrees."""
    angles = np.radians(np.linspace(start, stop, count))
    return np.stack((x + rx * np.cos(angles), y + ry * np.sin(angles)), axis=1)


def smooth(points: Float[np.ndarray, "n 2"], steps: int = 8) -> Float[np.ndarray, "m 2"]:
    """A closed Catmull-Rom curve through the points, `steps` points from each to the next."""
    before, after, next_after = (np.roll(points, shift, axis=0)[:, None] for shift in (1, -1, -2))
    here, t = points[:, None], np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    curve = 2 * here + (after - before) * t + (2 * before - 5 * here + 4 * after - next_after) * t**2
    return ((curve + (3 * here - before - 3 * after + next_after) * t**3) / 2).reshape(-1, 2)


def mirrored(points: Sequence[Point]) -> list[Point]:
    """A closed outline from its right half, given from top to bottom; points on the axis are not doubled."""
    return [*points, *((-x, y) for x, y in reversed(points) if x)]


def _turned(points: Float[np.ndarray, "n 2"], turn: Real) -> Float[np.ndarray, "n 2"]:
    if not turn:
        return points
    cos, sin = math.cos(turn), math.sin(turn)
    return points @ np.array(((cos, sin), (-sin, cos)))


def _tuples(points: Float[np.ndarray, "n 2"]) -> list[Point]:
    return [(x, y) for x, y in points.tolist()]
