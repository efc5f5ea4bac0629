"""`hawk bench --suite steps`: how long the parts of a step of window decoding take.

At every window a step in the middle of an image is timed as a whole, and with it its target forward alone, its drafting
alone, and the noise of the tokens that a step commits. On a GPU the steps are replayed CUDA graphs, as in decoding. The
floor that a step is compared with is the time to read the target's weights once, at the bandwidth of a large copy.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import torch

from hawk.decoding.forward import Nodes, forward, guided_logits, guided_state
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.memory import refused_where_memory_ends
from hawk.decoding.noise import AHEAD, NOISE_BLOCK, GumbelNoise
from hawk.decoding.planning import MidImage
from hawk.decoding.recording import Engine, recorded
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.stats import Generation
from hawk.decoding.tree import Window
from hawk.decoding.window import advance, enter
from hawk.machine import seconds_of
from hawk.measure.environment import environment
from hawk.measure.prompts import BENCH_PROMPTS
from hawk.measure.scaling import MOST_BYTES, SHAPES, made_up_target, too_large, weight_bytes
from hawk.models.llamagen.target import CaptionPrompt, LlamaGen, LlamaGenConfig
from hawk.models.protocol import ImageTarget
from hawk.pipeline import HawkPipeline


@dataclass(frozen=True)
class StepsSweep:
    """The values that the steps suite measures at.

    Attributes:
        reaches: reaches of the windows, 0 for plain AR among them.
        shapes: large targets with random weights, by name.
        sides: sides of the square grids that `shapes` are timed on, in tokens.
        shape_reaches: reaches of the windows that `shapes` are timed at.
        shape_images: numbers of images, drawn together, that `shapes` are timed with.
        prompts: prompts of the model's own images, in turns.
        copied: bytes of the copy that measures the memory's bandwidth.
    """

    reaches: tuple[int, ...] = (0, 7, 15, 23, 31, 63)
    shapes: Mapping[str, LlamaGenConfig] = field(default_factory=dict)
    sides: tuple[int, ...] = (24, 32)
    shape_reaches: tuple[int, ...] = (0, 7, 15, 31, 63, 127)
    shape_images: tuple[int, ...] = (1, 4)
    prompts: tuple[str, ...] = BENCH_PROMPTS
    copied: int = 256 << 20

    @classmethod
    def on(cls, device: torch.device) -> StepsSweep:
        """The default sweep: two large shapes on a GPU, none on a CPU."""
        names = ("775M", "7B") if device.type == "cuda" else ()
        return cls(shapes={name: SHAPES[name] for name in names})


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step over `nodes` positions of each image in the middle of the images, and of its parts.

    Attributes:
        grid: height and width of an image, in tokens.
        images: images that are drawn together; guidance has two rows of the target for each.
        step: the whole step but for its noise.
        forward: the target's layers and output head over as many nodes.
        draft: filling the window with drafts.
        noise: drawing the noise of the tokens that a step commits.
        floor: reading the target's weights once.
        committed: tokens committed per step, measured on the model's own images; 0 where unknown (`noise` is then that
            of one token).
    """

    target: str
    grid: tuple[int, int]
    images: int
    nodes: int
    step: float
    forward: float
    draft: float
    noise: float
    floor: float
    committed: float

    @property
    def over_forward(self) -> float:
        """Seconds of the whole step, noise included, over those of its forward alone."""
        return (self.step + self.noise) / self.forward

    @property
    def drafting(self) -> float:
        """The share of the whole step that drafting takes."""
        return self.draft / (self.step + self.noise)


