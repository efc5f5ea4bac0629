"""Backgrounds of drawn scenes: what their descriptions hold, and how they are painted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from hawk.training.scenes.colours import COLOURS, Rgb, brightness, mix

DIRECTIONS = ("vertical", "horizontal", "diagonal")

GRASS: Rgb = (112, 184, 84)
SKY: Rgb = (164, 214, 246)
NIGHT: Rgb = (24, 28, 70)


@dataclass(frozen=True)
class Background:
    """What is behind the figures. `colour` is None where the pattern has colours of its own (night, meadow).

    `period` is the distance from one stripe, dot or check to the next, in sides of the picture; `phase` shifts them,
    in shares of the period, and stands for the places of stars and hills.
    """

    pattern: str
    colour: str | None
    main: Rgb
    other: Rgb
    direction: str
    period: float
    phase: tuple[float, float]


PATTERNS: dict[str, float] = {
    "plain": 0.42,
    "gradient": 0.08,
    "stripes": 0.12,
    "dots": 0.11,
    "checks": 0.07,
    "night": 0.1,
    "meadow": 0.1,
}
"""How often each pattern comes."""

CELLS = 16
"""Token cells to a side. Patterns repeat and shift by whole cells, so that each is made of few different tokens."""
PERIODS = (2, 4)
"""Distances from one stripe, dot or check to the next, in cells."""

OWN_COLOURS: dict[str, tuple[Rgb, Rgb]] = {"night": (NIGHT, (70, 66, 130)), "meadow": (GRASS, SKY)}


def sample_background(rng: np.random.Generator) -> Background:
    """A background, drawn at random."""
    pattern = str(rng.choice(list(PATTERNS), p=list(PATTERNS.values())))
    colour = None if pattern in OWN_COLOURS else str(rng.choice(list(COLOURS)))
    main, other = OWN_COLOURS[pattern] if colour is None else (COLOURS[colour], _other(COLOURS[colour]))
    direction, period = str(rng.choice(DIRECTIONS)), int(rng.choice(PERIODS))
    steps = 2**32 if pattern == "night" else max(PERIODS) if pattern == "meadow" else period
    phase = (float(rng.integers(steps) / steps), float(rng.integers(steps) / steps))
    return Background(pattern, colour, main, other, direction, period / CELLS, phase)


def _other(main: Rgb) -> Rgb:
    """The second colour of a pattern: lighter than the first, or darker where the first is bright."""
    return mix(main, (255, 255, 255), 0.33) if brightness(main) < 190 else mix(main, (20, 20, 40), 0.19)


def paint(background: Background, side: int) -> Image.Image:
    """The background as an image of `side` x `side` pixels."""
    image = Image.new("RGB", (side, side), background.main)
    _PAINTERS[background.pattern](image, background)
    return image


def _plain(image: Image.Image, background: Background) -> None:
    pass


def _gradient(image: Image.Image, background: Background) -> None:
    _blend(image, background.other, vertical=background.direction != "horizontal")


def _stripes(image: Image.Image, background: Background) -> None:
    draw, side, step = ImageDraw.Draw(image), image.width, background.period * image.width
    slant = side if background.direction == "diagonal" else 0
    for k in range(-1, int((side + slant) / step) + 2):
        a = (k + background.phase[0]) * step - slant
        b = a + step / 2
        corners = ((a, 0), (b, 0), (b + slant, side), (a + slant, side))
        flipped = background.direction == "horizontal"
        draw.polygon([(y, x) if flipped else (x, y) for x, y in corners], fill=background.other)


def _dots(image: Image.Image, background: Background) -> None:
    draw, side, step = ImageDraw.Draw(image), image.width, background.period * image.width
    r = step * 0.2
    for row in range(-1, int(side / step) + 2):
        for column in range(-1, int(side / step) + 2):
            x = (column + background.phase[0] + (row % 2) / 2) * step
            y = (row + background.phase[1]) * step
            draw.ellipse((x - r, y - r, x + r, y + r), fill=background.other)


def _checks(image: Image.Image, background: Background) -> None:
    draw, side, step = ImageDraw.Draw(image), image.width, background.period * image.width
    left, top = (share * 2 * step for share in background.phase)
    for row in range(-2, int(side / step) + 3):
        for column in range(-2 + row % 2, int(side / step) + 3, 2):
            x, y = column * step + left % (2 * step) - step, row * step + top % (2 * step) - step
            draw.rectangle((round(x), round(y), round(x + step) - 1, round(y + step) - 1), fill=background.other)


def _night(image: Image.Image, background: Background) -> None:
    _blend(image, background.other, vertical=True)
    draw, side = ImageDraw.Draw(image), image.width
    spread = np.random.default_rng(int(background.phase[0] * 2**32))
    for cell, size in zip(spread.choice(CELLS**2, 16, replace=False), spread.choice((0.007, 0.013), 16), strict=True):
        x, y, r = (cell % CELLS + 0.5) / CELLS * side, (cell // CELLS + 0.5) / CELLS * side, size * side
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 244, 206))


def _meadow(image: Image.Image, background: Background) -> None:
    draw, side = ImageDraw.Draw(image), image.width
    draw.rectangle((0, 0, side, side), fill=background.other)
    cell, far = side / CELLS, mix(background.main, (255, 255, 255), 0.22)
    horizon, x = (10 + round(background.phase[1])) * cell, background.phase[0] * side
    draw.ellipse((x - 14 * cell, horizon - 2 * cell, x + 8 * cell, horizon + side), fill=far)
    draw.ellipse((x - 6 * cell, horizon, x + 22 * cell, horizon + 26 * cell), fill=background.main)
    draw.rectangle((0, horizon + 3 * cell, side, side), fill=background.main)


def _blend(image: Image.Image, other: Rgb, vertical: bool) -> None:
    """Let `other` come in from top to bottom (or from left to right)."""
    share = Image.linear_gradient("L").resize(image.size)
    image.paste(other, (0, 0), share if vertical else share.transpose(Image.Transpose.ROTATE_90))


_PAINTERS: dict[str, Callable[[Image.Image, Background], None]] = {
    "plain": _plain,
    "gradient": _gradient,
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "night": _night,
    "meadow": _meadow,
}
