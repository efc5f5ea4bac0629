"""Plots by matplotlib, a package of the extra `eval`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from hawk.errors import HawkError, install
from hawk.files import replacing


def figure_class(instead: str = "") -> Any:
    """matplotlib's `Figure`; if matplotlib is missing, a `HawkError` that ends with what a user may do `instead`."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise HawkError(f"plots need matplotlib: {install('eval')}{instead}") from None
    return Figure


def save_figure(figure: Any, path: Path, dpi: int = 120, colours: int | None = None) -> None:
    """Write a figure to a PNG file, completely or not at all; with a palette of `colours` the file is a third as large.

    Raises OSError where the disk is full.
    """
    with replacing(path) as temporary:
        if colours is None:
            figure.savefig(temporary, dpi=dpi, format="png")
            return
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=dpi, format="png")
        with Image.open(drawn) as image:
            image.convert("RGB").quantize(colours).save(temporary, "PNG", optimize=True)
