"""The colours of drawn scenes: their names, what people call them, and the shades of one colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (222, 48, 46),
    "orange": (246, 140, 36),
    "yellow": (250, 208, 52),
    "green": (62, 168, 74),
    "blue": (48, 104, 222),
    "purple": (138, 74, 198),
    "pink": (246, 134, 178),
    "brown": (142, 92, 56),
    "white": (246, 246, 244),
    "black": (40, 40, 46),
    "gray": (142, 146, 152),
    "teal": (34, 164, 164),
}

SYNONYMS: dict[str, tuple[str, ...]] = {
    "red": ("scarlet", "crimson"),
    "yellow": ("golden",),
    "purple": ("violet",),
    "pink": ("rosy",),
    "gray": ("grey",),
    "teal": ("turquoise",),
}
"""Other words for a colour; a caption takes one of them now and then."""

INK: Rgb = (44, 42, 52)
"""Eyes, mouths and other fine dark lines."""


@dataclass(frozen=True)
class Shades:
    """One colour and what is drawn beside it: its lit part, its shaded part, and its fine lines."""

    main: Rgb
    light: Rgb
    shade: Rgb
    deep: Rgb

    @classmethod
    def of(cls, main: Rgb) -> Shades:
        """The shades of a colour; on a nearly black colour, fine lines are lighter than the colour."""
        dark = brightness(main) < 60
        deep = mix(main, (150, 150, 160), 0.5) if dark else mix(main, (30, 22, 40), 0.45)
        return cls(main, mix(main, (255, 255, 255), 0.45), mix(main, (30, 22, 40), 0.2), deep)

    @property
    def ink(self) -> Rgb:
        """The colour of a face drawn on it: dark, or nearly white on a dark colour."""
        return INK if brightness(self.main) > 85 else (244, 244, 244)


def brightness(colour: Rgb) -> float:
    """Perceived brightness, 0 to 255."""
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def mix(colour: Rgb, other: Rgb, share: int | float) -> Rgb:
    """`share` of `other` in `colour`."""
    return _rgb(np.array(colour) * (1 - share) + np.array(other) * share)


def _rgb(values: np.ndarray) -> Rgb:
    red, green, blue = np.clip(values, 0, 255).round().astype(int).tolist()
    return red, green, blue
