"""Headers of images in prompts: where a family's prompts state the size of the image, and how that size is read."""

from __future__ import annotations

import re

from hawk.decoding.grid import Grid

BEGIN_IMAGE = "<racm3:break>"
"""Begin-of-image in Chameleon's vocabulary, which is Lumina-mGPT's too."""

FIRST_SIDE = 8801
"""The number of the reserved token with which Lumina-mGPT writes a side of one square of 2x2 image tokens."""

EMU3_HEADER = re.compile(r"<\|image start\|>([1-9][0-9]{0,3})\*([1-9][0-9]{0,3})<\|image token\|>")
"""Emu3's header: begin-of-image, height*width in tokens, begin-of-image-tokens."""

LUMINA_HEADER = re.compile(re.escape(BEGIN_IMAGE) + r"<reserved([0-9]{5})><reserved([0-9]{5})>$")


def emu3_grid(prompt: str) -> Grid | None:
    """The grid in the last header of Emu3 in a prompt as its vocabulary spells it; None without a header."""
    found = EMU3_HEADER.findall(prompt)
    return Grid(*map(int, found[-1])) if found else None


def lumina_header(grid: Grid) -> tuple[str, ...]:
    """Lumina-mGPT's header: begin-of-image, height and width, both counted in squares of 2x2 tokens."""
    sides = (f"<reserved{FIRST_SIDE + side // 2 - 1:05d}>" for side in (grid.height, grid.width))
    return (BEGIN_IMAGE, *sides)


def lumina_grid(prompt: str) -> Grid | None:
    """The grid in the header of Lumina-mGPT at the end of a prompt; None without a header."""
    found = LUMINA_HEADER.search(prompt)
    sides = [2 * (int(side) - FIRST_SIDE + 1) for side in found.groups()] if found else [0]
    return Grid(*sides) if min(sides) > 0 else None
