"""What the pipeline asks of a loaded model, whatever its family: `bundle.LoadedModel` is one, `targets` hold others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from hawk.decoding.grid import Grid
from hawk.decoding.planning import TimedTarget
from hawk.decoding.request import Condition
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.methods import DraftedTarget
from hawk.drafters.parts import DraftParts


@runtime_checkable
class ImageTarget(TimedTarget, DraftedTarget, Protocol):
    """A target that is decoded, timed and drafted for."""

    @property
    def parameter_count(self) -> int: ...


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
