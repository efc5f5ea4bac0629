"""What the decoder is asked for: prompts, grid, sampling parameters, seeds and verifier, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from hawk.decoding.arguments import shown
from hawk.decoding.grid import Grid
from hawk.decoding.relaxed import LOSSY, Relaxation
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.verify import LOSSLESS
from hawk.errors import HawkError

MAX_SEED = 2**63 - 1


@runtime_checkable
class Condition(Protocol):
    """The prompts of a batch of images, read by the model's text encoder or tokenizer; what `Target.prefill` takes."""

    def __len__(self) -> int: ...

    def rows(self, rows: slice) -> Condition: ...


@dataclass(frozen=True)
class Request:
    """Images to draw together: image i has row i of `conditions` and `seeds[i]`; all of them share the rest.

    `relaxation` belongs to the verifier "relaxed", the only lossy one, and to no other.

    Raises:
        HawkError: no image, a seed that is out of range, an unknown verifier, or a relaxation for a lossless one.
    """

    conditions: Condition
    grid: Grid
    params: SamplingParams
    seeds: Sequence[int]
    verifier: str = "coupled"
    relaxation: Relaxation | None = None

    def __post_init__(self) -> None:
        if len(self.conditions) != len(self.seeds) or not self.seeds:
            raise HawkError(f"{len(self.conditions)} prompts need as many seeds, not {len(self.seeds)}")
        check_seeds(self.seeds)
        check_verifier(self.verifier)
        if (self.relaxation is not None) != (self.verifier in LOSSY):
            raise HawkError("a relaxation goes with the verifier relaxed, and with no other")

    @property
    def images(self) -> int:
        """How many images are asked for."""
        return len(self.seeds)

    @property
    def tokens(self) -> int:
        """How many tokens all images have."""
        return self.images * self.grid.size

    @property
    def drafts_for(self) -> str:
        """The lossless verifier whose drafts this verifier needs: relaxed verification needs what `residual` needs."""
        return "residual" if self.verifier in LOSSY else self.verifier

    def check_drafts(self, lossless_with: Sequence[str]) -> None:
        """Raise `HawkError` unless drafts that carry enough for these verifiers do so for the request's verifier."""
        if self.drafts_for not in lossless_with:
            needed = " or ".join(lossless_with)
            raise HawkError(
                f"this method's drafts need the verifier {needed}, not {self.verifier}: choose it, or another method"
            )

    def rows(self, rows: slice) -> Request:
        """The same request for some of its images."""
        return replace(self, conditions=self.conditions.rows(rows), seeds=self.seeds[rows])


def check_verifier(name: Any) -> None:
    """Raise `HawkError` for what is no verifier's name."""
    if not isinstance(name, str) or name not in (*LOSSLESS, *LOSSY):
        names = ", ".join(LOSSLESS)
        raise HawkError(f"unknown verifier {shown(name)}: choose one of {names}, or (lossy) relaxed")


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise `HawkError` for a seed that is out of range."""
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            instead = ": leave seed out for a random one" if seed == -1 else ""
            raise HawkError(f"a seed must be between 0 and 2^63 - 1, not {shown(seed)}{instead}")
