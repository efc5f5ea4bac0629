"""Everyday things: each has a main colour, and details of fixed colours."""

from __future__ import annotations

import numpy as np

from hawk.training.scenes.colours import INK, Rgb, Shades, mix
from hawk.training.scenes.pen import Pen, Real, arc_points, mirrored

WHITE: Rgb = (250, 250, 248)
WOOD: Rgb = (128, 84, 52)
WOOD_EDGE: Rgb = (84, 54, 36)
LEAF: Rgb = (82, 170, 70)
LEAF_EDGE: Rgb = (44, 106, 48)
GLASS: Rgb = (176, 222, 246)
GLASS_EDGE: Rgb = (84, 120, 150)
GOLD: Rgb = (250, 206, 70)
GOLD_EDGE: Rgb = (176, 128, 30)
STEEL: Rgb = (150, 156, 166)


def _leaf(pen: Pen, x: Real, y: Real, length: Real, turn: Real) -> None:
    pen.ellipse(x, y, length, length * 0.46, LEAF, turn)


# --- food ------------------------------------------------------------------------------------------------------


def apple(pen: Pen, c: Shades) -> None:
    pen.line(((0, -0.5), (0.08, -0.92)), 0.1, WOOD_EDGE)
    _leaf(pen, 0.36, -0.78, 0.3, -0.4)
    outline = [(0, -0.46), (0.36, -0.6), (0.78, -0.38), (0.82, 0.14), (0.54, 0.72), (0.22, 0.88), (0, 0.8)]
    pen.blob(mirrored(outline), c.main)
    pen.ellipse(-0.46, -0.12, 0.12, 0.24, c.light, turn=0.3)


def pear(pen: Pen, c: Shades) -> None:
    pen.line(((0, -0.8), (0.1, -1.0)), 0.1, WOOD_EDGE)
    _leaf(pen, 0.34, -0.86, 0.26, -0.3)
    pen.blob(
        mirrored([(0, -0.84), (0.26, -0.7), (0.34, -0.28), (0.66, 0.14), (0.68, 0.6), (0.36, 0.92), (0, 0.96)]),
        c.main,
    )
    pen.ellipse(-0.36, 0.34, 0.12, 0.24, c.light, turn=0.3)


def cherries(pen: Pen, c: Shades) -> None:
    for x, y in ((-0.46, 0.46), (0.5, 0.54)):
        pen.line(((x, y - 0.3), (x * 0.6, -0.3), (0.14, -0.86)), 0.07, LEAF_EDGE)
    _leaf(pen, 0.46, -0.76, 0.36, 0.2)
    for x, y in ((-0.46, 0.46), (0.5, 0.54)):
        pen.disc(x, y, 0.42, c.main)
        pen.ellipse(x - 0.15, y - 0.14, 0.08, 0.12, c.light, turn=0.5)


def cupcake(pen: Pen, c: Shades) -> None:
    pen.polygon(((-0.6, 0.2), (0.6, 0.2), (0.44, 0.94), (-0.44, 0.94)), (236, 196, 140))
    for x in (-0.3, 0, 0.3):
        pen.line(((x, 0.26), (x * 0.75, 0.88)), 0.05, (190, 144, 92))
    pen.ellipse(0, 0.14, 0.8, 0.3, c.main)
    pen.ellipse(0, -0.2, 0.6, 0.28, c.main)
    pen.ellipse(0, -0.48, 0.36, 0.24, c.main)
    pen.disc(0, -0.78, 0.18, (226, 50, 60))


def donut(pen: Pen, c: Shades) -> None:
    pen.disc(0, 0.04, 0.92, (226, 172, 104))
    wave = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    r = 0.8 + 0.05 * np.sin(7 * wave)
    pen.polygon(np.stack((r * np.cos(wave), r * np.sin(wave)), axis=1), c.main)
    for i, (x, y) in enumerate(arc_points(0, 0, 0.56, 0.56, 10, 330, 9)):
        pen.ellipse(x, y, 0.09, 0.04, ((255, 255, 255), GOLD, (90, 190, 230))[i % 3], turn=i * 1.1)
    pen.disc(0, 0, 0.27, (236, 214, 180))


def ice_cream(pen: Pen, c: Shades) -> None:
    pen.polygon(((-0.46, 0), (0.46, 0), (0, 1.0)), (232, 178, 104))
    pen.line(((-0.2, 0.06), (0.16, 0.6)), 0.05, (190, 134, 72))
    pen.line(((0.2, 0.06), (-0.16, 0.6)), 0.05, (190, 134, 72))
    pen.disc(0, -0.36, 0.54, c.main)
    for x in (-0.36, 0, 0.36):
        pen.disc(x, 0, 0.2, c.main)
    pen.ellipse(-0.22, -0.54, 0.13, 0.18, c.light, turn=0.6)


