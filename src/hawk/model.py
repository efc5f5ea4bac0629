"""What the pipeline asks of a loaded model, whatever its family: `bundle.LoadedModel` is one, `targets` hold others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hawk.drafters.methods import DraftedTarget
from hawk.drafters.parts import DraftParts
from hawk.forward import Target
from hawk.grid import Grid
from hawk.sampling import SamplingParams


@runtime_checkable
class Condition(Protocol):
    """The prompts of a batch of images, read by the model's text encoder or tokenizer; what `Target.prefill` takes."""

    def __len__(self) -> int: ...

    def rows(self, rows: slice) -> Condition: ...


@runtime_checkable
class ImageTarget(Target, DraftedTarget, Protocol):
    """A target that is decoded and drafted for. `dtype` is that of its matrix products, keys and values."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def grid(self) -> Grid: ...

    @property
    def parameter_count(self) -> int: ...

    def blank_prompt(self) -> Condition:
        """A prompt of one image, and of no meaning: what forwards are timed behind."""
        ...


@runtime_checkable
class Model(Protocol):
    """A target with what turns prompts into its conditions and its codes into pixels.

    `grid` is what it draws where nothing else is asked for, `cell` the side of a token in pixels. `modules` are what
    moves to a device. `drafting` is None where no drafter is trained, `fingerprint` what a drafter must be trained for.
    """

    @property
    def name(self) -> str: ...

    @property
    def target(self) -> ImageTarget: ...

    @property
    def grid(self) -> Grid: ...

    @property
    def cell(self) -> int: ...

    @property
    def defaults(self) -> SamplingParams: ...

    @property
    def drafting(self) -> DraftParts | None: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def modules(self) -> list[nn.Module]: ...

    def check_grid(self, grid: Grid) -> None:
        """`HawkError` for a grid that the model cannot draw."""
        ...

    def condition(self, prompts: Sequence[str], negatives: Sequence[str], grid: Grid) -> Condition:
        """The prompts of as many images; "" among `negatives` is the model's own unconditional prompt.

        Raises `HawkError` for a prompt that it cannot read.
        """
        ...

    def pixels(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        """Images of token grids, in [-1, 1]."""
        ...

    def facts(self) -> dict[str, Any]:
        """What `hawk info` tells of its parts."""
        ...
