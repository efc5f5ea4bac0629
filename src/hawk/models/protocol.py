"""The interface between the pipeline and a loaded model: `FolderModel` and `TransformersModel` implement it."""

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
    """A target that the pipeline can decode, whose forwards it can time, and for which drafters can propose."""

    @property
    def parameter_count(self) -> int: ...

    @property
    def blocks(self) -> nn.ModuleList: ...


@runtime_checkable
class Model(Protocol):
    """A target, the text side that turns prompts into its conditions, and the decoder that turns its codes into pixels.

    `grid` is drawn when a call names no size; `cell` is the side of a token in pixels. `defaults` are the sampling
    parameters of a call that names none. `modules` must be moved when the model moves to another device. `drafting`
    holds the trained drafters, None if there are none; `fingerprint` is the mark of the target that a drafter folder
    must carry.
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
        """Raise `HawkError` for a grid that the model cannot draw."""
        ...

    def condition(self, prompts: Sequence[str], negatives: Sequence[str], grid: Grid) -> Condition:
        """The condition of a batch of images, one prompt and one negative prompt for each.

        An empty negative prompt stands for the model's own unconditional prompt. Raises `HawkError` for a prompt that
        the model cannot read.
        """
        ...

    def pixels(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        """Images of token grids, in [-1, 1]."""
        ...

    def facts(self) -> dict[str, Any]:
        """Facts about the model's parts, for `hawk info`."""
        ...