def lollipop(pen: Pen, c: Shades) -> None:
    pen.line(((0, 0.2), (0, 1.0)), 0.12, (236, 232, 222))
    pen.disc(0, -0.34, 0.64, c.main)
    pen.arc(0, -0.34, 0.44, 0.44, -60, 220, 0.1, c.light)
    pen.arc(0.06, -0.34, 0.2, 0.2, 220, 470, 0.1, c.light)


def cup(pen: Pen, c: Shades) -> None:
    pen.arc(0.56, 0.22, 0.36, 0.34, -90, 90, 0.2, c.main)
    pen.blob(((-0.7, -0.3), (0.62, -0.3), (0.62, 0.3), (0.36, 0.86), (-0.44, 0.86), (-0.7, 0.3)), c.main)
    pen.ellipse(-0.04, -0.3, 0.68, 0.2, mix(c.main, WHITE, 0.3))
    pen.ellipse(-0.04, -0.28, 0.54, 0.13, (96, 58, 36))
    for x in (-0.3, 0.14):
        pen.line(((x, -0.6), (x + 0.09, -0.74), (x - 0.03, -0.86), (x + 0.06, -1.0)), 0.07, (205, 205, 212))


# --- outdoors --------------------------------------------------------------------------------------------------


def tree(pen: Pen, c: Shades) -> None:
    pen.polygon(((-0.14, 0.2), (0.14, 0.2), (0.22, 1.0), (-0.22, 1.0)), WOOD)
    puffs = ((-0.46, 0.02, 0.42), (0.46, 0.02, 0.42), (0, -0.44, 0.5), (0, 0.12, 0.4))
    for x, y, r in puffs:
        pen.disc(x, y, r, c.main)
    pen.ellipse(-0.2, -0.56, 0.16, 0.12, c.light)


def pine(pen: Pen, c: Shades) -> None:
    pen.box(-0.14, 0.6, 0.14, 1.0, WOOD)
    for top, bottom, half in ((0.0, 0.74, 0.78), (-0.48, 0.24, 0.62), (-0.98, -0.22, 0.44)):
        pen.polygon(((0, top), (half, bottom), (-half, bottom)), c.main)


def cactus(pen: Pen, c: Shades) -> None:
    for points in (((-0.2, 0.2), (-0.62, 0.14), (-0.62, -0.3)), ((0.2, 0.0), (0.6, -0.06), (0.6, -0.48))):
        pen.line(points, 0.34, c.main)
    pen.round_box(-0.29, -0.96, 0.29, 0.62, 0.29, c.main)
    for x in (-0.1, 0.1):
        for y in (-0.6, -0.25, 0.1):
            pen.line(((x, y), (x, y + 0.12)), 0.05, c.deep)
    pen.polygon(((-0.48, 0.5), (0.48, 0.5), (0.36, 1.0), (-0.36, 1.0)), (206, 108, 66))


def mushroom(pen: Pen, c: Shades) -> None:
    pen.blob(((-0.24, 0), (0.24, 0), (0.32, 0.8), (0, 0.94), (-0.32, 0.8)), (246, 234, 212))
    cap = np.vstack((arc_points(0, 0.08, 0.94, 0.96, 180, 360, 24), ((0.6, 0.2), (-0.6, 0.2))))
    pen.polygon(cap, c.main)
    for x, y, r in ((-0.46, -0.22, 0.15), (0.08, -0.52, 0.18), (0.52, -0.14, 0.15), (0, -0.02, 0.1)):
        pen.disc(x, y, r, mix(c.light, WHITE, 0.75))


def leaf(pen: Pen, c: Shades) -> None:
    pen.blob(((0.78, -0.86), (0.6, 0.06), (0.06, 0.62), (-0.54, 0.6), (-0.58, 0.02), (-0.1, -0.54)), c.main)
    pen.line(((0.6, -0.66), (-0.5, 0.52), (-0.86, 0.92)), 0.08, c.deep)
    for x, y in ((0.24, -0.3), (-0.1, 0.08)):
        pen.line(((x, y), (x + 0.28, y + 0.1)), 0.055, c.deep)
        pen.line(((x, y), (x - 0.06, y - 0.28)), 0.055, c.deep)


def tulip(pen: Pen, c: Shades) -> None:
    pen.line(((0, -0.1), (0, 1.0)), 0.1, LEAF_EDGE)
    pen.ellipse(0.3, 0.62, 0.4, 0.13, LEAF, -0.75)
    pen.ellipse(-0.3, 0.62, 0.4, 0.13, LEAF, 0.75)
    cup_points = ((-0.56, -0.9), (-0.28, -0.56), (0, -1.0), (0.28, -0.56), (0.56, -0.9), (0.54, -0.2))
    lower = arc_points(0, -0.2, 0.54, 0.34, 0, 180, 14)
    pen.polygon(np.vstack((np.array(cup_points), lower)), c.main)


