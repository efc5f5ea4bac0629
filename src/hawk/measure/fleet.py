"""What images cost on GPUs, computed: a model of a step's seconds that is fitted to measured steps, forwards, a price.

The seconds of a step over `nodes` positions of each of `images` images that are drawn together:

    step = overhead + window * [nodes > 1] + image * images + sqrt(read^2 + (row * nodes * images)^2)

`read` is the time to read the target's weights once and is given with the measurements; the other four are fitted. The
square root lies above the longer of reading and arithmetic, and near it where one of them is much longer: a roofline
without its corner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from hawk.errors import HawkError

TERMS = ("overhead", "window", "image")
"""The terms of a step in which it is linear."""


@dataclass(frozen=True)
class MeasuredStep:
    """The measured seconds of a step of one target over `nodes` positions of each of `images` images."""

    nodes: int
    images: int
    seconds: float


@dataclass(frozen=True)
class StepModel:
    """Seconds of the parts of a step.

    Attributes:
        read: reading the weights once.
        overhead: what every step takes beyond it, as kernels that follow one another.
        window: what a step of more than one node takes beyond one of a single node.
        image: what each image adds, however many nodes it has.
        row: the arithmetic of one node of one image (under guidance, of its two rows).
    """

    read: float
    overhead: float
    window: float
    image: float
    row: float

    def seconds(self, nodes: int, images: int) -> float:
        """The seconds of a step over so many nodes of each of so many images."""
        roofline = float(np.hypot(self.read, self.row * nodes * images))
        return self.overhead + self.window * (nodes > 1) + self.image * images + roofline


@dataclass(frozen=True)
class FittedSteps:
    """A fitted model, and its errors relative to the measured seconds.

    `residual` is their root mean square and `worst` the largest of them; `left_out` is the largest error at a step that
    the model was not fitted on, each step left out in turn.
    """

    model: StepModel
    residual: float
    worst: float
    left_out: float


def fit_steps(measured: Sequence[MeasuredStep], read: float) -> FittedSteps:
    """The model with the least squares of relative errors and no negative part.

    For a given `row` the model is linear in its other parts.

    Raises:
        HawkError: there are no more steps than parameters.
    """
    if len(measured) < len(TERMS) + 2:
        raise HawkError(f"a step model has {len(TERMS) + 1} parameters: measure more steps than that of a target")
    model = _fitted(measured, read)
    errors = _errors(model, measured)
    others = [(_fitted([*measured[:i], *measured[i + 1 :]], read), [measured[i]]) for i in range(len(measured))]
    left_out = max(abs(float(_errors(*each)[0])) for each in others)
    return FittedSteps(model, float(np.sqrt(np.mean(errors**2))), float(np.abs(errors).max()), left_out)


def _fitted(measured: Sequence[MeasuredStep], read: float) -> StepModel:
    """The model of least squares; its `row` is searched for, from coarse to fine."""
    low, high = -12.0, 0.0  # powers of ten of the longest step
    longest = max(step.seconds for step in measured)
    while high - low > 1e-5:
        grid = np.linspace(low, high, 41)
        models = [_fitted_for(measured, read, longest * 10.0**power) for power in grid]
        best = min(range(len(grid)), key=lambda i: _residual(models[i], measured))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return _fitted_for(measured, read, longest * 10.0 ** ((low + high) / 2))


def _fitted_for(measured: Sequence[MeasuredStep], read: float, row: float) -> StepModel:
    """The model with this `row`: the best of those in which some of the other parts are zero and none is negative."""
    seconds = np.array([step.seconds for step in measured])
    columns = np.array([[1.0, step.nodes > 1, step.images] for step in measured])
    rest = seconds - np.hypot(read, [row * step.nodes * step.images for step in measured])
    best = StepModel(read, 0.0, 0.0, 0.0, row)
    for kept in (c for size in range(1, len(TERMS) + 1) for c in combinations(range(len(TERMS)), size)):
        found = np.linalg.lstsq(columns[:, kept] / seconds[:, None], rest / seconds, rcond=None)[0]
        if (found >= 0).all():
            parts = dict.fromkeys(TERMS, 0.0) | {TERMS[k]: float(v) for k, v in zip(kept, found, strict=True)}
            best = min(best, StepModel(read=read, row=row, **parts), key=lambda model: _residual(model, measured))
    return best


def _errors(model: StepModel, measured: Sequence[MeasuredStep]) -> np.ndarray:
    return np.array([model.seconds(step.nodes, step.images) / step.seconds - 1 for step in measured])


def _residual(model: StepModel, measured: Sequence[MeasuredStep]) -> float:
    return float((_errors(model, measured) ** 2).sum())


# --- what was measured ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A target on a grid of `tokens` tokens: its measured steps, and the seconds to read its weights once."""

    name: str
    tokens: int
    read: float
    steps: tuple[MeasuredStep, ...]


