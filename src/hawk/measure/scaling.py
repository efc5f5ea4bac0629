"""`hawk bench --suite scaling`: how cost grows with the window, the image, the batch and the model.

Times an image against its window, its tokens and the images drawn together, and a step against its nodes; steps also
of LlamaGen shapes with made-up weights, for the cost side of models that are not here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hawk.decoding.planning import step_seconds
from hawk.decoding.recording import Engine
from hawk.errors import HawkError
from hawk.machine import seconds_of
from hawk.measure.methods import environment
from hawk.models.llamagen.target import LlamaGen, LlamaGenConfig
from hawk.models.protocol import ImageTarget
from hawk.nn.packed import fast_dtype, worth_packing
from hawk.pipeline import HawkPipeline

NODES = WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128)
SIDES = (16, 24, 32, 48)
BATCHES = (1, 2, 4, 8, 16)
SHAPES = {
    "10M": LlamaGenConfig(dim=256, n_layer=10, n_head=4),
    "100M": LlamaGenConfig(dim=768, n_layer=12, n_head=12),
    "775M": LlamaGenConfig(),
    "7B": LlamaGenConfig(dim=4096, n_layer=32, n_head=32, vocab_size=65536, height=24, width=24),
}
SHAPE_NODES = (1, 8, 64)
MOST_BYTES = 6 << 30
"""Weights of a shape that are still made up and measured."""
PROMPT = "a red apple on a blue background"


@dataclass(frozen=True)
class Cost:
    """Seconds of one `unit` (a step or an image) of `series` at `at` on an axis: step, window, tokens or batch."""

    axis: str
    series: str
    at: int
    seconds: float
    unit: str


@dataclass(frozen=True)
class ScalingResult:
    """All costs; what was left out and why; `exponents[series]` k of time ~ tokens^k; and the machine."""

    costs: list[Cost]
    left_out: list[str]
    exponents: dict[str, float]
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The JSON document that the command ends with."""
        return asdict(self)


def run_scaling(
    pipe: HawkPipeline, repeats: int = 5, on_progress: Callable[[str], None] = lambda what: None
) -> ScalingResult:
    """Measure every axis on a loaded model's machine."""
    costs = step_costs(pipe.model.target, pipe.model.name, NODES, repeats, pipe.engine)
    on_progress("steps")
    for window in WINDOWS:
        costs += image_costs(pipe, "window", window, repeats=3, methods=("hawk",), window=window)
    on_progress("windows")
    for side in SIDES:
        pixels = side * pipe.model.cell
        costs += image_costs(pipe, "tokens", side * side, repeats=1, height=pixels, width=pixels)
        on_progress(f"{side}x{side} tokens")
    for batch in BATCHES:
        costs += image_costs(pipe, "batch", batch, repeats=1, batch=batch)
        on_progress(f"batch {batch}")
    left_out = []
    for name, shape in SHAPES.items():
        needed = weight_bytes(shape)
        if needed > MOST_BYTES:
            left_out.append(f"{name}: its weights need {needed / 1e9:.0f} GB in float32")
            continue
        target = random_target(shape, pipe.device)
        costs += step_costs(target, name, SHAPE_NODES, max(1, repeats // 2), pipe.engine)
        on_progress(f"shape {name}")
    by_series = {name: [c for c in costs if c.axis == "tokens" and c.series == name] for name in ("ar", "hawk")}
    exponents = {name: growth(found) for name, found in by_series.items()}
    return ScalingResult(costs, left_out, exponents, environment(pipe, 1, 1, 1, {}))


def step_costs(
    target: ImageTarget, series: str, nodes: tuple[int, ...], repeats: int, engine: Engine = "eager"
) -> list[Cost]:
    """Median seconds of a guided step of window decoding at each width: its forward, and what chooses and drafts."""
    seconds = step_seconds(target, list(nodes), repeats, engine)
    return [Cost("step", series, width, median, "step") for width, median in seconds.items()]


def image_costs(
    pipe: HawkPipeline,
    axis: str,
    at: int,
    repeats: int,
    batch: int = 1,
    methods: tuple[str, ...] = ("ar", "hawk"),
    **asked: Any,
) -> list[Cost]:
    """Median seconds an image of each method, by turns; `asked` of the pipeline."""
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for turn in range(repeats):
        for method, runs in seconds.items():
            call = partial(pipe, [PROMPT] * batch, seed=turn, method=method, batch_size=batch, **asked)
            runs.append(seconds_of(call, pipe.device) / batch)
    return [Cost(axis, method, at, statistics.median(runs), "image") for method, runs in seconds.items()]


def weight_bytes(shape: LlamaGenConfig) -> int:
    """Bytes of a shape's weights in float32."""
    with torch.device("meta"):
        return 4 * LlamaGen(shape).parameter_count


def random_target(shape: LlamaGenConfig, device: torch.device) -> LlamaGen:
    """A target of that shape whose weights are small constants: only its time is asked for."""
    with torch.device("meta"):
        target = LlamaGen(shape)
    target = target.to_empty(device=device).requires_grad_(False).eval()
    for parameter in target.parameters():
        parameter.fill_(0.01)
    if device.type == "cpu" and worth_packing(target, fast_dtype()):
        target.pack(fast_dtype())
    return target


def growth(costs: list[Cost]) -> float:
    """k of seconds ~ at^k, by least squares over the logarithms."""
    if len(costs) < 2:
        raise HawkError("growth needs two sizes or more")
    logs = [(math.log(cost.at), math.log(cost.seconds)) for cost in costs]
    slope, _ = statistics.linear_regression([x for x, _ in logs], [y for _, y in logs])
    return round(slope, 3)


def draw_plots(result: ScalingResult, folder: Path) -> list[Path]:
    """One PNG for each axis, both scales logarithmic. Raises `HawkError` where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator
    except ImportError:
        raise HawkError("plots need matplotlib: pip install 'hawk-t2i[eval]', or leave out --plots") from None
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
        figure = Figure(figsize=(6, 4), layout="constrained")
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
        figure.savefig(path, dpi=120)
        written.append(path)
    return written
