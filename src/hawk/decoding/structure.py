"""Structure tokens: tokens between image tokens that the grid forces, such as an end-of-row token.

The canvas, the drafters and the verifiers see image tokens only. In the target's forward, a node in the last column
stands for its own token and for the structure tokens after it. Structure tokens therefore cost no draft and no step,
and they are never rejected. The state of such a node is the state of its last entry, which predicts the first token of
the next row.
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
        """The number of entries of an image before the token at each position."""
        return positions + len(self.end_of_row) * (positions // grid.width)

    def extra(self, grid: Grid, nodes: int) -> int:
        """How many more cache entries than nodes are needed, for an image and a tree of `nodes` nodes."""
        return len(self.end_of_row) * (grid.height + nodes)

    def of_chain(self, nodes: int, grid: Grid) -> int:
        """The most entries that `nodes` consecutive positions can have, wherever they begin."""
        return nodes + len(self.end_of_row) * -(-nodes // grid.width)


@dataclass(frozen=True)
class Layout:
    """The entries of a forward. Rows with fewer entries than others are padded with entries that see only themselves.

    `owner` is the node of an entry, -1 for padding. `offset` is 0 for the node's own token and i for structure token
    i - 1. `before` counts the image's entries before an entry. `last` is the entry whose state is the node's state.
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
    """The entries of tree nodes, in the order of the nodes.

    `entries` is the number of entries of each row, padding included; None takes as many as are needed, for which the
    host must read the device.
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
