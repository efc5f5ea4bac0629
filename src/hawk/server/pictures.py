"""Finished images as files in memory: PNG with metadata, JPEG, WebP."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Literal

from PIL import Image

from hawk.pictures.png import png_bytes

Format = Literal["png", "jpeg", "webp"]

QUALITY = 95
"""The quality of JPEG and WebP files where the client names none."""


def encoded(picture: Image.Image, kind: Format, metadata: Mapping[str, str], quality: int | None = None) -> str:
    """A picture as a file of that kind, in base64; only a PNG file carries metadata."""
    if kind == "png":
        content = png_bytes(picture, metadata)
    else:
        buffer = io.BytesIO()
        picture.save(buffer, kind.upper(), quality=QUALITY if quality is None else quality)
        content = buffer.getvalue()
    return base64.b64encode(content).decode("ascii")
