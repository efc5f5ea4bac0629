"""Plain shapes, each in one colour: they may carry a face and a hat."""

from __future__ import annotations

import math

import numpy as np

from hawk.training.scenes.colours import Shades
from hawk.training.scenes.pen import Pen, Real, arc_points


def circle(pen: Pen, c: Shades) -> None:
    pen.disc(0, 0, 0.9, c.main)


def square(pen: Pen, c: Shades) -> None:
    pen.round_box(-0.8, -0.8, 0.8, 0.8, 0.12, c.main)


def triangle(pen: Pen, c: Shades) -> None:
    pen.polygon(((0, -0.95), (0.98, 0.75), (-0.98, 0.75)), c.main)


def hexagon(pen: Pen, c: Shades) -> None:
    pen.polygon(_ring(6, 0.95), c.main)


def diamond(pen: Pen, c: Shades) -> None:
    pen.polygon(((0, -1), (0.74, 0), (0, 1), (-0.74, 0)), c.main)


def star(pen: Pen, c: Shades) -> None:
    outer, inner = _ring(5, 1.0, -90), _ring(5, 0.5, -54)
    pen.polygon(np.add(np.stack((outer, inner), axis=1).reshape(-1, 2), (0, 0.06)), c.main)


def heart(pen: Pen, c: Shades) -> None:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    pen.polygon(np.stack((np.sin(t) ** 3 * 16, -y), axis=1) / 17, c.main)


def drop(pen: Pen, c: Shades) -> None:
    belly = arc_points(0, 0.28, 0.68, 0.68, -30, 210, 30)
    pen.polygon(np.vstack(([[0, -1.0]], belly)), c.main)


def cloud(pen: Pen, c: Shades) -> None:
    puffs = ((-0.55, 0.2, 0.42), (0.58, 0.22, 0.4), (-0.12, -0.12, 0.55), (0.36, -0.02, 0.4))
    for x, y, r in puffs:
        pen.disc(x, y, r, c.main)
    pen.round_box(-0.7, 0.2, 0.7, 0.6, 0.15, c.main)


def moon(pen: Pen, c: Shades) -> None:
    outer = arc_points(0.1, 0, 0.95, 0.95, 50, 310, 40)
    inner = arc_points(0.52, 0, 0.74, 0.74, 282, 78, 30)
    pen.polygon(np.vstack((outer, inner)), c.main)


def flower(pen: Pen, c: Shades) -> None:
    for x, y in _ring(6, 0.58):
        pen.disc(x, y, 0.36, c.main)
    pen.disc(0, 0, 0.5, c.light)


def _ring(count: int, radius: Real, start: Real = 0) -> np.ndarray:
    """`count` points on a circle, the first at `start` degrees."""
    return arc_points(0, 0, radius, radius, start, start + 360, count + 1)[:-1]
