"""What a report shows as pictures: thumbnails as data URIs, and plots as inline SVG.

A plot is drawn in percent of its width, so that it fits a phone without small letters, and takes its colours from the
page's style sheet, so that it follows the reader's dark or light setting.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, features

from hawk.errors import HawkError, one_line

SIDE = 224
"""Longest side of the mosaic of one prompt and method, in pixels."""
TILES = 4
"""Most images of a prompt in a mosaic."""
QUALITY = 80
MOST_BYTES = 1_700_000
"""Most bytes of all thumbnails of a page together, as text."""


def mosaic(paths: Sequence[Path]) -> Image.Image:
    """The first `TILES` pictures in a square of at most `SIDE` pixels; one picture alone fills the square.

    Raises `HawkError` for a file that is no picture.
    """
    columns = 1 if len(paths) == 1 else 2
    shown = paths[: columns * columns]
    tiles = []
    for path in shown:
        try:
            with Image.open(path) as picture:
                tiles.append(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise HawkError(f"{path} is no picture that can be read ({one_line(error)}): remove it") from error
    width, height = tiles[0].size
    scale = min(SIDE / (columns * max(width, height)), 1.0)
    width, height = max(round(width * scale), 1), max(round(height * scale), 1)
    sheet = Image.new("RGB", (width * columns, height * -(-len(tiles) // columns)), "white")
    for number, tile in enumerate(tiles):
        small = tile.resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(small, (number % columns * width, number // columns * height))
    return sheet


def data_uri(image: Image.Image) -> str:
    """An image as a data URI: WebP, or JPEG where the picture library has no WebP."""
    kind = "WEBP" if features.check("webp") else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=QUALITY)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def galleries(
    pictures: Sequence[tuple[str, Mapping[str, Sequence[Path]]]], labels: Mapping[str, str], most: int = MOST_BYTES
) -> list[str]:
    """The HTML of each prompt's pictures, one mosaic a method, until `most` bytes are spent; at least one prompt."""
    found: list[str] = []
    spent = 0
    for prompt, by_method in pictures:
        cells = []
        for method, paths in by_method.items():
            sheet = mosaic(paths)
            said = escape(f"{labels[method]}: {prompt}", quote=True)
            cells.append(
                f'<figure><img src="{data_uri(sheet)}" width="{sheet.width}" height="{sheet.height}" alt="{said}">'
                f"<figcaption>{escape(labels[method])}</figcaption></figure>"
            )
        html = f'<section class="prompt"><h3>{escape(prompt)}</h3><div class="row">{"".join(cells)}</div></section>'
        if found and spent + len(html) > most:
            break
        found.append(html)
        spent += len(html)
    return found


@dataclass(frozen=True)
class Scale:
    """Maps values to percent of a plot's width."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float]) -> Scale:
        """A scale that holds all values, with a margin at both ends."""
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or 0.06 * abs(high) or 0.5
        return cls(low - margin, high + margin)

    def at(self, value: float) -> float:
        """Where a value lies, in percent."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(100 * share, 2)


def interval_plot(rows: Sequence[Mapping[str, Any]], band: Sequence[float | None] | None) -> str:
    """Values with their intervals, a line a method; the AR-AR interval `band` is shaded behind them (None: open).

    `rows` are figures of one metric, as in `report.json`, with `label`.
    """
    numbers = [row[key] for row in rows for key in ("value", "low", "high") if row[key] is not None]
    if not numbers:
        return ""
    scale = Scale.around([*numbers, *(end for end in band or () if end is not None)])
    return "".join(_line(row, scale, band) for row in rows)


def _line(row: Mapping[str, Any], scale: Scale, band: Sequence[float | None] | None) -> str:
    """One method of an interval plot: its name, its mark on the scale, and its numbers."""
    kind = {True: "inside", False: "outside", None: "plain"}[row["inside"]]
    marks = []
    if band is not None:
        low, high = band
        left = 0.0 if low is None else scale.at(low)
        right = 100.0 if high is None else scale.at(high)
        marks.append(f'<rect class="band" x="{left}%" y="0" width="{max(right - left, 0.5):.2f}%" height="100%"/>')
    if row["low"] is not None and row["high"] is not None:
        ends = f'x1="{scale.at(row["low"])}%" x2="{scale.at(row["high"])}%"'
        marks.append(f'<line class="whisker" {ends} y1="50%" y2="50%"/>')
    if row["value"] is not None:
        marks.append(f'<circle cx="{scale.at(row["value"])}%" cy="50%" r="5"/>')
    said = f"{row['label']}: {with_interval(row)}"
    return (
        f'<div class="line {kind}"><span class="name">{escape(row["label"])}</span>'
        f'<svg role="img" aria-label="{escape(said, quote=True)}">{"".join(marks)}</svg>'
        f'<span class="number">{with_interval(row)}</span></div>'
    )


def with_interval(row: Mapping[str, Any]) -> str:
    """A value and its interval as text, such as "0.51 [0.48, 0.55]"; the value alone where there is no interval."""
    value, low, high = (short(row[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if row["low"] is not None and row["high"] is not None else value


def short(number: float | None) -> str:
    """A number in three or four digits."""
    if number is None:
        return "none"
    if abs(number) < 1e-12:  # rounding
        return "0"
    if 1e-4 <= abs(number) < 1e4:
        return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"
    return f"{number:.1e}"
