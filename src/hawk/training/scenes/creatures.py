"""Animals and figures: each has a main colour, and details of fixed colours."""

from __future__ import annotations

from hawk.training.scenes.colours import INK, Rgb, Shades, mix
from hawk.training.scenes.pen import Pen, Real, mirrored

WHITE: Rgb = (250, 250, 248)
BEAK: Rgb = (248, 160, 40)
BLUSH: Rgb = (248, 150, 160)


def _eyes(pen: Pen, x: Real, y: Real, r: Real) -> None:
    """Two dark eyes, each with a glint."""
    for side in (-x, x):
        pen.ellipse(side, y, r, r * 1.2, INK)
        pen.disc(side + r * 0.3, y - r * 0.4, r * 0.36, WHITE)


def _wide_eyes(pen: Pen, x: Real, y: Real, r: Real) -> None:
    """Two white eyes with dark pupils."""
    for side in (-x, x):
        pen.disc(side, y, r, WHITE)
        pen.disc(side, y + r * 0.1, r * 0.5, INK)


def _smile(pen: Pen, y: Real, rx: Real, width: Real = 0.06) -> None:
    pen.arc(0, y, rx, rx * 0.7, 15, 165, width, INK)


def cat(pen: Pen, c: Shades) -> None:
    for side in (-1, 1):
        pen.polygon(((side * 0.88, -0.98), (side * 0.86, 0.1), (side * 0.12, -0.5)), c.main)
        pen.polygon(((side * 0.77, -0.7), (side * 0.76, -0.2), (side * 0.36, -0.48)), BLUSH)
    pen.ellipse(0, 0.16, 0.95, 0.76, c.main)
    _eyes(pen, 0.4, 0.06, 0.13)
    pen.polygon(((-0.1, 0.27), (0.1, 0.27), (0, 0.39)), BLUSH)
    for side in (-1, 1):
        pen.arc(side * 0.14, 0.4, 0.14, 0.13, 0, 180, 0.055, INK)
        pen.line(((side * 0.55, 0.36), (side * 1.0, 0.28)), 0.04, c.ink)
        pen.line(((side * 0.55, 0.48), (side * 0.98, 0.54)), 0.04, c.ink)


def bear(pen: Pen, c: Shades) -> None:
    for side in (-0.66, 0.66):
        pen.disc(side, -0.6, 0.34, c.main)
        pen.disc(side, -0.6, 0.17, c.light)
    pen.ellipse(0, 0.08, 0.92, 0.84, c.main)
    pen.ellipse(0, 0.36, 0.44, 0.35, mix(c.light, WHITE, 0.5))
    _eyes(pen, 0.36, -0.1, 0.12)
    pen.ellipse(0, 0.22, 0.15, 0.11, INK)
    _smile(pen, 0.36, 0.18)


def rabbit(pen: Pen, c: Shades) -> None:
    for side in (-1, 1):
        pen.ellipse(side * 0.34, -0.52, 0.21, 0.52, c.main, side * 0.16)
        pen.ellipse(side * 0.34, -0.5, 0.1, 0.36, BLUSH, turn=side * 0.16)
    pen.ellipse(0, 0.34, 0.76, 0.64, c.main)
    _eyes(pen, 0.32, 0.22, 0.11)
    pen.ellipse(0, 0.42, 0.1, 0.07, BLUSH)
    pen.box(-0.1, 0.62, 0.1, 0.8, WHITE)
    _smile(pen, 0.5, 0.2)


def frog(pen: Pen, c: Shades) -> None:
    for side in (-0.5, 0.5):
        pen.disc(side, -0.5, 0.38, c.main)
    pen.ellipse(0, 0.18, 0.98, 0.74, c.main)
    pen.ellipse(0, -0.3, 0.6, 0.2, c.main)
    _wide_eyes(pen, 0.5, -0.52, 0.25)
    for side in (-0.7, 0.7):
        pen.disc(side, 0.3, 0.12, BLUSH)
    pen.arc(0, 0.12, 0.6, 0.42, 10, 170, 0.07, c.ink)


