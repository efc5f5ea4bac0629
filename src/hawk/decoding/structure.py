"""Structure tokens: what a model writes between image tokens and everybody knows beforehand, such as an end of row.

Canvas, drafters and verifiers see the grid alone. A node in the last column stands, in the target's forward, for its
token and the structure tokens after it: they cost no draft, no step, and are never rejected. The node's state is that
of its last entry, which predicts the first token of the next row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hawk.decoding.grid import Grid


@dataclass(frozen=True)
class Structure:
    """`end_of_row` are the tokens (of the model's own vocabulary) that follow each row but the last."""

    end_of_row: tuple[int, ...] = ()

    def before(self, positions: Int[Tensor, "*b"], grid: Grid) -> Int[Tensor, "*b"]:
        """How many entries of an image stand before the token at each position."""
        return positions + len(self.end_of_row) * (positions // grid.width)

    def extra(self, grid: Grid, nodes: int) -> int:
        """How many more entries than nodes a cache must hold for an image and trees of that many nodes together."""
        return len(self.end_of_row) * (grid.height + nodes)

    def of_chain(self, nodes: int, grid: Grid) -> int:
        """Entries that so many consecutive positions have at most, wherever they begin."""
        return nodes + len(self.end_of_row) * -(-nodes // grid.width)


@dataclass(frozen=True)
class Layout:
    """The entries of a forward. Rows with fewer than others are filled up with entries that see only themselves.

    `owner` is the node of an entry, -1 for filling; `offset` is 0 for the node's token and i for structure token i - 1;
    `before` counts the entries of the image before it; `last` is the entry whose state is the node's.
    """

    owner: Int[Tensor, "rows m"]
    offset: Int[Tensor, "rows m"]
    before: Int[Tensor, "rows m"]
    ancestors: Bool[Tensor, "rows m m"]
    last: Int[Tensor, "rows n"]

    def entries(self) -> list[list[list[int]]]:
        """The entries of each node of each row, in order."""
        found: list[list[list[int]]] = []
        for row in self.owner.tolist():
            nodes: list[list[int]] = [[] for _ in range(self.last.shape[1])]
            for entry, node in enumerate(row):
                if node >= 0:
                    nodes[node].append(entry)
            found.append(nodes)
        return found


def lay_out(
    structure: Structure,
    positions: Int[Tensor, "rows n"],
    ancestors: Bool[Tensor, "rows n n"],
    grid: Grid,
    entries: int | None = None,
) -> Layout:
    """The entries of tree nodes, each node's behind those of the node before it.

    `entries` is how many there are with the filling; None is as many as are needed, which the host must read.
    """
    ends_row = (positions % grid.width == grid.width - 1) & (positions < grid.size - 1)
    count = 1 + len(structure.end_of_row) * ends_row
    stop = count.cumsum(1)
    places = torch.arange(int(stop.max()) if entries is None else entries, device=positions.device)
    places = places.expand(len(positions), -1).contiguous()
    owner = torch.searchsorted(stop, places, right=True)
    filling = owner == positions.shape[1]
    owner = owner.clamp(max=positions.shape[1] - 1)
    offset = places - (stop - count).gather(1, owner)
    of_node = ancestors.gather(1, owner[:, :, None].expand(-1, -1, ancestors.shape[2]))
    seen = of_node.gather(2, owner[:, None, :].expand(-1, places.shape[1], -1))
    same = owner[:, :, None] == owner[:, None, :]
    seen &= ~same | (offset[:, None, :] <= offset[:, :, None])
    seen &= ~filling[:, :, None] & ~filling[:, None, :]
    seen |= torch.eye(places.shape[1], dtype=torch.bool, device=positions.device)
    before = structure.before(positions, grid).gather(1, owner) + offset
    return Layout(
        owner=owner.masked_fill(filling, -1),
        offset=offset.masked_fill(filling, 0),
        before=before.masked_fill(filling, 0),
        ancestors=seen,
        last=stop - 1,
    )
