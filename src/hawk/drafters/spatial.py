"""SpatialDrafter: one small transformer that drafts all positions of a window at once from the cells around them.

Each coming position has a query. In two dimensions, the query attends to the committed cells near it (the rows above
and the cells to the left) and to the queries before it, whose tokens are not known yet. The input of a cell is its
token's embedding and the target's hidden state after it. Every query also receives the newest state and its distance
from the root. The output is a draft state for the target's frozen output head. (Two-dimensional drafting after Hawk,
arXiv 2510.25739; feature inputs after EAGLE, arXiv 2401.15077; parallel queries after Medusa's heads, which are the
case without attention.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from hawk.decoding.canvas import Canvas
from hawk.decoding.grid import Grid
from hawk.decoding.verify import Verified
from hawk.drafters.saved import check_heads, load_part, save_part
from hawk.drafters.source import Draft, Embeddings, Source
from hawk.nn.layers import RMSNorm, SwiGLU, additive_mask, attend, rotary_angles, rotate, rotated_heads, swiglu_width
from hawk.nn.packed import pack_after_norm, pack_linears
from hawk.nn.stored import Count

LEAST_WINDOW = 6
"""The fewest positions that a step drafts."""

NAME = "spatial"
"""Name of the drafter's files and of its source."""


@dataclass(frozen=True)
class SpatialConfig:
    """Shape for a target of width `dim`; `window` positions are drafted.

    A query sees the cells at most `columns` to either side in each of the `above` rows over it, and `left` cells back.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    dim: Count
    width: Count = 192
    layers: Count = 2
    heads: Count = 3
    window: Annotated[int, Field(ge=1, le=256)] = 16
    above: Annotated[int, Field(ge=0, le=16)] = 2
    columns: Annotated[int, Field(ge=0, le=64)] = 4
    left: Annotated[int, Field(ge=0, le=256)] = 8

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads, axes=2)

    def reach(self, grid: Grid) -> int:
        """How many cells, in raster order, the first query can see back."""
        return max(self.above * grid.width + self.columns, self.left)


class SpatialLayer(nn.Module):
    """Pre-norm attention of queries to cells and to earlier queries, then a feed-forward block."""

    def __init__(self, config: SpatialConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm, self.ffn_norm = RMSNorm(width), RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_forward = SwiGLU(width, swiglu_width(width, 64))

    def forward(
        self,
        x: Float[Tensor, "b w width"],
        angles: Float[Tensor, "#b w half 2"],
        keys: Float[Tensor, "b heads m d"],
        values: Float[Tensor, "b heads m d"],
        mask: Float[Tensor, "b 1 w m_w"],
    ) -> Float[Tensor, "b w width"]:
        q, k, v = rotated_heads(self.qkv(self.norm(x)), self.heads, self.heads, angles)
        x = x + self.out(attend(q.to(keys), torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2), mask))
        return x + self.feed_forward(self.ffn_norm(x))

    def pack(self, dtype: torch.dtype) -> None:
        """Pack the layer for drafting on a CPU, with matrix products in `dtype`."""
        pack_after_norm(self, "norm", "qkv", dtype)
        pack_after_norm(self, "ffn_norm", "feed_forward", dtype)


class SpatialDrafter(nn.Module):
    """The transformer; token embeddings and output head belong to the target."""

    def __init__(self, config: SpatialConfig) -> None:
        super().__init__()
        self.config = config
        self.read = nn.Linear(2 * config.dim, config.width, bias=False)
        self.cell_norm = RMSNorm(config.width)
        self.cell_entries = nn.Linear(config.width, config.layers * 2 * config.width, bias=False)
        self.newest = nn.Linear(config.dim, config.width, bias=False)
        self.offset = nn.Parameter(torch.randn(config.window, config.width) * 0.02)
        self.layers = nn.ModuleList(SpatialLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.out = nn.Linear(config.width, config.dim, bias=False)

    def pack(self, dtype: torch.dtype) -> None:
        """Pack the frozen drafter for a CPU, with matrix products in `dtype`."""
        for layer in self.layers:
            layer.pack(dtype)  # type: ignore[operator]
        pack_after_norm(self, "cell_norm", "cell_entries", dtype)
        pack_after_norm(self, "norm", "out", dtype)
        pack_linears(self, dtype)

    def cells(self, embedded: Float[Tensor, "b m dim"], states: Float[Tensor, "b m dim"]) -> Float[Tensor, "b m width"]:
        """Features of committed cells, from their tokens' embeddings and the states after them (zero for a root)."""
        return self.cell_norm(self.read(torch.cat((embedded, states), dim=-1)))

    def entries(
        self, cells: Float[Tensor, "b m width"], angles: Float[Tensor, "#b m half 2"]
    ) -> tuple[Float[Tensor, "b layers_heads m d"], Float[Tensor, "b layers_heads m d"]]:
        """Keys and values of cells for the heads of all layers."""
        config = self.config
        keys, values = self.cell_entries(cells).unflatten(-1, (2, config.layers * config.heads, -1)).unbind(2)
        return rotate(keys, angles).transpose(1, 2), values.transpose(1, 2)

    def draft_states(
        self,
        newest: Float[Tensor, "b dim"],
        angles: Float[Tensor, "#b w half 2"],
        keys: Float[Tensor, "b layers_heads m d"],
        values: Float[Tensor, "b layers_heads m d"],
        mask: Float[Tensor, "b 1 w m_w"],
    ) -> Float[Tensor, "b w dim"]:
        """States that the target's output head turns into log q of the positions at `angles`.

        `newest` is the state that predicted the root; `mask` is `spatial_mask` over the cells and the queries.
        """
        x = self.newest(newest)[:, None] + self.offset[: angles.shape[1]]
        by_layer = (keys.chunk(self.config.layers, dim=1), values.chunk(self.config.layers, dim=1))
        for layer, own_keys, own_values in zip(self.layers, *by_layer, strict=True):
            x = layer(x, angles, own_keys, own_values, mask)
        return self.out(self.norm(x))

    def angles(self, positions: Int[Tensor, "*b"], grid: Grid) -> Float[Tensor, "*b half 2"]:
        """Rotary angles of cells and queries."""
        return rotary_angles(grid.coordinates(positions), self.config.width // self.config.heads, base=100.0)

    def save(self, folder: Path, target_fingerprint: str) -> None:
        """Write the weights, their shape, and the fingerprint of the target that they were trained for."""
        save_part(self, self.config, folder, NAME, target_fingerprint)

    @classmethod
    def load(cls, folder: Path, target_fingerprint: str) -> SpatialDrafter | None:
        """Read a drafter from a folder; None where there is none. `HawkError` for a drafter of another target."""
        return load_part(cls, SpatialConfig, ("layers",), folder, NAME, target_fingerprint)


def spatial_mask(
    wanted: Int[Tensor, "b w"], cells: Int[Tensor, "b m"], grid: Grid, config: SpatialConfig
) -> Float[Tensor, "b 1 w m_w"]:
    """Additive mask of queries at the positions `wanted`, over cells and queries; negative positions are padding."""
    seen = torch.cat((cells, wanted), dim=1)
    here, there = grid.coordinates(wanted)[:, :, None], grid.coordinates(seen)[:, None]
    up, aside = (here - there).unbind(-1)
    beside = (up == 0) & (aside >= 0) & (aside <= config.left)
    over = (up > 0) & (up <= config.above) & (aside.abs() <= config.columns)
    visible = (beside | over) & (seen >= 0)[:, None]
    return additive_mask(visible)


@dataclass
class SpatialMemory:
    """Keys and values `[batch, layers * heads, grid.size, d]` of committed cells; `read` cells include their state.

    `angles`, and for every frontier the `masks` of the window over the `reach` cells before it, are made once.
    `ahead` holds the newest drafts of each image, `[window, vocab]`. `windows` is the number of positions that an
    image's next step drafts: twice as many as its last step committed (within bounds), since every query costs time.
    """

    keys: Tensor
    values: Tensor
    read: list[int]
    angles: Float[Tensor, "size half 2"]
    masks: Float[Tensor, "size 1 w m_w"]
    ahead: list[Tensor]
    windows: list[int]


@dataclass
class SpatialSource(Source):
    """Drafts of the spatial drafter for the window after each root; `embeddings` is the target's token embedding."""

    drafter: SpatialDrafter
    embeddings: Embeddings

    name = NAME

    def start(self, canvas: Canvas) -> SpatialMemory:
        """A memory without cells."""
        config, grid = self.drafter.config, canvas.grid
        shape = (canvas.batch, config.layers * config.heads, grid.size, config.width // config.heads)
        keys = canvas.states.new_zeros(shape)
        everywhere = torch.arange(grid.size, device=keys.device)
        cells, wanted = window_positions(everywhere, grid, config)
        return SpatialMemory(
            keys=keys,
            values=torch.zeros_like(keys),
            read=[0] * canvas.batch,
            angles=self.drafter.angles(everywhere, grid),
            masks=spatial_mask(wanted, cells, grid, config).to(keys.dtype),
            ahead=[keys] * canvas.batch,
            windows=[config.window] * canvas.batch,
        )

    def see(self, memory: SpatialMemory, canvas: Canvas, row: int, verified: Verified) -> None:
        """Set the next window by the number of tokens that the last step committed."""
        committed = len(verified.verdicts[row].path)
        memory.windows[row] = min(self.drafter.config.window, max(LEAST_WINDOW, 2 * committed))

    def queries(self, memory: SpatialMemory, canvas: Canvas, row: int) -> Float[Tensor, "w dim"]:
        """Read the newly committed cells of an image (the root has no state yet), then draft its window."""
        drafter, config, committed = self.drafter, self.drafter.config, canvas.committed[row]
        fresh = slice(memory.read[row], committed)
        memory.read[row] = committed - 1
        states = F.pad(canvas.states[row, fresh.start + 1 : committed], (0, 0, 0, 1))  # the root has none yet
        cells = drafter.cells(self.embeddings(canvas.tokens[row, fresh])[None], states[None])
        keys, values = drafter.entries(cells, memory.angles[None, fresh])
        memory.keys[row, :, fresh] = keys[0]
        memory.values[row, :, fresh] = values[0]
        near = slice(max(0, committed - config.reach(canvas.grid)), committed)
        window = slice(committed, min(committed + memory.windows[row], canvas.grid.size))
        reach, count = near.stop - near.start, window.stop - window.start
        mask = memory.masks[committed, :, :count]
        seen = mask.shape[-1] - config.window
        mask = mask[None, ..., seen - reach : seen + count]
        newest = canvas.states[row, committed - 1][None]
        around = memory.keys[row : row + 1, :, near], memory.values[row : row + 1, :, near]
        return drafter.draft_states(newest, memory.angles[None, window], *around, mask)[0]

    def receive(self, memory: SpatialMemory, row: int, log_q: Float[Tensor, "n vocab"]) -> None:
        """Keep log q of the window."""
        memory.ahead[row] = log_q

    def draft(self, memory: SpatialMemory, row: int, start: int, window: int) -> Draft | None:
        """The drafts of the window."""
        return Draft(0, memory.ahead[row][:window]) if window else None


def window_positions(
    starts: Int[Tensor, " b"], grid: Grid, config: SpatialConfig
) -> tuple[Int[Tensor, "b m"], Int[Tensor, "b w"]]:
    """Positions of the cells before, and of the cells in, the windows that follow the first `starts` tokens.

    A cell before the image has a negative position.
    """
    cells = starts[:, None] + torch.arange(-config.reach(grid), 0, device=starts.device)
    return cells, starts[:, None] + torch.arange(config.window, device=starts.device)
