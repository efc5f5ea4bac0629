"""Canvas: the committed tokens of a batch of images and the target's states after them, as drafters see them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hawk.decoding.grid import Grid

RECOVERED = -1
"""Origin of a cell whose token is not an accepted draft (recovered or bonus token)."""


@dataclass
class Canvas:
    """Tokens in raster order, the number of committed tokens of each image, and the target's state after each token.

    `states[:, p + 1]` is the guided last hidden state after token p, which predicts token p + 1; `states[:, 0]` is the
    state after the caption. The last committed token, which is the root of the next tree, has no state yet.
    `origins[b, p]` is the index of the source whose draft was accepted at p, or `RECOVERED`.
    """

    grid: Grid
    tokens: Int[Tensor, "b n"]
    states: Float[Tensor, "b n1 d"]
    origins: Int[Tensor, "b n"]
    committed: list[int]

    @classmethod
    def blank(cls, grid: Grid, caption_state: Float[Tensor, "b d"]) -> Canvas:
        """A canvas without tokens."""
        batch, dim = caption_state.shape
        device = caption_state.device
        states = torch.zeros(batch, grid.size + 1, dim, dtype=caption_state.dtype, device=device)
        states[:, 0] = caption_state
        tokens = torch.zeros(batch, grid.size, dtype=torch.long, device=device)
        return cls(grid, tokens, states, torch.full_like(tokens, RECOVERED), [0] * batch)

    def copied(self) -> Canvas:
        """The same canvas with tokens, origins and counts of its own; the states, which are large, are shared."""
        return replace(self, tokens=self.tokens.clone(), origins=self.origins.clone(), committed=list(self.committed))

    @property
    def batch(self) -> int:
        """Number of images."""
        return len(self.committed)

    @property
    def done(self) -> bool:
        """Whether every token of every image is committed."""
        return all(count == self.grid.size for count in self.committed)

    def roots(self) -> list[int]:
        """Position of each image's last committed token (-1 before the first)."""
        return [count - 1 for count in self.committed]

    def room(self, row: int) -> int:
        """Number of positions of an image that are not committed yet."""
        return self.grid.size - self.committed[row]

    def commit(self, row: int, tokens: list[int], origins: list[int]) -> None:
        """Append tokens to an image; tokens past its end are dropped."""
        start = self.committed[row]
        end = min(start + len(tokens), self.grid.size)
        self.tokens[row, start:end] = torch.tensor(tokens[: end - start])
        self.origins[row, start:end] = torch.tensor(origins[: end - start])
        self.committed[row] = end