def owl(pen: Pen, c: Shades) -> None:
    for side in (-1, 1):
        pen.polygon(((side * 0.68, -1.0), (side * 0.7, -0.3), (side * 0.15, -0.7)), c.main)
    pen.ellipse(0, 0.08, 0.78, 0.88, c.main)
    pen.ellipse(0, 0.48, 0.46, 0.44, c.light)
    for side in (-1, 1):
        pen.ellipse(side * 0.7, 0.32, 0.18, 0.46, c.shade, side * -0.2)
    _wide_eyes(pen, 0.34, -0.3, 0.32)
    pen.polygon(((-0.13, -0.14), (0.13, -0.14), (0, 0.14)), BEAK)


def penguin(pen: Pen, c: Shades) -> None:
    for side in (-1, 1):
        pen.ellipse(side * 0.3, 0.92, 0.24, 0.1, BEAK)
        pen.ellipse(side * 0.68, 0.2, 0.15, 0.5, c.shade, side * -0.35)
    pen.ellipse(0, 0, 0.68, 0.94, c.main)
    pen.ellipse(0, 0.28, 0.48, 0.6, WHITE)
    for x in (-0.22, 0.22):
        pen.disc(x, -0.36, 0.26, WHITE)
    _eyes(pen, 0.2, -0.38, 0.1)
    pen.polygon(((-0.16, -0.22), (0.16, -0.22), (0, 0.02)), BEAK)


def bird(pen: Pen, c: Shades) -> None:
    pen.polygon(((-0.5, 0.1), (-1.0, -0.2), (-0.98, 0.36)), c.shade)
    for x in (-0.08, 0.2):
        pen.line(((x, 0.6), (x, 0.94)), 0.07, BEAK)
    pen.polygon(((0.7, -0.34), (1.04, -0.18), (0.7, -0.04)), BEAK)
    pen.blob(
        ((-0.75, 0.15), (-0.2, -0.18), (0.12, -0.62), (0.62, -0.62), (0.82, -0.2), (0.62, 0.4), (0, 0.7)),
        c.main,
    )
    pen.blob(((-0.5, 0.12), (0.1, 0.02), (0.16, 0.26), (-0.1, 0.46)), c.shade)
    pen.disc(0.46, -0.34, 0.12, INK)
    pen.disc(0.5, -0.39, 0.045, WHITE)


def fish(pen: Pen, c: Shades) -> None:
    pen.polygon(((0.45, 0), (1.0, -0.5), (0.86, 0), (1.0, 0.5)), c.shade)
    pen.polygon(((-0.35, -0.4), (0.1, -0.82), (0.4, -0.3)), c.shade)
    pen.ellipse(-0.18, 0, 0.8, 0.54, c.main)
    for x in (0.02, 0.28):
        pen.arc(x - 0.2, 0, 0.2, 0.32, -70, 70, 0.06, c.shade)
    pen.disc(-0.58, -0.12, 0.17, WHITE)
    pen.disc(-0.6, -0.12, 0.085, INK)
    pen.arc(-0.74, 0.16, 0.22, 0.14, 20, 110, 0.05, c.ink)


def butterfly(pen: Pen, c: Shades) -> None:
    for side in (-1, 1):
        pen.blob(
            [(side * x, y) for x, y in ((0, 0.02), (0.3, 0.08), (0.72, 0.3), (0.6, 0.78), (0.22, 0.66))],
            c.shade,
        )
        pen.blob(
            [(side * x, y) for x, y in ((0, 0.1), (0.24, -0.6), (0.78, -0.86), (0.98, -0.4), (0.6, 0.1))],
            c.main,
        )
        pen.disc(side * 0.66, -0.42, 0.18, c.light)
        pen.disc(side * 0.46, 0.46, 0.13, c.light)
        pen.line(((side * 0.04, -0.5), (side * 0.22, -0.92)), 0.05, INK)
    pen.ellipse(0, 0.08, 0.11, 0.62, INK)


def ladybug(pen: Pen, c: Shades) -> None:
    for side in (-1, 1):
        pen.line(((side * 0.12, -0.7), (side * 0.34, -0.98)), 0.06, INK)
    pen.ellipse(0, -0.5, 0.5, 0.36, INK)
    _wide_eyes(pen, 0.22, -0.64, 0.12)
    pen.ellipse(0, 0.18, 0.84, 0.76, c.main)
    pen.line(((0, -0.56), (0, 0.92)), 0.07, INK if c.ink == INK else c.deep)
    for x, y in ((0.4, -0.16), (0.48, 0.34), (0.2, 0.66)):
        for place in (-x, x):
            pen.disc(place, y, 0.13, INK if c.ink == INK else c.deep)


