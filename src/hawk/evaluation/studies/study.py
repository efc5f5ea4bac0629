"""What a study is, what it is given, and the images that all studies look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hawk.decoding.canvas import RECOVERED
from hawk.decoding.grid import Grid
from hawk.decoding.request import Condition
from hawk.decoding.sampling import SamplingParams
from hawk.evaluation.prompt_sets import built_in_prompts
from hawk.pipeline import HawkPipeline, PipelineOutput
from hawk.training.drafters.teacher import forced_hidden, guided_states, teacher_log_p

TEMPERATURE, CFG_SCALE = 1.0, 3.0
"""What studies draw at unless the caller says otherwise, as the paper does."""

PLOT_ONLY = {"plot only": True}
"""Metadata of a field that the plot of a study shows and its JSON document leaves out."""

OnImage = Callable[[], None]
"""Called each time that a study asks for an image, when it is drawn."""


@dataclass(frozen=True)
class Setting:
    """What a study draws: `images` of the built-in prompts in turn, image i with the seed `seed + i`.

    `beside` is the method that studies of acceptance show beside `hawk`; None leaves the choice to the study.
    """

    images: int
    seed: int
    params: SamplingParams
    beside: str | None = None


@dataclass(frozen=True)
class Step:
    """One target forward: the position of the first token that it committed, and how many it committed."""

    frontier: int
    tokens: int


@dataclass(frozen=True)
class StudyImage:
    """An image, its prompt, and the steps that drew it after its first token. `pixels` are in [0, 1]."""

    prompt: str
    tokens: Int[Tensor, "1 n"]
    pixels: Float[Tensor, "3 height width"]
    accepted: Bool[Tensor, " n"]
    accept_length: float
    steps: list[Step]


@dataclass
class Album:
    """The images of a setting, each drawn when a study first asks for it; `on_image` is called each time it is asked.

    Several studies may look at one album. What it holds depends on the setting alone.
    """

    pipe: HawkPipeline
    setting: Setting
    on_image: OnImage = lambda: None
    kept: dict[tuple[Any, ...], StudyImage] = field(default_factory=dict)

    def image(
        self, number: int, method: str = "hawk", params: SamplingParams | None = None, grid: Grid | None = None
    ) -> StudyImage:
        """Image `number` by a method; None takes the setting's parameters and the model's own grid."""
        key = (number, method, params or self.setting.params, grid or self.pipe.model.grid)
        if key not in self.kept:
            self.kept[key] = draw(self.pipe, self.setting.seed, *key)
        self.on_image()
        return self.kept[key]

    def images(self, method: str = "hawk") -> Iterator[StudyImage]:
        """All images of a method. Those of `hawk`, which is lossless, follow the target's own distribution."""
        return (self.image(number, method) for number in range(self.setting.images))


def draw(pipe: HawkPipeline, seed: int, number: int, method: str, params: SamplingParams, grid: Grid) -> StudyImage:
    """Draw image `number`, and record its steps; `seed` is that of image 0."""
    prompts = built_in_prompts().items
    prompt = prompts[number % len(prompts)].prompt
    committed = [1]
    output = pipe(
        prompt,
        seed=seed + number,
        method=method,
        guidance_scale=params.cfg_scale,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        height=grid.height * pipe.model.cell,
        width=grid.width * pipe.model.cell,
        output_type="pt",
        callback_on_step_end=lambda _, step, total, state: committed.append(total),
    )
    assert isinstance(output, PipelineOutput)
    steps = [Step(before, after - before) for before, after in pairwise(committed) if after > before]
    accepted = output.origins[0] != RECOVERED
    return StudyImage(prompt, output.tokens.to(pipe.device), output.images[0], accepted, output.accept_length, steps)


@dataclass(frozen=True)
class Study:
    """A study of one property of a model.

    Attributes:
        shows: what the study shows, in one line.
        images: how many images it looks at unless the caller says otherwise.
        draws: how often it asks the album for an image, for a progress bar.
        measure: returns the figures as a dataclass. Raises `HawkError` where the model lacks a drafter.
        plot: fills an empty figure of matplotlib.
        size: the size of that figure in inches.
    """

    name: str
    shows: str
    images: int
    draws: Callable[[HawkPipeline, Setting], int]
    measure: Callable[[Album], Any]
    plot: Callable[[Any, Any], None]
    size: tuple[int | float, int | float]