def sun(pen: Pen, c: Shades) -> None:
    for (x, y), (px, py), (qx, qy) in zip(
        *(_spokes(r, a) for r, a in ((1.0, 0), (0.66, 12), (0.66, -12))), strict=True
    ):
        pen.polygon(((x, y), (px, py), (qx, qy)), c.shade)
    pen.disc(0, 0, 0.62, c.main)
    for side in (-0.22, 0.22):
        pen.ellipse(side, -0.08, 0.075, 0.1, c.ink)
    pen.arc(0, 0.08, 0.26, 0.2, 15, 165, 0.06, c.ink)


def _spokes(radius: Real, shift: Real) -> list[list[float]]:
    spokes: list[list[float]] = arc_points(0, 0, radius, radius, shift, shift + 360, 11)[:-1].tolist()
    return spokes


def planet(pen: Pen, c: Shades) -> None:
    pen.arc(0, 0, 1.0, 0.3, 180, 360, 0.12, GOLD_EDGE)
    pen.disc(0, 0, 0.64, c.main)
    pen.disc(-0.24, -0.26, 0.13, c.shade)
    pen.disc(0.24, -0.34, 0.09, c.shade)
    pen.arc(0, 0, 1.0, 0.3, 0, 180, 0.16, GOLD_EDGE)
    pen.arc(0, 0, 1.0, 0.3, 2, 178, 0.08, GOLD)


# --- made by people --------------------------------------------------------------------------------------------


def house(pen: Pen, c: Shades) -> None:
    pen.box(0.36, -0.84, 0.6, -0.2, (150, 84, 70))
    pen.box(-0.7, -0.1, 0.7, 0.92, c.main)
    pen.polygon(((0, -0.96), (0.98, -0.04), (-0.98, -0.04)), (176, 66, 54))
    pen.box(0.1, 0.34, 0.48, 0.92, WOOD)
    pen.box(-0.5, 0.16, -0.1, 0.54, GLASS)


def car(pen: Pen, c: Shades) -> None:
    pen.polygon(((-0.6, 0.02), (-0.36, -0.5), (0.3, -0.5), (0.64, 0.02)), c.main)
    pen.polygon(((-0.4, -0.02), (-0.25, -0.36), (-0.04, -0.36), (-0.04, -0.02)), GLASS)
    pen.polygon(((0.06, -0.02), (0.06, -0.36), (0.24, -0.36), (0.46, -0.02)), GLASS)
    pen.round_box(-1.0, -0.06, 1.0, 0.4, 0.16, c.main)
    pen.disc(0.88, 0.12, 0.09, (255, 236, 150))
    for x in (-0.55, 0.55):
        pen.disc(x, 0.4, 0.27, INK)
        pen.disc(x, 0.4, 0.12, (196, 200, 206))


def bus(pen: Pen, c: Shades) -> None:
    pen.round_box(-0.98, -0.6, 0.98, 0.5, 0.14, c.main)
    for x in (-0.8, -0.38, 0.04):
        pen.box(x, -0.42, x + 0.34, -0.04, GLASS)
    pen.box(0.5, -0.42, 0.8, 0.44, GLASS)
    pen.line(((-0.9, 0.14), (0.4, 0.14)), 0.08, c.light)
    for x in (-0.52, 0.42):
        pen.disc(x, 0.54, 0.24, INK)
        pen.disc(x, 0.54, 0.1, (196, 200, 206))


def boat(pen: Pen, c: Shades) -> None:
    pen.line(((0, -0.96), (0, 0.4)), 0.09, WOOD_EDGE)
    pen.polygon(((0.08, -0.9), (0.76, 0.2), (0.08, 0.2)), WHITE)
    pen.polygon(((-0.1, -0.66), (-0.1, 0.2), (-0.58, 0.2)), WHITE)
    pen.polygon(((-0.96, 0.32), (0.96, 0.32), (0.6, 0.84), (-0.6, 0.84)), c.main)


def rocket(pen: Pen, c: Shades) -> None:
    pen.blob(((-0.22, 0.6), (0.22, 0.6), (0.12, 0.84), (0, 1.04), (-0.12, 0.84)), (252, 170, 50))
    for side in (-1, 1):
        pen.polygon(((side * 0.3, 0.16), (side * 0.7, 0.72), (side * 0.26, 0.58)), (216, 66, 58))
    pen.blob(mirrored([(0, -1.0), (0.3, -0.6), (0.4, -0.05), (0.26, 0.62), (0, 0.64)]), c.main)
    pen.disc(0, -0.24, 0.2, GLASS)
    pen.line(((0, 0.24), (0, 0.62)), 0.09, (216, 66, 58))


