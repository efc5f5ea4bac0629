"""How far the pictures of each method are from the nearest reference: tells pictures that a model has memorised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hawk.evaluation.metrics import nearest_real
from hawk.evaluation.scoring import ByPrompt, ReferenceSample


@dataclass(frozen=True)
class NearestRow:
    """Quantiles of the distance to the nearest reference: of a method's images, or between references (`method` "")."""

    method: str
    images: int
    quantiles: dict[str, float]


QUANTILES = {"least": 0.0, "1%": 0.01, "10%": 0.1, "median": 0.5, "90%": 0.9}
"""The quantiles of a `NearestRow`, by their names in reports."""


def nearest_rows(drawn: Mapping[str, ByPrompt], references: ReferenceSample) -> list[NearestRow]:
    """How far the pictures of each method are from the nearest reference, and references from each other, first."""
    rows: list[NearestRow] = []
    for method, features in drawn.items():
        found = nearest_real(references.features, features.flatten(0, 1))
        if not rows:
            rows.append(_nearest_row("", found.real))
        rows.append(_nearest_row(method, found.drawn))
    return rows


def _nearest_row(method: str, distances: Float[Tensor, " n"]) -> NearestRow:
    return NearestRow(method, len(distances), {name: float(distances.quantile(q)) for name, q in QUANTILES.items()})
