"""`hawk bench --suite steps`: what a step of window decoding takes, against its bare forward and the memory's floor.

A step is timed in the middle of an image, window by window: its forward, the rest of it (choosing, drafting, the
cache), the noise of the tokens it commits. On a GPU the steps are replayed recordings, as in decoding. The floor is
the time to read the weights once, at the bandwidth that a large copy reaches here.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from hawk.decoding.forward import Nodes, forward, guided_logits, guided_state
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.noise import NOISE_BLOCK, GumbelNoise
from hawk.decoding.planning import MidImage
from hawk.decoding.recording import Engine, recorded
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.stats import Generation
from hawk.decoding.tree import Window
from hawk.decoding.window import advance, enter
from hawk.machine import seconds_of
from hawk.measure.methods import environment
from hawk.measure.prompts import BENCH_PROMPTS
from hawk.measure.scaling import MOST_BYTES, SHAPES, random_target, weight_bytes
from hawk.models.protocol import ImageTarget
from hawk.pipeline import HawkPipeline

REACHES = (0, 7, 15, 23, 31, 63)
SIDES = (24, 32)
"""Of the grids that the large shapes are timed on."""
COPIED = 256 << 20
"""Bytes of the copy that measures the memory's bandwidth."""


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step over `nodes` positions in the middle of an image.

    `forward` is the target's layers and output head over as many nodes, `draft` is what fills the window up, `noise` is
    drawn for the tokens that a step commits (`committed`, measured on the model's own images; 0: unknown, one counted).
    """

    target: str
    grid: tuple[int, int]
    nodes: int
    step: float
    forward: float
    draft: float
    noise: float
    floor: float
    committed: float

    @property
    def over_forward(self) -> float:
        """The whole step over its bare forward."""
        return (self.step + self.noise) / self.forward

    @property
    def drafting(self) -> float:
        """The share of a step that drafting takes."""
        return self.draft / (self.step + self.noise)


@dataclass(frozen=True)
class StepsResult:
    """All costs; how many of `images` were drawn as by plain AR, and as by plain AR at the window's own shape."""

    costs: list[StepCost]
    left_out: list[str]
    bandwidth: float
    images: int
    identical: int
    identical_in_shape: int
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The JSON document that the command ends with."""
        costs = [{**asdict(c), "over_forward": c.over_forward, "drafting": c.drafting} for c in self.costs]
        return {**asdict(self), "costs": costs}


def run_steps(
    pipe: HawkPipeline,
    shapes: Sequence[str] | None = None,
    images: int = 4,
    repeats: int = 21,
    on_progress: Callable[[str], None] = lambda what: None,
) -> StepsResult:
    """Time the model's own steps, and those of `shapes` (names of `scaling.SHAPES`) with made-up weights.

    `shapes` None: the large ones on a GPU, none on a CPU.
    """
    if shapes is None:
        shapes = ("775M", "7B") if pipe.device.type == "cuda" else ()
    target, bandwidth = pipe.model.target, copy_bandwidth(pipe.device)
    images_at = {reach: [drawn_by(pipe, Window(reach), turn) for turn in range(images)] for reach in REACHES}
    drawn = {reach: accept_length(found) for reach, found in images_at.items()}
    on_progress(f"{images} images")
    how = bandwidth, repeats, pipe.engine
    costs = step_costs(target, pipe.model.name, pipe.model.grid, pipe.defaults, drawn, *how)
    on_progress(pipe.model.name)
    left_out = []
    for name in shapes:
        needed = weight_bytes(SHAPES[name])
        if pipe.device.type == "cpu" and needed > MOST_BYTES:
            left_out.append(f"{name}: its weights need {needed / 1e9:.0f} GB in float32")
            continue
        made_up = random_target(SHAPES[name], pipe.device)
        for side in SIDES:
            grid, unknown = Grid(side, side), dict.fromkeys((0, 63), 0.0)
            params = replace(pipe.defaults, cfg_scale=max(pipe.defaults.cfg_scale, 1.5))
            costs += step_costs(made_up, name, grid, params, unknown, bandwidth, max(3, repeats // 4), pipe.engine)
            on_progress(f"{name}, {side}x{side}")
    wide = max(REACHES)
    in_shape = [drawn_by(pipe, Window(wide, keeps=False), turn) for turn in range(min(images, 2))]
    return StepsResult(
        costs,
        left_out,
        bandwidth,
        images,
        equal_images(images_at[0], images_at[wide]),
        equal_images(in_shape, images_at[wide][: len(in_shape)]),
        environment(pipe, images, 1, 1, {}),
    )


def step_costs(
    target: ImageTarget,
    name: str,
    grid: Grid,
    params: SamplingParams,
    committed: dict[int, float],
    bandwidth: float,
    repeats: int,
    engine: Engine,
) -> list[StepCost]:
    """What a step takes at each reach, by turns; `committed` tokens a step where that is known (else 0)."""
    starts = {reach: MidImage.of(target, grid, params, reach, engine) for reach in committed}
    parts = {reach: timed_calls(target, start, engine) for reach, start in starts.items()}
    runs: dict[int, list[list[float]]] = {reach: [] for reach in committed}
    for turn in range(repeats + 2):
        for reach, start in starts.items():
            seconds = [start.seconds(part) for part in parts[reach]]
            if turn > 1:  # the first turns warm up
                runs[reach].append(seconds)
    a_position, floor = noise_seconds(target), weight_bytes_of(target) / bandwidth
    costs = []
    for reach, found in runs.items():
        step, forward, draft = (statistics.median(column) for column in zip(*found, strict=True))
        noise = a_position * max(committed[reach], 1.0)
        shape = (grid.height, grid.width)
        costs.append(StepCost(name, shape, reach + 1, step, forward, draft, noise, floor, committed[reach]))
    return costs


def timed_calls(target: ImageTarget, start: MidImage, engine: Engine) -> list[Callable[[], Any]]:
    """A step, its bare forward with the output head, and its drafting; on a GPU recordings of them."""
    state = start.state
    reach = state.window.reach
    positions = state.committed[:, None] + torch.arange(-1, reach, device=target.device)
    tokens, last = state.tokens.gather(1, positions), positions[:, -1:] + 1

    def step() -> None:
        advance(target, state, reach)

    def bare_forward() -> None:
        nodes = Nodes(tokens, positions, state.chain)
        hidden = forward(target, nodes, state.padding, state.cache, state.grid, state.params)
        guided_logits(target, hidden, guided_state(hidden, state.params), state.params)

    def draft() -> None:
        if reach:
            enter(state, last, reach)

    return [recorded(call, engine) for call in (step, bare_forward, draft)]


def noise_seconds(target: ImageTarget) -> float:
    """Seconds to draw the noise of one position, in blocks as in decoding."""
    like = torch.empty(0, device=target.device)
    noise = GumbelNoise([0], 64 * NOISE_BLOCK, target.vocab_size, like)
    ends = [(block * NOISE_BLOCK, (block + 1) * NOISE_BLOCK) for block in range(64)]
    return statistics.median(seconds_of(partial(noise.hold, 0, *each), target.device) for each in ends) / NOISE_BLOCK


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy moves here, read and written."""
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    copy = partial(torch.empty_like(source).copy_, source)
    return 2 * COPIED / statistics.median(seconds_of(copy, device) for _ in range(7))


def weight_bytes_of(target: ImageTarget) -> float:
    """Bytes of weights that a forward reads, in the dtype of its products."""
    return float(target.parameter_count * target.dtype.itemsize)


def accept_length(drawn: list[Generation]) -> float:
    """Tokens a forward over some images."""
    return sum(each.stats.committed for each in drawn) / sum(each.stats.nfe for each in drawn)


def equal_images(some: list[Generation], others: list[Generation]) -> int:
    """How many have the same tokens."""
    return sum(torch.equal(a.tokens, b.tokens) for a, b in zip(some, others, strict=True))


def drawn_by(pipe: HawkPipeline, window: Window, turn: int) -> Generation:
    """One image of a window's; prompts and seeds are told apart by the turn."""
    model, prompt = pipe.model, BENCH_PROMPTS[turn % len(BENCH_PROMPTS)]
    request = Request(pipe.condition([prompt]), model.grid, pipe.defaults, [turn])
    return generate(model.target, request, window, recordings=pipe.recordings)