def balloon(pen: Pen, c: Shades) -> None:
    pen.line(((0, 0.4), (0.09, 0.62), (-0.07, 0.8), (0.03, 1.0)), 0.05, (110, 104, 112))
    pen.polygon(((0, 0.36), (0.13, 0.52), (-0.13, 0.52)), c.main)
    pen.blob(mirrored([(0, -0.98), (0.5, -0.82), (0.62, -0.3), (0.4, 0.16), (0, 0.4)]), c.main)
    pen.ellipse(-0.28, -0.54, 0.1, 0.2, c.light, turn=0.35)


def umbrella(pen: Pen, c: Shades) -> None:
    pen.line(((0, -0.9), (0, 0.72)), 0.09, WOOD_EDGE)
    pen.arc(0.18, 0.72, 0.18, 0.2, 0, 180, 0.09, WOOD_EDGE)
    dome = arc_points(0, 0, 0.98, 0.82, 180, 360, 24)
    scallops = [arc_points(x, 0, 0.245, 0.14, 0, -180, 8) for x in (0.735, 0.245, -0.245, -0.735)]
    pen.polygon(np.vstack((dome, *scallops)), c.main)
    for x in (-0.49, 0.49):
        pen.line(((x, -0.02), (x * 0.7, -0.5), (0, -0.82)), 0.05, c.deep)


def ball(pen: Pen, c: Shades) -> None:
    pen.disc(0, 0, 0.88, WHITE)
    for start in (-90, 30, 150):
        rim = arc_points(0, 0, 0.88, 0.88, start, start + 60, 14)
        pen.polygon(np.vstack(([[0, 0]], rim)), c.main)
    pen.line(arc_points(0, 0, 0.88, 0.88, 0, 360, 40), 0.06, c.deep)
    pen.disc(0, 0, 0.16, WHITE)


def gift(pen: Pen, c: Shades) -> None:
    ribbon: Rgb = (250, 214, 90)
    pen.box(-0.74, -0.16, 0.74, 0.9, c.main)
    pen.box(-0.86, -0.4, 0.86, -0.08, c.main)
    pen.box(-0.13, -0.4, 0.13, 0.9, ribbon)
    for side in (-1, 1):
        pen.ellipse(side * 0.32, -0.64, 0.34, 0.2, ribbon, side * -0.4)
    pen.disc(0, -0.52, 0.14, ribbon)


def bell(pen: Pen, c: Shades) -> None:
    pen.disc(0, 0.74, 0.2, c.shade)
    pen.disc(0, -0.84, 0.14, c.shade)
    outline = [(0, -0.8), (0.4, -0.6), (0.5, -0.04), (0.66, 0.4), (0.86, 0.6), (0.4, 0.68), (0, 0.68)]
    pen.blob(mirrored(outline), c.main)
    pen.ellipse(-0.22, -0.26, 0.09, 0.26, c.light, turn=0.12)


def book(pen: Pen, c: Shades) -> None:
    pen.round_box(-0.72, -0.9, 0.72, 0.9, 0.1, c.main)
    pen.box(-0.56, 0.66, 0.7, 0.82, WHITE)
    pen.line(((-0.5, -0.84), (-0.5, 0.84)), 0.06, c.deep)
    pen.box(-0.26, -0.6, 0.46, -0.2, WHITE)
    pen.line(((-0.12, -0.4), (0.32, -0.4)), 0.07, STEEL)


def lamp(pen: Pen, c: Shades) -> None:
    pen.line(((0, 0), (0, 0.86)), 0.12, STEEL)
    pen.ellipse(0, 0.88, 0.46, 0.11, STEEL)
    pen.ellipse(0, 0.1, 0.24, 0.17, (255, 238, 160))
    pen.polygon(((-0.36, -0.88), (0.36, -0.88), (0.76, 0.08), (-0.76, 0.08)), c.main)


def candle(pen: Pen, c: Shades) -> None:
    pen.ellipse(0, 0.84, 0.66, 0.14, STEEL)
    pen.round_box(-0.3, -0.2, 0.3, 0.84, 0.06, c.main)
    pen.line(((0, -0.2), (0, -0.38)), 0.06, INK)
    pen.blob(mirrored([(0, -1.0), (0.2, -0.62), (0.2, -0.42), (0, -0.3)]), (253, 190, 60))
    pen.ellipse(0, -0.46, 0.08, 0.12, (255, 244, 190))


def key(pen: Pen, c: Shades) -> None:
    pen.disc(0, -0.52, 0.46, c.main)
    pen.line(((0, -0.2), (0, 0.9)), 0.24, c.main)
    for y in (0.56, 0.86):
        pen.line(((0, y), (0.36, y)), 0.2, c.main)
    pen.disc(0, -0.56, 0.19, mix(c.deep, INK, 0.5))
