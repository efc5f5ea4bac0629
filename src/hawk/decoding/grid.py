"""Grid: image tokens in raster order, position <-> (row, column)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """`height x width` image tokens; `position = row * width + col`."""

    height: int
    width: int

    @property
    def size(self) -> int:
        """Number of tokens of an image."""
        return self.height * self.width

    def coordinates(self, positions: Int[Tensor, "*b"]) -> Int[Tensor, "*b 2"]:
        """(row, column) of each position."""
        return torch.stack((positions // self.width, positions % self.width), dim=-1)

    def position(self, row: int, col: int) -> int:
        """Position of a cell."""
        return row * self.width + col
