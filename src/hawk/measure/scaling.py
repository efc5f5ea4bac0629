"""`hawk bench --suite scaling`: how the cost grows with the window, the image, the batch and the model.

The suite times an image at several windows, image sizes and batch sizes, and a step at several numbers of nodes. Steps
are also timed on LlamaGen shapes with random weights, to see what larger models would cost on this machine.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hawk.decoding.planning import step_seconds
from hawk.decoding.recording import Engine
from hawk.errors import HawkError
from hawk.machine import seconds_of
from hawk.measure.environment import environment
from hawk.models.llamagen.target import LlamaGen, LlamaGenConfig
from hawk.models.protocol import ImageTarget
from hawk.nn.packed import fast_dtype
from hawk.pictures.plots import figure_class, save_figure
from hawk.pipeline import HawkPipeline

SHAPES = {
    "10M": LlamaGenConfig(dim=256, n_layer=10, n_head=4),
    "100M": LlamaGenConfig(dim=768, n_layer=12, n_head=12),
    "775M": LlamaGenConfig(),
    "7B": LlamaGenConfig(dim=4096, n_layer=32, n_head=32, vocab_size=65536, height=24, width=24),
}
"""Shapes of LlamaGen targets, by their number of weights."""
WITHOUT_PLOTS = ", or leave out --plots"
"""What a user may do where matplotlib is missing."""
MOST_BYTES = 6 << 30
"""Largest weights, in bytes of float32, that are made up for a measurement."""


@dataclass(frozen=True)
class ScalingSweep:
    """The values that the scaling suite measures at, axis by axis.

    Attributes:
        nodes: numbers of nodes of a step of the model itself.
        windows: windows of `hawk`.
        sides: sides of square grids, in tokens.
        batches: numbers of images drawn together.
        shapes: targets with random weights, by name.
        shape_nodes: numbers of nodes of a step of each of `shapes`.
        prompt: what every image shows.
    """

    nodes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    windows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    sides: tuple[int, ...] = (16, 24, 32, 48)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    shapes: Mapping[str, LlamaGenConfig] = field(default_factory=lambda: SHAPES)
    shape_nodes: tuple[int, ...] = (1, 8, 64)
    prompt: str = "a red apple on a blue background"


@dataclass(frozen=True)
class Cost:
    """One measured point: the seconds that one `unit`, "step" or "image", takes at the value `at` of an axis.

    `axis` is "step" (`at` counts nodes), "window", "tokens" (per image) or "batch"; `series` names a method
    or a target.
    """

    axis: str
    series: str
    at: int
    seconds: float
    unit: str


@dataclass(frozen=True)
class ScalingResult:
    """All costs and the environment that they were measured in.

    `left_out` says which shapes were not measured and why; `exponents[series]` is the k of seconds ~ tokens^k.
    """

    costs: list[Cost]
    left_out: list[str]
    exponents: dict[str, float]
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The JSON document that `hawk bench` prints last."""
        return asdict(self)


