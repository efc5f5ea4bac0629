"""The lossy verifier: LANTERN's relaxed acceptance (arXiv 2410.03355). It does NOT keep the target's distribution.

A draft is credited with its own probability and with that of tokens that look alike. Image codes are interchangeable
to a degree, and a target that spreads its mass over many similar codes rejects each single one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hawk.decoding.tree import DraftTree
from hawk.decoding.verify import Verdict, needs_draws, walk
from hawk.errors import HawkError

LOSSY = ("relaxed",)
"""Names of the verifiers that change the target's distribution."""

ROWS = 1024
"""Number of tokens whose distances are computed together."""


@dataclass(frozen=True)
class Relaxation:
    """How far acceptance is relaxed: the nearest tokens of each token, and how much of their mass a draft may claim.

    Moving the claimed mass to the drafted token changes p by at most `delta` in total variation. This does not
    bound the drift of the drawn tokens, since every drafted token may claim that much. The drift at a node is bounded
    by the chance that relaxed verification accepts a draft which lossless verification rejects; at delta 0 it is zero.
    The defaults are those of the authors' program.
    """

    neighbours: Int[Tensor, "vocab k"]
    delta: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.delta <= 1:
            raise HawkError(f"delta must be between 0 (lossless) and 1, not {self.delta}")

    @classmethod
    def between(cls, vectors: Float[Tensor, "vocab d"], k: int = 1000, delta: float = 0.1) -> Relaxation:
        """Find the `k` nearest other tokens of each token, by the cosine between `vectors` (embeddings or codes).

        There are fewer than `k` where the vocabulary is smaller. Raises `HawkError` for k below 1.
        """
        if k < 1:
            raise HawkError(f"k must be 1 or more neighbours, not {k}")
        unit = F.normalize(vectors.float(), dim=-1)
        nearest = []
        for first in range(0, len(unit), ROWS):
            alike = unit[first : first + ROWS] @ unit.T
            alike.diagonal(first).fill_(-torch.inf)
            nearest.append(alike.topk(min(k, len(unit) - 1)).indices)
        return cls(torch.cat(nearest), delta)

    def claim(self, p: Float[Tensor, " vocab"], token: int) -> Float[Tensor, ""]:
        """p(token) plus the mass of its nearest tokens, as many as together have a mass of at most `delta`."""
        mass = p[self.neighbours[token]].cumsum(0)
        return p[token] + (mass * (mass <= self.delta)).amax()


def relaxed(
    tree: DraftTree, scores: Float[Tensor, "b n vocab"], generators: list[torch.Generator], relaxation: Relaxation
) -> list[Verdict]:
    """Residual verification with relaxed acceptance: LOSSY.

    After a rejection, the residual is that of the lossless rule. (The authors' program does not subtract q near a
    rejected draft; the lossless residual drifts less.) Raises as `residual` does.
    """
    needs_draws(tree)
    return [walk(tree, row, scores[row], generator, relaxation.claim) for row, generator in enumerate(generators)]
