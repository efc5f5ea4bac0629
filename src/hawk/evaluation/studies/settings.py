"""The study `settings`: accept length against temperature, CFG scale, top-k and the size of the grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.errors import HawkError
from hawk.evaluation.studies.acceptance import check_drafters
from hawk.evaluation.studies.study import Album, Mean, Setting, Study
from hawk.pipeline import HawkPipeline

TEMPERATURES = (0.2, 0.6, 1.0, 1.4)
CFG_SCALES = (1.0, 3.0, 6.0)
TOP_KS = (10, 100, 0)
SIDES = (0.5, 1.0, 1.5)
"""Sides of the grid, as multiples of the model's own."""
AXES = {"temperature": "temperature", "cfg_scale": "CFG scale", "top_k": "top-k", "grid": "tokens of the image"}


@dataclass(frozen=True)
class Place:
    """One value of one axis: the sampling parameters and the grid that images are drawn with there."""

    axis: str
    at: float
    params: SamplingParams
    grid: Grid


@dataclass(frozen=True)
class Point:
    """The accept length of a method at one value of an axis; `at` 0 of top-k stands for all tokens."""

    axis: str
    at: float
    method: str
    accept_length: Mean


@dataclass(frozen=True)
class SettingsFigures:
    """All points; away from its own axis, a point has the parameters of the study and the model's own grid."""

    points: list[Point]


def places_of(pipe: HawkPipeline, setting: Setting) -> list[Place]:
    """The values of all axes that the model can draw; the study's own value is on each axis, too."""
    params, own = setting.params, pipe.model.grid
    found = []
    for axis, values in (("temperature", TEMPERATURES), ("cfg_scale", CFG_SCALES), ("top_k", TOP_KS)):
        vocab = pipe.model.target.vocab_size
        allowed = {value for value in values if axis != "top_k" or value < vocab} | {getattr(params, axis)}
        for value in sorted(allowed):
            changed: dict[str, Any] = {axis: value}
            found.append(Place(axis, float(value), replace(params, **changed), own))
    for side in SIDES:
        grid = Grid(max(1, round(own.height * side)), max(1, round(own.width * side)))
        try:
            pipe.model.check_grid(grid)
        except HawkError:
            continue
        found.append(Place("grid", float(grid.size), params, grid))
    return found


def distinct(pipe: HawkPipeline, setting: Setting) -> list[tuple[SamplingParams, Grid]]:
    """What has to be drawn; the study's own setting lies on every axis and is drawn once."""
    return list(dict.fromkeys((place.params, place.grid) for place in places_of(pipe, setting)))


def methods_of(setting: Setting) -> tuple[str, ...]:
    """`hawk`, and a method beside it where the caller names one."""
    return tuple(dict.fromkeys(("hawk", setting.beside or "hawk")))


def draws(pipe: HawkPipeline, setting: Setting) -> int:
    """How often the study asks for an image."""
    return len(distinct(pipe, setting)) * setting.images * len(methods_of(setting))


def measure(album: Album) -> SettingsFigures:
    """Draw the same images at every value of every axis."""
    pipe, setting = album.pipe, album.setting
    methods = methods_of(setting)
    check_drafters(pipe, "settings", methods)
    found = {}
    for params, grid in distinct(pipe, setting):
        for method in methods:
            drawn = [album.image(number, method, params, grid) for number in range(setting.images)]
            found[params, grid, method] = Mean.of([image.accept_length for image in drawn])
    return SettingsFigures(
        [
            Point(place.axis, place.at, method, found[place.params, place.grid, method])
            for place in places_of(pipe, setting)
            for method in methods
        ]
    )


def plot(figure: Any, found: SettingsFigures) -> None:
    """One small plot for each axis; its values stand at equal distances."""
    for axes, (axis, label) in zip(figure.subplots(1, 4, sharey=True), AXES.items(), strict=True):
        here = [point for point in found.points if point.axis == axis]
        values = sorted({point.at for point in here}, key=lambda at: (axis == "top_k" and at == 0, at))
        for method in dict.fromkeys(point.method for point in here):
            own = {point.at: point.accept_length for point in here if point.method == method}
            means, errors = [own[at].value for at in values], [own[at].error for at in values]
            axes.errorbar(range(len(values)), means, errors, marker="o", capsize=3, label=method)
        axes.set_xticks(range(len(values)), ["all" if axis == "top_k" and not at else f"{at:g}" for at in values])
        axes.set_xlabel(label)
        axes.grid(True, alpha=0.3)
    first = figure.axes[0]
    first.set_ylim(bottom=0)  # all axes share it, so it is set when all points are drawn
    first.set_ylabel("accept length, tokens a forward")
    first.legend(fontsize=8)


SETTINGS = Study(
    "settings",
    "accept length against temperature, CFG scale, top-k and grid size",
    4,
    draws,
    measure,
    plot,
    (11, 3.4),
)
