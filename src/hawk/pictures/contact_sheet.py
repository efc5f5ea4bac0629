"""Contact sheets: pictures in a grid, each with its caption below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hawk.errors import HawkError

GAP = 8
FONT_SIZE = 13


def contact_sheet(
    images: Sequence[NDArray[np.uint8]], captions: Sequence[str], columns: int, scale: int = 1
) -> Image.Image:
    """Lay pictures out on a white sheet of `columns` columns, each with its caption below.

    Args:
        images: uint8 arrays of one shape [height, width, 3].
        captions: one for each image; long ones are wrapped to the image's width.
        columns: images per row.
        scale: the factor by which images are enlarged, without smoothing.

    Raises:
        HawkError: there is no image, shapes differ, a caption is missing, or `columns` or `scale` is below 1.
    """
    if not images or len(images) != len(captions) or len({image.shape for image in images}) != 1:
        raise HawkError(
            f"a sheet needs images of one shape, each with a caption: got {len(images)} and {len(captions)}"
        )
    if columns < 1 or scale < 1:
        raise HawkError(f"columns is {columns} and scale is {scale}: both must be at least 1")
    font = ImageFont.load_default(FONT_SIZE)
    height, width = (side * scale for side in images[0].shape[:2])
    letters = max(1, int(width / font.getlength("n")))
    wrapped = [textwrap.wrap(caption, letters) for caption in captions]
    line = FONT_SIZE + 4
    cell_height = height + max(len(lines) for lines in wrapped) * line + 2 * GAP
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * cell_height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, lines) in enumerate(zip(images, wrapped, strict=True)):
        left, top = GAP + number % columns * (width + GAP), GAP + number // columns * cell_height
        picture = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(picture, (left, top))
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline=(225, 225, 225))
        for row, text in enumerate(lines):
            draw.text((left, top + height + 4 + row * line), text, fill=(40, 40, 40), font=font)
    return sheet
