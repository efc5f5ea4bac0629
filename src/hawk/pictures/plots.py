"""Plots by matplotlib, a package of the extra `eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hawk.errors import HawkError, install
from hawk.files import replacing


def figure_class(instead: str = "") -> Any:
    """matplotlib's `Figure`; if matplotlib is missing, a `HawkError` that ends with what a user may do `instead`."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise HawkError(f"plots need matplotlib: {install('eval')}{instead}") from None
    return Figure


def save_figure(figure: Any, path: Path, dpi: int = 120) -> None:
    """Write a figure to a PNG file, completely or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
