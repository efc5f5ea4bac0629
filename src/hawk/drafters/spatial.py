"""SpatialDrafter: one small transformer that drafts every position of a window at once from what stands around it.

A query for each coming position attends, in two dimensions, to the committed cells near it (rows above, left cells of
its row) and to the queries before it, whose tokens are not known yet. A cell is its token's embedding and the target's
hidden state after it; the newest state and the distance from the root enter every query. Out come draft states for the
target's frozen output head. (Two-dimensional drafting after Hawk, arXiv 2510.25739; feature inputs after EAGLE,
arXiv 2401.15077; parallel queries after Medusa's heads, which are the case without attention.)
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from hawk.canvas import Canvas
from hawk.drafters.source import Draft, Source
from hawk.errors import HawkError
from hawk.files import save_tensors, write_json
from hawk.grid import Grid
from hawk.layers import RMSNorm, SwiGLU, attend, rotary_angles, rotate

FILE, SETTINGS = "spatial.safetensors", "spatial.json"


@dataclass(frozen=True)
class SpatialConfig:
    """Shape for a target of width `dim`; `window` positions are drafted.

    A query sees the cells at most `columns` to either side in each of the `above` rows over it, and `left` cells back.
    """

    dim: int
    width: int = 256
    layers: int = 2
    heads: int = 4
    window: int = 16
    above: int = 2
    columns: int = 4
    left: int = 8

    def reach(self, grid: Grid) -> int:
        """How many cells back, in raster order, the first query can see."""
        return max(self.above * grid.width + self.columns, self.left)


class SpatialLayer(nn.Module):
    """Queries attend to cells and to earlier queries, then a feed-forward block; pre-norm."""

    def __init__(self, config: SpatialConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm, self.ffn_norm = RMSNorm(width), RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.cells = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_forward = SwiGLU(width, -(-8 * width // 3 // 64) * 64)

    def cell_entries(
        self, cells: Float[Tensor, "b m width"], angles: Float[Tensor, "#b m half 2"]
    ) -> tuple[Float[Tensor, "b heads m d"], Float[Tensor, "b heads m d"]]:
        """Keys and values of cells."""
        keys, values = self.cells(cells).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return rotate(keys, angles).transpose(1, 2), values.transpose(1, 2)

    def forward(
        self,
        x: Float[Tensor, "b w width"],
        angles: Float[Tensor, "#b w half 2"],
        keys: Float[Tensor, "b heads m d"],
        values: Float[Tensor, "b heads m d"],
        mask: Float[Tensor, "b 1 w m_w"],
    ) -> Float[Tensor, "b w width"]:
        heads = self.qkv(self.norm(x)).unflatten(-1, (3 * self.heads, -1))
        turned = rotate(heads[..., : 2 * self.heads, :], angles).transpose(1, 2)
        q, own = turned[:, : self.heads], turned[:, self.heads :]
        v = torch.cat((values, heads[..., 2 * self.heads :, :].transpose(1, 2)), dim=2)
        x = x + self.out(attend(q, torch.cat((keys, own), dim=2), v, mask))
        return x + self.feed_forward(self.ffn_norm(x))


class SpatialDrafter(nn.Module):
    """The transformer; the target's embeddings and output head are the target's and are not held here."""

    def __init__(self, config: SpatialConfig) -> None:
        super().__init__()
        self.config = config
        self.read_token = nn.Linear(config.dim, config.width, bias=False)
        self.read_state = nn.Linear(config.dim, config.width, bias=False)
        self.no_state = nn.Parameter(torch.zeros(config.width))
        self.cell_norm = RMSNorm(config.width)
        self.newest = nn.Linear(config.dim, config.width, bias=False)
        self.offset = nn.Parameter(torch.randn(config.window, config.width) * 0.02)
        self.layers = nn.ModuleList(SpatialLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.out = nn.Linear(config.width, config.dim, bias=False)

    def cells(
        self, embedded: Float[Tensor, "b m dim"], states: Float[Tensor, "b m dim"], known: Bool[Tensor, "b m"]
    ) -> Float[Tensor, "b m width"]:
        """Features of committed cells; a root's state is not `known` yet."""
        after = torch.where(known[..., None], self.read_state(states), self.no_state)
        return self.cell_norm(self.read_token(embedded) + after)

    def entries(
        self, cells: Float[Tensor, "b m width"], positions: Int[Tensor, "b m"], grid: Grid
    ) -> tuple[Float[Tensor, "layers b heads m d"], Float[Tensor, "layers b heads m d"]]:
        """Keys and values of cells in every layer."""
        angles = self._angles(positions, grid)
        pairs = [layer.cell_entries(cells, angles) for layer in cast(list[SpatialLayer], self.layers)]
        return torch.stack([keys for keys, _ in pairs]), torch.stack([values for _, values in pairs])

    def draft_states(
        self,
        newest: Float[Tensor, "b dim"],
        wanted: Int[Tensor, "b w"],
        keys: Float[Tensor, "layers b heads m d"],
        values: Float[Tensor, "layers b heads m d"],
        mask: Float[Tensor, "b 1 w m_w"],
        grid: Grid,
    ) -> Float[Tensor, "b w dim"]:
        """States that the target's output head turns into log q of the `wanted` positions.

        `newest` is the state that predicted the root; `mask` is `spatial_mask` over the cells and the queries.
        """
        angles = self._angles(wanted, grid)
        x = self.newest(newest)[:, None] + self.offset[: wanted.shape[1]]
        for i, layer in enumerate(self.layers):
            x = layer(x, angles, keys[i], values[i], mask)
        return self.out(self.norm(x))

    def _angles(self, positions: Int[Tensor, "b m"], grid: Grid) -> Float[Tensor, "b m half 2"]:
        return rotary_angles(grid.coordinates(positions), self.config.width // self.config.heads, base=100.0)

    def save(self, folder: Path, target_fingerprint: str) -> None:
        """Write `spatial.safetensors` and `spatial.json` (shape, and the target it was trained for)."""
        save_tensors(folder / FILE, {k: v.contiguous() for k, v in self.state_dict().items()})
        write_json(folder / SETTINGS, {**asdict(self.config), "target": target_fingerprint})

    @classmethod
    def load(cls, folder: Path, target_fingerprint: str) -> SpatialDrafter | None:
        """Read a drafter from a folder, None where there is none; refuses one of another target."""
        if not (folder / FILE).is_file() or not (folder / SETTINGS).is_file():
            return None
        described = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        trained_for = described.pop("target")
        if trained_for != target_fingerprint:
            raise HawkError(
                f"the spatial drafter in {folder} was trained for target {trained_for}, not {target_fingerprint}: "
                "train a new one"
            )
        drafter = cls(SpatialConfig(**described))
        drafter.load_state_dict({k: v.float() for k, v in load_file(folder / FILE).items()})
        return drafter.eval()


def spatial_mask(
    wanted: Int[Tensor, "b w"], cells: Int[Tensor, "b m"], grid: Grid, config: SpatialConfig
) -> Float[Tensor, "b 1 w m_w"]:
    """Additive mask of queries at `wanted` over cells (negative positions are padding) and over the queries."""
    seen = torch.cat((cells, wanted), dim=1)
    here, there = grid.coordinates(wanted)[:, :, None], grid.coordinates(seen)[:, None]
    up, aside = (here - there).unbind(-1)
    beside = (up == 0) & (aside >= 0) & (aside <= config.left)
    over = (up > 0) & (up <= config.above) & (aside.abs() <= config.columns)
    visible = (beside | over) & (seen >= 0)[:, None]
    return torch.zeros(visible.shape, device=wanted.device).masked_fill_(~visible, -torch.inf)[:, None]


@dataclass
class SpatialMemory:
    """Keys and values `[layers, batch, heads, grid.size, d]` of committed cells, how many have their state in them,
    and the newest drafts of each image `[window, vocab]`."""

    keys: Tensor
    values: Tensor
    read: list[int]
    grid: Grid
    ahead: list[Tensor]


@dataclass
class SpatialSource(Source):
    """The spatial drafter's window after each root. `embeddings` is the target's token embedding."""

    drafter: SpatialDrafter
    embeddings: nn.Module

    name = "spatial"

    def start(self, canvas: Canvas) -> SpatialMemory:
        """No cell is committed yet."""
        config = self.drafter.config
        shape = (config.layers, canvas.batch, config.heads, canvas.grid.size, config.width // config.heads)
        keys = canvas.states.new_zeros(shape)
        return SpatialMemory(keys, torch.zeros_like(keys), [0] * canvas.batch, canvas.grid, [keys] * canvas.batch)

    def queries(self, memory: SpatialMemory, canvas: Canvas, row: int) -> Float[Tensor, "w dim"]:
        """Take in the newly committed cells of an image (its root still without a state), then draft the window."""
        drafter, grid, committed = self.drafter, canvas.grid, canvas.committed[row]
        fresh = torch.arange(memory.read[row], committed, device=canvas.tokens.device)[None]
        states = canvas.states[row, fresh + 1]
        cells = drafter.cells(self.embeddings(canvas.tokens[row, fresh]), states, fresh < committed - 1)
        keys, values = drafter.entries(cells, fresh, grid)
        memory.keys[:, row, :, fresh[0]] = keys[:, 0]
        memory.values[:, row, :, fresh[0]] = values[:, 0]
        memory.read[row] = committed - 1
        first = max(0, committed - drafter.config.reach(grid))
        near = torch.arange(first, committed, device=fresh.device)[None]
        end = min(committed + drafter.config.window, grid.size)
        wanted = torch.arange(committed, end, device=fresh.device)[None]
        keys, values = (table[:, row : row + 1, :, first:committed] for table in (memory.keys, memory.values))
        mask = spatial_mask(wanted, near, grid, drafter.config)
        newest = canvas.states[row, committed - 1][None]
        return drafter.draft_states(newest, wanted, keys, values, mask, grid)[0]

    def receive(self, memory: SpatialMemory, row: int, log_q: Float[Tensor, "n vocab"]) -> None:
        """Keep the window's drafts."""
        memory.ahead[row] = log_q

    def draft(self, memory: SpatialMemory, row: int, start: int, window: int) -> Draft | None:
        """The window."""
        return Draft(0, memory.ahead[row][:window]) if window else None
