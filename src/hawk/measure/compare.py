"""`hawk compare`: one prompt drawn by plain AR and by Hawk with one seed, timed and shown side by side."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hawk.decoding.canvas import RECOVERED
from hawk.errors import HawkError
from hawk.pipeline import HawkPipeline, PipelineOutput

PANEL = 384
"""Pixels that an image of the picture is enlarged to, about; the other lengths are in pixels too."""
MARGIN = 36
GAP = 28
INK, SOFT, FAINT = (28, 30, 34), (98, 104, 112), (226, 229, 233)
GOOD, BAD = (20, 128, 74), (190, 40, 40)
RECOVERED_COLOUR = (222, 224, 228)
# Safe for the colour-blind (Okabe and Ito). A source has the same colour in every picture.
SOURCE_COLOURS = {
    "horizontal": (230, 159, 0),
    "vertical-1": (0, 114, 178),
    "vertical-2": (86, 180, 233),
    "spatial": (0, 158, 115),
    "stale": (204, 121, 167),
    "above": (0, 114, 178),
}
OTHER_COLOURS = ((213, 94, 0), (120, 94, 160), (240, 228, 66))
SOURCE_MEANINGS = {
    "horizontal": "drafted from the left (horizontal)",
    "vertical-1": "drafted from the row above (vertical-1)",
    "vertical-2": "drafted from two rows above (vertical-2)",
    "spatial": "drafted from the cells around it (spatial)",
    "stale": "the model's own earlier guess (stale)",
    "above": "the cell above, repeated (above)",
}


@dataclass(frozen=True)
class Run:
    """The image of one method, and the median of its wall-clock seconds."""

    method: str
    output: PipelineOutput
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """The images of plain AR and of Hawk for one prompt and one seed."""

    prompt: str
    seed: int
    plain: Run
    hawk: Run

    @property
    def speedup(self) -> float:
        """Seconds of plain AR over seconds of Hawk."""
        return self.plain.seconds / self.hawk.seconds

    @property
    def differing(self) -> int:
        """Number of tokens in which the two images differ."""
        return int((self.plain.output.tokens != self.hawk.output.tokens).sum())


def compare(
    pipe: HawkPipeline, prompt: str, seed: int, repeats: int = 3, on_image: Callable[[], None] | None = None
) -> Comparison:
    """Draw the prompt by both methods in turns: once as a warm-up, then `repeats` times.

    `on_image` is called after every image. Raises `HawkError` if `repeats` is below 1.
    """
    if repeats < 1:
        raise HawkError(f"repeats must be 1 or more, not {repeats}")
    methods = ("ar", "hawk")
    outputs: dict[str, PipelineOutput] = {}
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for turn in range(repeats + 1):
        for method in methods:
            with pipe.timed():
                output = pipe(prompt, seed=seed, method=method)
            assert isinstance(output, PipelineOutput)
            outputs[method] = output
            if turn:
                seconds[method].append(output.seconds[0])
            if on_image:
                on_image()
    plain, hawk = (Run(method, outputs[method], statistics.median(seconds[method])) for method in methods)
    return Comparison(prompt, seed, plain, hawk)


# --- the picture ---------------------------------------------------------------------------------------------


def draw_comparison(comparison: Comparison, model: str) -> Image.Image:
    """A picture of three panels: plain AR's image, Hawk's image, and which source supplied each token of Hawk's image.

    Figures and a legend are below the panels; `model` is the name in the subtitle.
    """
    plain, hawk = comparison.plain, comparison.hawk
    columns = [
        ("Plain decoding", plain.output.images[0], _figures(plain)),
        ("Hawk", hawk.output.images[0], _figures(hawk)),
        ("How Hawk got each token", acceptance_map(hawk.output), []),
    ]
    counts = origin_counts(hawk.output)
    panel_height = max(_scaled(image).height for _, image, _ in columns)
    width = 2 * MARGIN + sum(_scaled(image).width for _, image, _ in columns) + 2 * GAP
    top = MARGIN + 84
    below = top + 30 + panel_height + 16
    height = below + max(3, len(counts)) * 26 + 78
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    title = _fitting(f"“{comparison.prompt}”", 32, width - 2 * MARGIN)
    draw.text((MARGIN, MARGIN - 8), title, fill=INK, font=_font(32))
    subtitle = f"seed {comparison.seed}  ·  model {model}  ·  {hawk.output.grid.size} image tokens"
    draw.text((MARGIN, MARGIN + 36), subtitle, fill=SOFT, font=_font(17))
    left = MARGIN
    for heading, image, lines in columns:
        picture = _scaled(image)
        draw.text((left, top), heading, fill=INK, font=_font(20))
        sheet.paste(picture, (left, top + 30))
        draw.rectangle((left - 1, top + 29, left + picture.width, top + 30 + picture.height), outline=FAINT)
        for row, line in enumerate(lines):
            draw.text((left, below + row * 26), line, fill=INK if row == 0 else SOFT, font=_font(18))
        if not lines:
            _legend(draw, left, below, counts, hawk.output.grid.size)
        left += picture.width + GAP
    _footer(draw, comparison, height)
    return sheet


def acceptance_map(output: PipelineOutput) -> Image.Image:
    """The cells of the first image, each in the colour of the source whose draft was accepted.

    The image itself is faintly visible as shading.
    """
    grid, origins = output.grid, output.origins[0].tolist()
    side = max(4, PANEL // max(grid.height, grid.width))
    image = Image.new("RGB", (grid.width * side, grid.height * side), "white")
    draw = ImageDraw.Draw(image)
    colours = source_colours(output.source_names)
    for position, origin in enumerate(origins):
        x, y = position % grid.width * side, position // grid.width * side
        colour = RECOVERED_COLOUR if origin == RECOVERED else colours[output.source_names[origin]]
        draw.rectangle((x, y, x + side - 2, y + side - 2), fill=colour)
    shading = output.images[0].convert("L").resize(image.size, Image.Resampling.LANCZOS)
    shade = 0.8 + 0.2 * np.asarray(shading, dtype=np.float32)[..., None] / 255
    return Image.fromarray((np.asarray(image) * shade).astype(np.uint8))


def origin_counts(output: PipelineOutput) -> list[tuple[str, int]]:
    """How many cells of the first image each source supplied, in the order of the sources; "recovered" comes last."""
    counts = Counter(output.origins[0].tolist())
    named = [(name, counts[index]) for index, name in enumerate(output.source_names) if counts[index]]
    return [*named, ("recovered", counts[RECOVERED])]


def source_colours(names: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
    """The colour of each source."""
    others = [name for name in names if name not in SOURCE_COLOURS]
    spare = {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(others)}
    return {name: SOURCE_COLOURS.get(name) or spare[name] for name in names}


def _figures(run: Run) -> list[str]:
    output = run.output
    forwards = f"{output.nfe:.0f} forwards of the model (NFE)"
    return [f"{run.seconds:.2f} s", forwards, f"accept length {output.accept_length:.2f} (tokens a forward)"]


def _legend(draw: ImageDraw.ImageDraw, left: int, top: int, counts: list[tuple[str, int]], cells: int) -> None:
    colours = source_colours(tuple(name for name, _ in counts))
    for row, (name, count) in enumerate(counts):
        y = top + row * 26
        colour = RECOVERED_COLOUR if name == "recovered" else colours[name]
        draw.rectangle((left, y + 3, left + 16, y + 19), fill=colour)
        meaning = "drawn by the model itself (recovered)" if name == "recovered" else SOURCE_MEANINGS.get(name, name)
        draw.text((left + 66, y), f"{count / cells:.0%}", fill=INK, font=_font(17), anchor="ra")
        draw.text((left + 76, y), meaning, fill=INK, font=_font(17))


def _footer(draw: ImageDraw.ImageDraw, comparison: Comparison, height: int) -> None:
    cells, differing = comparison.hawk.output.grid.size, comparison.differing
    faster = f"{comparison.speedup:.2f}x as fast as plain decoding"
    if differing:
        same, colour = f"Identical: no, {differing} of {cells} tokens differ", BAD
    else:
        same, colour = f"Identical: yes, all {cells} tokens", GOOD
    y = height - MARGIN - 26
    draw.line((MARGIN, y - 16, draw.im.size[0] - MARGIN, y - 16), fill=FAINT, width=1)
    draw.text((MARGIN, y), same, fill=colour, font=_font(22))
    draw.text((MARGIN + draw.textlength(same, _font(22)) + 40, y), faster, fill=INK, font=_font(22))


def _scaled(image: Image.Image) -> Image.Image:
    """The image, enlarged by a whole factor so that its longer side has about `PANEL` pixels."""
    factor = max(1, round(PANEL / max(image.size)))
    size = (image.width * factor, image.height * factor)
    return image if factor == 1 else image.resize(size, Image.Resampling.LANCZOS)


def _fitting(text: str, size: int, width: int) -> str:
    """The text, cut short with an ellipsis if it is wider than `width` pixels at this font size."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…”") > width:
        text = text[:-1]
    return text + "…”"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