def run_scaling(
    pipe: HawkPipeline,
    sweep: ScalingSweep | None = None,
    repeats: int = 5,
    on_progress: Callable[[str], None] = lambda what: None,
) -> ScalingResult:
    """Measure every axis of the sweep (None: the default one) on the machine that the pipeline runs on.

    Args:
        repeats: timed steps of the model for each number of nodes.
        on_progress: called after each part with the name of what was measured.
    """
    sweep = sweep or ScalingSweep()
    costs = costs_by_nodes(pipe.model.target, pipe.model.name, sweep.nodes, repeats, pipe.engine)
    on_progress("steps")
    timed = partial(image_costs, pipe, sweep.prompt)
    for window in sweep.windows:
        costs += timed("window", window, repeats=3, methods=("hawk",), window=window)
    on_progress("windows")
    for side in sweep.sides:
        pixels = side * pipe.model.cell
        costs += timed("tokens", side * side, repeats=1, height=pixels, width=pixels)
        on_progress(f"{side}x{side} tokens")
    for batch in sweep.batches:
        costs += timed("batch", batch, repeats=1, batch=batch)
        on_progress(f"batch {batch}")
    left_out = []
    for name, shape in sweep.shapes.items():
        needed = weight_bytes(shape)
        if needed > MOST_BYTES:
            left_out.append(too_large(name, needed))
            continue
        target = made_up_target(shape, pipe.device)
        costs += costs_by_nodes(target, name, sweep.shape_nodes, max(1, repeats // 2), pipe.engine)
        on_progress(f"shape {name}")
    by_series = {name: [c for c in costs if c.axis == "tokens" and c.series == name] for name in ("ar", "hawk")}
    exponents = {name: growth(found) for name, found in by_series.items()}
    return ScalingResult(costs, left_out, exponents, environment(pipe, 1, 1, 1, {}))


def costs_by_nodes(
    target: ImageTarget, series: str, nodes: tuple[int, ...], repeats: int, engine: Engine = "eager"
) -> list[Cost]:
    """Seconds of a guided step of window decoding, drafting included, at each number of nodes."""
    seconds = step_seconds(target, list(nodes), repeats, engine)
    return [Cost("step", series, count, least, "step") for count, least in seconds.items()]


def image_costs(
    pipe: HawkPipeline,
    prompt: str,
    axis: str,
    at: int,
    repeats: int,
    batch: int = 1,
    methods: tuple[str, ...] = ("ar", "hawk"),
    **arguments: Any,
) -> list[Cost]:
    """Median seconds per image of each method, the methods in turns; `arguments` go to the pipeline's call."""
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    first = 0 if pipe.engine == "eager" else -1  # a warm-up, in which the steps are recorded
    for turn in range(first, repeats):
        for method, runs in seconds.items():
            call = partial(pipe, [prompt] * batch, seed=max(turn, 0), method=method, batch_size=batch, **arguments)
            with pipe.timed():
                taken = seconds_of(call, pipe.device) / batch
            if turn >= 0:
                runs.append(taken)
    return [Cost(axis, method, at, statistics.median(runs), "image") for method, runs in seconds.items()]


def weight_bytes(shape: LlamaGenConfig) -> int:
    """Size of a shape's weights in float32, in bytes."""
    with torch.device("meta"):
        return 4 * LlamaGen(shape).parameter_count


def too_large(name: str, needed: int) -> str:
    """The line that says why a shape whose weights need that many bytes was left out."""
    return f"{name}: its weights need {needed / 1e9:.0f} GB in float32"


def made_up_target(shape: LlamaGenConfig, device: torch.device) -> LlamaGen:
    """A target of that shape with random weights, to time steps with; in bfloat16 unless it is on a CPU.

    The weights are random because a GPU runs faster on constants, which take it less power.
    """
    on_cpu = device.type == "cpu"
    with torch.device("meta"):
        target = LlamaGen(shape).to(torch.float32 if on_cpu else torch.bfloat16)
    target = target.to_empty(device=device).requires_grad_(False).eval()
    for parameter in target.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        else:  # the scales of the norms
            nn.init.ones_(parameter)
    if on_cpu:
        target.pack(fast_dtype())
    return target


def growth(costs: list[Cost]) -> float:
    """The exponent k of seconds ~ at^k, a least-squares fit to the logarithms; `HawkError` for fewer than two costs."""
    if len(costs) < 2:
        raise HawkError("growth needs two sizes or more")
    logs = [(math.log(cost.at), math.log(cost.seconds)) for cost in costs]
    slope, _ = statistics.linear_regression([x for x, _ in logs], [y for _, y in logs])
    return round(slope, 3)


def draw_plots(result: ScalingResult, folder: Path) -> list[Path]:
    """Write one log-log plot for each axis to a PNG and return the paths. `HawkError` if matplotlib is missing."""
    figure_of = figure_class(WITHOUT_PLOTS)
    from matplotlib.ticker import LogLocator

    folder.mkdir(parents=True, exist_ok=True)
    labels = {
        "step": "nodes in a step",
        "window": "window of hawk",
        "tokens": "tokens in an image",
        "batch": "images together",
    }
    written = []
    for axis, label in labels.items():
        here = [cost for cost in result.costs if cost.axis == axis]
        figure = figure_of(figsize=(6, 4), layout="constrained")
        seconds = f"seconds {'an image' if here[0].unit == 'image' else 'a step'}"
        plot = figure.add_subplot(xlabel=label, ylabel=seconds, xscale="log", yscale="log")
        for series in dict.fromkeys(cost.series for cost in here):
            points = [cost for cost in here if cost.series == series]
            plot.plot([c.at for c in points], [c.seconds for c in points], marker="o", label=series)
        ticks = sorted({cost.at for cost in here})
        plot.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        plot.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        plot.yaxis.set_major_formatter("{x:g}")
        plot.minorticks_off()
        plot.grid(True, alpha=0.3)
        plot.legend()
        plot.set_title(f"{result.environment['processor']}, {result.environment['threads']} threads", fontsize=9)
        path = folder / f"scaling-{axis}.png"
        save_figure(figure, path)
        written.append(path)
    return written
