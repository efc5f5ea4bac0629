"""Backgrounds of drawn scenes: what their descriptions hold, and how they are painted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from hawk.training.scenes.colours import COLOURS, Rgb, brightness, mix, varied

DIRECTIONS = ("vertical", "horizontal", "diagonal")

GRASS: Rgb = (112, 184, 84)
SKY: Rgb = (164, 214, 246)
NIGHT: Rgb = (24, 28, 70)


@dataclass(frozen=True)
class Background:
    """What is behind the figures. `colour` is None where the pattern has colours of its own (night, meadow).

    `period` is the distance from one stripe, dot or check to the next, in sides of the picture; `phase` shifts them.
    """

    pattern: str
    colour: str | None
    main: Rgb
    other: Rgb
    direction: str
    period: float
    phase: tuple[float, float]


PATTERNS: dict[str, float] = {
    "plain": 0.36,
    "gradient": 0.14,
    "stripes": 0.12,
    "dots": 0.11,
    "checks": 0.07,
    "night": 0.1,
    "meadow": 0.1,
}
"""How often each pattern comes."""

OWN_COLOURS: dict[str, tuple[Rgb, Rgb]] = {"night": (NIGHT, (70, 66, 130)), "meadow": (GRASS, SKY)}


def sample_background(rng: np.random.Generator) -> Background:
    """A background, drawn at random."""
    pattern = str(rng.choice(list(PATTERNS), p=list(PATTERNS.values())))
    colour = None if pattern in OWN_COLOURS else str(rng.choice(list(COLOURS)))
    if colour is None:
        main, other = (varied(own, rng) for own in OWN_COLOURS[pattern])
    else:
        main = varied(COLOURS[colour], rng)
        lit = mix(main, (255, 255, 255), rng.uniform(0.28, 0.38))
        deep = mix(main, (20, 20, 40), rng.uniform(0.16, 0.22))
        other = lit if brightness(main) < 190 else deep
    direction = str(rng.choice(DIRECTIONS))
    phase = (float(rng.random()), float(rng.random()))
    return Background(pattern, colour, main, other, direction, float(rng.uniform(0.16, 0.26)), phase)


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
    for x, y, size in spread.random((16, 3)) * (side, side, 1):
        r = side * (0.006 + 0.008 * size)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 244, 206))


def _meadow(image: Image.Image, background: Background) -> None:
    draw, side = ImageDraw.Draw(image), image.width
    draw.rectangle((0, 0, side, side), fill=background.other)
    horizon, far = (0.6 + 0.1 * background.phase[1]) * side, mix(background.main, (255, 255, 255), 0.22)
    x = background.phase[0] * side
    draw.ellipse((x - 0.9 * side, horizon - 0.1 * side, x + 0.5 * side, horizon + side), fill=far)
    draw.ellipse((x - 0.4 * side, horizon, x + 1.4 * side, horizon + 1.6 * side), fill=background.main)
    draw.rectangle((0, horizon + 0.16 * side, side, side), fill=background.main)


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
