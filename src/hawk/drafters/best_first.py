"""Best-first draft trees: which candidates may stand below a node, and which of them are worth their time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hawk.decoding.tree import TreeBuilder
from hawk.drafters.left import LeftFactor
from hawk.drafters.settings import FusedSettings

Values = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Candidates:
    """Candidates below a node, best first, and the chance of each to be accepted if the node is accepted."""

    tokens: list[int]
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Shortlist:
    """The best candidates at each offset after the root, `[offsets, candidates]`: tokens, log q + g, and g, best first.

    `beside_left[offset]` says whether the left factor applies at an offset: not right after the root, since the sources
    know the root's token, and not in the first column, which has no left neighbour.
    """

    tokens: NDArray[np.int64]
    scores: Values
    noise: Values
    beside_left: list[bool]
    factor: LeftFactor | None
    settings: FusedSettings

    def __len__(self) -> int:
        return len(self.tokens)

    def below(self, offset: int, left: int) -> Candidates:
        """The candidates at an offset below a node that holds the token `left`."""
        ranks = len(self.settings.rate[0])
        tokens, scores = self.tokens[offset], self.scores[offset]
        if self.factor is not None and self.beside_left[offset]:
            log_q, noise = scores - self.noise[offset], self.noise[offset]
            scores = self.factor.base * log_q + self.factor.here[tokens] @ self.factor.left[left] + noise
            order = np.argsort(-scores, kind="stable")[: max(ranks, 2)]
            tokens, scores = tokens[order], scores[order]
        lead = float(scores[0] - scores[1]) if len(scores) > 1 else float("inf")
        return Candidates(tokens[:ranks].tolist(), self.settings.rates(lead))

    def best(self, offset: int, left: int) -> int:
        """The best candidate at an offset below a node that holds the token `left`."""
        return self.below(offset, left).tokens[0]


def grow_best_first(
    builder: TreeBuilder,
    below: Callable[[int, int], Candidates],
    depth: int,
    max_nodes: int,
    node_cost: float,
    root: int = 0,
) -> None:
    """Add the nodes below `root` that are likeliest to be accepted, down to `depth`.

    `below(offset, token)` gives the candidates below a node. The chance that a node is accepted is what it adds to the
    tokens expected of the step. Growth ends when the best remaining node adds less than its time is worth, which makes
    expected tokens / time largest.
    """
    above = builder.depths[root]
    first = below(above, builder.tokens[root])
    heap = [(-first.rates[0], root, above, 0, first)]
    expected, time = 1.0 + above, 1.0 + above * node_cost
    while heap and len(builder.tokens) < max_nodes:
        gain, parent, offset, rank, siblings = heapq.heappop(heap)
        if gain == 0 or -gain * time < node_cost * expected:  # no time is short enough for a node without a chance
            return
        expected, time = expected - gain, time + node_cost
        token = siblings.tokens[rank]
        node = builder.add(parent, token, source=0)
        if rank + 1 < len(siblings.tokens):
            other = gain / siblings.rates[rank] * siblings.rates[rank + 1]
            heapq.heappush(heap, (other, parent, offset, rank + 1, siblings))
        if offset + 1 < depth:
            children = below(offset + 1, token)
            heapq.heappush(heap, (gain * children.rates[0], node, offset + 1, 0, children))