def snail(pen: Pen, c: Shades) -> None:
    skin, line = (240, 208, 150), (150, 110, 70)
    for x in (-0.84, -0.56):
        pen.line(((-0.68, 0.1), (x, -0.52)), 0.07, line)
        pen.disc(x, -0.54, 0.09, INK)
    pen.blob(((-0.94, 0.1), (-0.66, -0.16), (-0.42, 0.2), (0.3, 0.5), (0.98, 0.82), (0, 0.86), (-0.7, 0.8)), skin)
    pen.disc(0.22, 0.06, 0.64, c.main)
    pen.arc(0.22, 0.06, 0.4, 0.4, 0, 290, 0.08, c.deep)
    pen.arc(0.26, 0.06, 0.17, 0.17, -90, 180, 0.08, c.deep)
    pen.arc(-0.72, 0.26, 0.14, 0.1, 30, 150, 0.05, INK)


def snowman(pen: Pen, c: Shades) -> None:
    pen.line(((-0.4, 0.1), (-0.92, -0.2)), 0.06, (110, 74, 46))
    pen.line(((0.4, 0.1), (0.92, -0.2)), 0.06, (110, 74, 46))
    pen.disc(0, 0.46, 0.52, c.main)
    pen.disc(0, -0.36, 0.42, c.main)
    for y in (0.28, 0.52):
        pen.disc(0, y, 0.065, c.ink)
    for x in (-0.15, 0.15):
        pen.disc(x, -0.46, 0.065, c.ink)
    pen.polygon(((0, -0.38), (0, -0.24), (0.38, -0.28)), BEAK)
    pen.box(-0.46, -0.76, 0.46, -0.68, INK)
    pen.box(-0.29, -1.0, 0.29, -0.7, INK)
    pen.box(-0.29, -0.84, 0.29, -0.75, (214, 60, 60))


def ghost(pen: Pen, c: Shades) -> None:
    hem = [(0.72, 0.86), (0.48, 0.6), (0.24, 0.9), (0, 0.62), (-0.24, 0.9), (-0.48, 0.6), (-0.72, 0.86)]
    pen.blob([(-0.72, 0), (-0.52, -0.66), (0, -0.94), (0.52, -0.66), (0.72, 0), *hem], c.main)
    for side in (-0.27, 0.27):
        pen.ellipse(side, -0.26, 0.13, 0.19, c.ink)
        pen.disc(side * 1.8, 0.02, 0.1, BLUSH)
    pen.ellipse(0, 0.12, 0.12, 0.15, c.ink)


def robot(pen: Pen, c: Shades) -> None:
    pen.line(((0, -0.6), (0, -0.9)), 0.07, c.deep)
    pen.disc(0, -0.92, 0.11, (232, 70, 60))
    for side in (-1, 1):
        pen.round_box(side * 0.78 - 0.12, -0.4, side * 0.78 + 0.12, 0.02, 0.08, c.shade)
        pen.round_box(side * 0.4 - 0.16, 0.82, side * 0.4 + 0.16, 1.0, 0.06, c.shade)
    pen.round_box(-0.6, 0.2, 0.6, 0.86, 0.12, c.main)
    pen.round_box(-0.72, -0.68, 0.72, 0.2, 0.18, c.main)
    pen.round_box(-0.54, -0.5, 0.54, 0.04, 0.14, (38, 44, 58))
    for x in (-0.25, 0.25):
        pen.disc(x, -0.26, 0.12, (120, 230, 250))
    pen.arc(0, -0.2, 0.16, 0.14, 20, 160, 0.05, (120, 230, 250))
    pen.disc(0, 0.52, 0.13, c.light)


def octopus(pen: Pen, c: Shades) -> None:
    for x in (-0.72, -0.36, 0, 0.36, 0.72):
        pen.line(((x * 0.7, 0.2), (x, 0.68), (x * 1.22, 0.88)), 0.24, c.main)
    pen.blob(mirrored([(0, -0.96), (0.58, -0.66), (0.7, -0.12), (0.56, 0.42), (0, 0.5)]), c.main)
    _wide_eyes(pen, 0.26, -0.18, 0.18)
    pen.arc(0, 0.06, 0.2, 0.16, 15, 165, 0.055, c.ink)