def one_draw_each(pipe: HawkPipeline, setting: Setting) -> int:
    """`Study.draws` of a study that looks at each image of `hawk` once."""
    return setting.images


@dataclass(frozen=True)
class TargetView:
    """What the target says of an image that it drew: the guided state before each token, and log p of each token."""

    states: Float[Tensor, "n d"]
    log_p: Float[Tensor, "n vocab"]

    @property
    def entropy(self) -> Float[Tensor, " n"]:
        """The entropy of p at each token, in nats."""
        return torch.special.entr(self.log_p.exp()).sum(-1)


def target_view(pipe: HawkPipeline, image: StudyImage, params: SamplingParams) -> TargetView:
    """Run the target once over an image's tokens."""
    target = pipe.model.target
    hidden = forced_hidden(target, image.tokens, condition(pipe, image), pipe.model.grid, params)
    return TargetView(guided_states(hidden, params)[0], teacher_log_p(target, hidden, params)[0])


def condition(pipe: HawkPipeline, image: StudyImage) -> Condition:
    """The target's prompt of an image."""
    return pipe.condition([image.prompt])


def edge_strength(pixels: Float[Tensor, "3 height width"], grid: Grid) -> Float[Tensor, " n"]:
    """How strong the edges inside each cell are: the mean difference between neighbouring pixels' brightness."""
    gray = pixels.mean(0)
    across = F.pad((gray[:, 1:] - gray[:, :-1]).abs(), (0, 1))
    down = F.pad((gray[1:] - gray[:-1]).abs(), (0, 0, 0, 1))
    return F.adaptive_avg_pool2d((across + down)[None], (grid.height, grid.width)).flatten()


def correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Pearson's correlation; 0 where one of both is constant."""
    pair = torch.stack((a, b)).double()
    pair = pair - pair.mean(1, keepdim=True)
    norms = pair.norm(dim=1)
    return float((pair[0] * pair[1]).sum() / norms.prod()) if bool((norms > 1e-12).all()) else 0.0


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error (0 for a single value)."""

    value: float
    error: float

    @classmethod
    def of(cls, values: list[float]) -> Mean:
        """The mean of values: in most studies one for each image, in `entropy` one for each step or cell."""
        numbers = torch.tensor(values, dtype=torch.float64)
        error = float(numbers.std() / len(numbers) ** 0.5) if len(numbers) > 1 else 0.0
        return cls(float(numbers.mean()), error)


@dataclass(frozen=True)
class ByEdges:
    """A figure at the quarter of an image's cells with the strongest edges, and at all other cells."""

    at_edges: Mean
    elsewhere: Mean
    correlation: Mean

    @classmethod
    def of(cls, values: list[Float[Tensor, " n"]], edges: list[Float[Tensor, " n"]]) -> ByEdges:
        """From one value and one edge strength for each cell, image by image."""
        strong = []
        for edge in edges:
            mask = torch.zeros(len(edge), dtype=torch.bool)
            mask[edge.topk(max(1, len(edge) // 4)).indices] = True
            strong.append(mask)
        pairs = list(zip(values, strong, strict=True))
        return cls(
            Mean.of([float(value[mask].mean()) for value, mask in pairs]),
            Mean.of([float(value[~mask].mean()) for value, mask in pairs]),
            Mean.of([correlation(value, edge) for value, edge in zip(values, edges, strict=True)]),
        )


def rows_of(values: Float[Tensor, " n"], grid: Grid) -> list[list[float]]:
    """One number for each cell, as a list of the grid's rows."""
    rows: list[list[float]] = values.double().cpu().view(grid.height, grid.width).tolist()
    return rows


def whole_ticks(axes: Any) -> None:
    """Label the axes of a map of the grid with whole numbers."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True, nbins=9)
