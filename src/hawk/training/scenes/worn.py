"""What a figure wears: faces, and hats."""

from __future__ import annotations

from collections.abc import Callable

from hawk.training.scenes.colours import Rgb, Shades
from hawk.training.scenes.pen import Pen

GOLD: Rgb = (252, 206, 56)
GOLD_EDGE: Rgb = (176, 124, 24)

Wearer = Callable[[Pen, Shades], None]
"""Draws around (0, 0) of a pen that stands where the face or the hat belongs; the shades are the figure's."""


def happy(pen: Pen, c: Shades) -> None:
    _eyes(pen, c.ink)
    pen.arc(0, 0.16, 0.42, 0.4, 15, 165, 0.14, c.ink)


def sad(pen: Pen, c: Shades) -> None:
    _eyes(pen, c.ink)
    pen.arc(0, 0.72, 0.36, 0.36, 200, 340, 0.14, c.ink)


def surprised(pen: Pen, c: Shades) -> None:
    _eyes(pen, c.ink)
    pen.ellipse(0, 0.5, 0.2, 0.26, c.ink)


def sleepy(pen: Pen, c: Shades) -> None:
    for side in (-0.5, 0.5):
        pen.arc(side, -0.24, 0.22, 0.18, 10, 170, 0.13, c.ink)
    pen.ellipse(0, 0.42, 0.15, 0.12, c.ink)


def _eyes(pen: Pen, ink: Rgb) -> None:
    for side in (-0.5, 0.5):
        pen.ellipse(side, -0.2, 0.17, 0.24, ink)


def crown(pen: Pen, c: Shades) -> None:
    points = ((-0.9, 0.1), (-1.0, -0.9), (-0.5, -0.4), (0, -1.1), (0.5, -0.4), (1.0, -0.9), (0.9, 0.1))
    pen.polygon(points, GOLD)
    pen.disc(0, -0.2, 0.17, (220, 50, 70))


def cap(pen: Pen, c: Shades) -> None:
    blue, dark = (52, 92, 190), (26, 46, 110)
    pen.blob(((-0.9, 0.1), (-0.84, -0.5), (-0.3, -0.94), (0.3, -0.94), (0.84, -0.5), (0.9, 0.1)), blue)
    pen.round_box(0.1, -0.06, 1.6, 0.2, 0.12, dark)
    pen.disc(0, -0.96, 0.13, dark)


def bow(pen: Pen, c: Shades) -> None:
    pink = (240, 78, 140)
    for side in (-1, 1):
        pen.blob([(side * x, y) for x, y in ((0, -0.2), (0.9, -0.72), (1.0, 0.3), (0, -0.1))], pink)
    pen.disc(0, -0.18, 0.26, pink)


def party_hat(pen: Pen, c: Shades) -> None:
    pen.polygon(((0, -1.7), (0.74, 0.14), (-0.74, 0.14)), (250, 120, 60))
    pen.line(((-0.46, -0.4), (0.5, -0.24)), 0.18, (255, 232, 120))
    pen.line(((-0.24, -0.98), (0.28, -0.9)), 0.16, (255, 232, 120))
    pen.disc(0, -1.7, 0.26, (255, 244, 200))


FACES: dict[str, Wearer] = {"happy": happy, "sad": sad, "surprised": surprised, "sleepy": sleepy}

HATS: dict[str, Wearer] = {"crown": crown, "cap": cap, "bow": bow, "party hat": party_hat}
