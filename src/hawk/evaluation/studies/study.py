"""What a study is, what it is given, and the images that all studies look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

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
"""Called after each image that a study has drawn."""


@dataclass(frozen=True)
class Setting:
    """What a study draws: `images` of the built-in prompts in turn, image i with the seed `seed + i`.

    `beside` is the method that studies of acceptance show beside `hawk`.
    """

    images: int
    seed: int
    params: SamplingParams
    beside: str


@dataclass(frozen=True)
class Study:
    """A study of one property of a model.

    Attributes:
        shows: what the study shows, in one line.
        images: how many images it draws unless the caller says otherwise.
        draws: how many images it draws in all, for a progress bar.
        measure: draws, and returns the figures as a dataclass. Raises `HawkError` where the model lacks a drafter.
        plot: fills an empty figure of matplotlib.
        size: the size of that figure in inches.
    """

    name: str
    shows: str
    images: int
    draws: Callable[[HawkPipeline, Setting], int]
    measure: Callable[[HawkPipeline, Setting, OnImage], Any]
    plot: Callable[[Any, Any], None]
    size: tuple[float, float]


def one_draw_each(pipe: HawkPipeline, setting: Setting) -> int:
    """`Study.draws` of a study that draws each image once."""
    return setting.images


@dataclass(frozen=True)
class StudyImage:
    """An image that the target drew, with its prompt. `pixels` are in [0, 1]."""

    prompt: str
    tokens: Int[Tensor, "1 n"]
    pixels: Float[Tensor, "3 height width"]
    output: PipelineOutput


def draw(
    pipe: HawkPipeline, setting: Setting, method: str, number: int, params: SamplingParams | None = None, **call: Any
) -> StudyImage:
    """Image `number` of a setting by a method; `params` replace the setting's, `call` goes to the pipeline."""
    params = params or setting.params
    prompts = built_in_prompts().items
    prompt = prompts[number % len(prompts)].prompt
    output = pipe(
        prompt,
        seed=setting.seed + number,
        method=method,
        guidance_scale=params.cfg_scale,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        output_type="pt",
        **call,
    )
    assert isinstance(output, PipelineOutput)
    return StudyImage(prompt, output.tokens.to(pipe.device), output.images[0], output)


def drawn_images(pipe: HawkPipeline, setting: Setting, on_image: OnImage) -> Iterator[StudyImage]:
    """The images of a setting, which follow the target's own distribution: `hawk`, which draws them, is lossless."""
    for number in range(setting.images):
        image = draw(pipe, setting, "hawk", number)
        on_image()
        yield image


@dataclass(frozen=True)
class TargetView:
    """What the target says of an image that it drew: the guided state before each token, and log p of each token."""

    states: Float[Tensor, "n d"]
    log_p: Float[Tensor, "n vocab"]

    @property
    def entropy(self) -> Float[Tensor, " n"]:
        """The entropy of p at each token, in nats."""
        return -torch.special.xlogy(self.log_p.exp(), self.log_p.exp()).sum(-1)


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
    """A mean over images with its standard error (0 for a single image)."""

    value: float
    error: float

    @classmethod
    def of(cls, values: list[float]) -> Mean:
        """The mean of one value for each image."""
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