def shapes_of(document: Mapping[str, Any]) -> list[Shape]:
    """The shapes in a document of `hawk bench --suite steps --json-out`, or in benchmarks/gpu.json (engine `graph`).

    Shapes with no more steps than the model has parameters are left out. Raises `HawkError` for another document.
    """
    if "costs" in document:
        rows = [
            (
                (cost["target"], *cost["grid"]),
                cost["floor"],
                MeasuredStep(cost["nodes"], cost["images"], cost["step"] + cost["noise"]),
            )
            for cost in document["costs"]
        ]
    elif "steps" in document:
        rows = [
            (
                (row["target"], *map(int, row["grid"].split("x"))),
                row["floor_ms"] / 1e3,
                MeasuredStep(row["nodes"], row["images"], row["step_ms"] / 1e3),
            )
            for row in document["steps"]["rows"]
            if row["engine"] == "graph"
        ]
    else:
        raise HawkError("no measured steps: give the file that hawk bench --suite steps --json-out wrote")
    reads: dict[tuple[Any, ...], float] = {}
    steps: dict[tuple[Any, ...], list[MeasuredStep]] = {}
    for shape, read, step in rows:
        reads.setdefault(shape, read)
        steps.setdefault(shape, []).append(step)
    return [
        Shape(f"{name}, {height}x{width}", height * width, reads[name, height, width], tuple(measured))
        for (name, height, width), measured in steps.items()
        if len(measured) > len(TERMS) + 1
    ]


# --- what images cost -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """How a GPU draws: nodes of a step, tokens committed per forward (1 for `ar`), and images drawn together."""

    nodes: int
    accept_length: float
    images: int


@dataclass(frozen=True)
class Cost:
    """What a GPU does and what that costs: the latency of an image is `seconds`, since images are drawn together."""

    step: float
    forwards: float
    seconds: float
    images_per_second: float
    dollars_per_million: float

    def to_json(self) -> dict[str, float]:
        """The cost as JSON values."""
        return asdict(self)


def cost_of(model: StepModel, tokens: int, drawing: Drawing, price: float, beside: float = 0.0) -> Cost:
    """The cost of images of so many tokens on a GPU of `price` dollars an hour.

    `beside` is the seconds of an image outside its steps: captions, pixels, files.
    """
    step, forwards = model.seconds(drawing.nodes, drawing.images), forwards_of(tokens, drawing.accept_length)
    seconds = step * forwards + beside * drawing.images
    rate = drawing.images / seconds
    return Cost(step, forwards, seconds, rate, dollars_per_million(rate, price))


def forwards_of(tokens: int, accept_length: float) -> float:
    """Forwards of the target for an image, the one over its prompt included."""
    return max(1.0, tokens / accept_length)


def dollars_per_million(images_per_second: float, price: float) -> float:
    """Dollars for a million images at so many images per second, for `price` dollars an hour."""
    return price / 3600 / images_per_second * 1e6