@dataclass(frozen=True)
class StepsResult:
    """All costs, the bandwidth behind their floors, and how many images the widest window drew as plain AR does.

    Attributes:
        left_out: which shapes were not measured, and why.
        bandwidth: bytes per second of a large copy, bytes read and bytes written both counted.
        identical: how many of the `images` images have the tokens of plain AR.
        identical_in_shape: how many of the first two have the tokens of plain AR run at the window's shape
            (`Window(keeps=False)`).
    """

    costs: list[StepCost]
    left_out: list[str]
    bandwidth: float
    images: int
    identical: int
    identical_in_shape: int
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The JSON document that `hawk bench` prints last."""
        costs = [{**asdict(c), "over_forward": c.over_forward, "drafting": c.drafting} for c in self.costs]
        return {**asdict(self), "costs": costs}


def run_steps(
    pipe: HawkPipeline,
    sweep: StepsSweep | None = None,
    images: int = 4,
    repeats: int = 21,
    on_progress: Callable[[str], None] = lambda what: None,
) -> StepsResult:
    """Time the steps of the pipeline's model, and those of the sweep's shapes with random weights.

    Args:
        sweep: None takes the default sweep of the pipeline's device.
        images: images that the model draws at every reach, to count the tokens committed per step.
        repeats: timed steps of the model at each reach.
        on_progress: called after each part with the name of what was measured.
    """
    sweep = sweep or StepsSweep.on(pipe.device)
    target, bandwidth = pipe.model.target, copy_bandwidth(pipe.device, sweep.copied)

    def drawn(window: Window, count: int) -> list[Generation]:
        return [drawn_by(pipe, window, sweep.prompts[seed % len(sweep.prompts)], seed) for seed in range(count)]

    images_at = {reach: drawn(Window(reach), images) for reach in sweep.reaches}
    committed = {reach: accept_length(found) for reach, found in images_at.items()}
    on_progress(f"{images} images")
    request = Request(target.blank_prompt(), pipe.model.grid, pipe.defaults, [0])
    costs = costs_by_reach(target, pipe.model.name, request, committed, bandwidth, repeats, pipe.engine)
    on_progress(pipe.model.name)
    left_out = []
    for name, shape in sweep.shapes.items():
        needed = weight_bytes(shape)
        if pipe.device.type == "cpu" and needed > MOST_BYTES:
            left_out.append(too_large(name, needed))
            continue
        made_up = made_up_target(shape, pipe.device)
        params = replace(pipe.defaults, cfg_scale=max(pipe.defaults.cfg_scale, 1.5))
        for side, images_at_once in product(sweep.sides, sweep.shape_images):
            request = made_up_request(made_up, Grid(side, side), params, images_at_once)
            for reach in sweep.shape_reaches:  # one by one: each has a KV cache of its own
                costs += costs_by_reach(
                    made_up, name, request, {reach: 0.0}, bandwidth, max(3, repeats // 4), pipe.engine
                )
            on_progress(f"{name}, {side}x{side}, {images_at_once} image{'s' if images_at_once > 1 else ''}")
    wide = max(sweep.reaches)
    in_shape = drawn(Window(wide, keeps=False), min(images, 2))
    return StepsResult(
        costs,
        left_out,
        bandwidth,
        images,
        equal_images(images_at[0], images_at[wide]),
        equal_images(in_shape, images_at[wide][: len(in_shape)]),
        environment(pipe, images, 1, 1, {}),
    )


def costs_by_reach(
    target: ImageTarget,
    name: str,
    request: Request,
    committed: dict[int, float],
    bandwidth: float,
    repeats: int,
    engine: Engine,
) -> list[StepCost]:
    """Median seconds of a step and of its parts at each reach of `committed`, the reaches in turns.

    Args:
        request: its images are drawn together, from its prompts.
        committed: from each reach to the tokens committed per step, or 0 where that is unknown.
        bandwidth: bytes per second, for the floor.
        repeats: timed steps at each reach; two more come first as a warm-up.
    """
    with refused_where_memory_ends("measure a smaller model, or choose --engine eager"):
        starts = {reach: MidImage.behind(target, request, reach, engine) for reach in committed}
        parts = {reach: timed_calls(target, start, engine) for reach, start in starts.items()}
    runs: dict[int, list[list[float]]] = {reach: [] for reach in committed}
    for turn in range(repeats + 2):
        for reach, start in starts.items():
            seconds = [start.seconds(part) for part in parts[reach]]
            if turn > 1:  # the first turns warm up
                runs[reach].append(seconds)
    per_position, floor = noise_seconds(target), bytes_read(target) / bandwidth
    costs = []
    for reach, found in runs.items():
        step, forward, draft = (statistics.median(column) for column in zip(*found, strict=True))
        noise = per_position * request.images * max(committed[reach], 1.0)
        costs.append(
            StepCost(
                name,
                (request.grid.height, request.grid.width),
                request.images,
                reach + 1,
                step,
                forward,
                draft,
                noise,
                floor,
                committed[reach],
            )
        )
    return costs


def made_up_request(target: LlamaGen, grid: Grid, params: SamplingParams, images: int) -> Request:
    """A request for images of captions that say nothing."""
    blank = target.blank_prompt()
    features, mask = (tensor.expand(images, *tensor.shape[1:]) for tensor in (blank.features, blank.mask))
    return Request(CaptionPrompt(features, mask), grid, params, list(range(images)))


def timed_calls(target: ImageTarget, start: MidImage, engine: Engine) -> list[Callable[[], Any]]:
    """A step, its forward and output head alone, and its drafting alone; on a GPU each is recorded as a CUDA graph."""
    state = start.state
    reach = state.window.reach
    positions = state.committed[:, None] + torch.arange(-1, reach, device=target.device)
    tokens, last = state.tokens.gather(1, positions), positions[:, -1:] + 1

    def step() -> None:
        advance(target, state, reach)

    def forward_alone() -> None:
        nodes = Nodes(tokens, positions, state.chain)
        hidden = forward(target, nodes, state.padding, state.cache, state.grid, state.params)
        guided_logits(target, hidden, guided_state(hidden, state.params), state.params)

    def draft() -> None:
        enter(state, last, reach)

    calls = [recorded(call, engine, target.device) for call in (step, forward_alone)]
    return [*calls, recorded(draft, engine, target.device) if reach else lambda: None]  # no graph may be empty


def noise_seconds(target: ImageTarget) -> float:
    """Seconds to draw the noise of one position; it is drawn in blocks of positions, as in decoding."""
    like, together = torch.empty(0, device=target.device), AHEAD + NOISE_BLOCK
    noise = GumbelNoise([0], 16 * together, target.vocab_size, like)
    ends = [(turn * together, (turn + 1) * together) for turn in range(16)]
    return statistics.median(seconds_of(partial(noise.hold, 0, *each), target.device) for each in ends) / together


def copy_bandwidth(device: torch.device, copied: int) -> float:
    """Bytes per second of a copy of `copied` bytes, bytes read and bytes written both counted."""
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    copy = partial(torch.empty_like(source).copy_, source)
    return 2 * copied / statistics.median(seconds_of(copy, device) for _ in range(7))


def bytes_read(target: ImageTarget) -> float:
    """Bytes of weights that a forward reads."""
    return float(target.parameter_count * target.weight_dtype.itemsize)


def accept_length(drawn: list[Generation]) -> float:
    """Tokens committed per target forward, over all of these images."""
    return sum(each.stats.committed for each in drawn) / sum(each.stats.nfe for each in drawn)


def equal_images(some: list[Generation], others: list[Generation]) -> int:
    """How many images of the first list have the same tokens as the image at their place in the second."""
    return sum(torch.equal(a.tokens, b.tokens) for a, b in zip(some, others, strict=True))


def drawn_by(pipe: HawkPipeline, window: Window, prompt: str, seed: int) -> Generation:
    """One image, drawn by window decoding with this window."""
    request = Request(pipe.condition([prompt]), pipe.model.grid, pipe.defaults, [seed])
    return generate(pipe.model.target, request, window, recordings=pipe.recordings)
