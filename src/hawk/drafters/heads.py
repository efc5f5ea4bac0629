"""Draft heads: horizontal (Medusa, arXiv 2401.10774) and vertical (Hawk, arXiv 2510.25739).

A head is one residual block on the target's guided last hidden state, followed by the target's own frozen output
head. Horizontal head n reads the newest state, which predicts position t, and predicts position t + n. Vertical head d
reads the state after token y - d * width and predicts position y; its predictions wait in a cache until decoding
reaches their row. The pool runs the output head once for all sources: it collects their draft states (`queries`) and
hands them log q (`receive`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from hawk.decoding.canvas import Canvas
from hawk.decoding.forward import wide
from hawk.drafters.saved import load_part, save_part
from hawk.drafters.source import Draft, Source
from hawk.nn.stored import Count

NAME = "heads"
"""Name of the heads' files."""


@dataclass(frozen=True)
class HeadsConfig:
    """`horizontal` and `vertical` heads for a target of width `dim`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    dim: Count
    horizontal: Annotated[int, Field(ge=0)] = 3
    vertical: Annotated[int, Field(ge=0)] = 2


class DraftHeads(nn.Module):
    """One `dim x dim` residual block for each head; the output head belongs to the target."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.config = config
        self.horizontal = nn.ModuleList(nn.Linear(config.dim, config.dim) for _ in range(config.horizontal))
        self.vertical = nn.ModuleList(nn.Linear(config.dim, config.dim) for _ in range(config.vertical))
        for block in (*self.horizontal, *self.vertical):
            nn.init.zeros_(block.weight)
            nn.init.zeros_(block.bias)

    def draft_state(self, block: nn.Module, state: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """state + SiLU(block(state)), which the output head reads in place of the target's own state."""
        return state + F.silu(block(state))

    def save(self, folder: Path, target_fingerprint: str) -> None:
        """Write the weights, their shape, and the fingerprint of the target that the heads were trained for."""
        save_part(self, self.config, folder, NAME, target_fingerprint)

    @classmethod
    def load(cls, folder: Path, target_fingerprint: str) -> DraftHeads | None:
        """Read heads from a folder; None where there are none. `HawkError` for heads of another target."""
        return load_part(cls, HeadsConfig, ("horizontal", "vertical"), folder, NAME, target_fingerprint)


@dataclass
class HorizontalSource(Source):
    """Distributions for the first positions after each root, one for each head, from the newest state."""

    heads: DraftHeads

    name = "horizontal"

    def start(self, canvas: Canvas) -> HorizontalMemory:
        """A memory without predictions."""
        return HorizontalMemory([canvas.states.new_empty(0, 0)] * canvas.batch)

    def queries(self, memory: HorizontalMemory, canvas: Canvas, row: int) -> Float[Tensor, "n d"]:
        """The draft state of every head, read from an image's newest state."""
        newest = canvas.states[row, canvas.committed[row] - 1]
        if not self.heads.horizontal:
            return canvas.states[row, :0]
        return torch.stack([self.heads.draft_state(block, newest) for block in self.heads.horizontal])

    def receive(self, memory: HorizontalMemory, row: int, log_q: Float[Tensor, "n vocab"]) -> None:
        """Keep log q of the queries."""
        memory.ahead[row] = log_q

    def draft(self, memory: HorizontalMemory, row: int, start: int, window: int) -> Draft | None:
        """The drafts of the window, at most one for each head."""
        return Draft(0, memory.ahead[row][:window]) if window else None


@dataclass
class HorizontalMemory:
    """The newest predictions of each image, `[heads, vocab]`."""

    ahead: list[Tensor]


@dataclass
class VerticalMemory:
    """The paper's cache: a ring of `d * width` predictions for each image, which wait until decoding reaches their row.

    `read` is the number of states of each image that predictions have been made from.
    """

    waiting: Float[Tensor, "b slots vocab"]
    read: list[int]


@dataclass
class VerticalSource(Source):
    """Distributions for every uncommitted position whose cell `depth` rows above is committed."""

    heads: DraftHeads
    depth: int
    vocab: int

    @property
    def name(self) -> str:
        """`vertical-d`."""
        return f"vertical-{self.depth}"

    def start(self, canvas: Canvas) -> VerticalMemory:
        """An empty cache."""
        slots = self.depth * canvas.grid.width
        waiting = torch.empty(canvas.batch, slots, self.vocab, dtype=wide(canvas.states), device=canvas.states.device)
        return VerticalMemory(waiting, [0] * canvas.batch)

    def queries(self, memory: VerticalMemory, canvas: Canvas, row: int) -> Float[Tensor, "n d"]:
        """Draft states for the cells `depth` rows below the newly committed tokens, from the states of those tokens."""
        first, slots = memory.read[row], memory.waiting.shape[1]
        until = max(first, min(canvas.committed[row] - 1, canvas.grid.size - slots))
        states = canvas.states[row, first + 1 : until + 1]
        return self.heads.draft_state(self.heads.vertical[self.depth - 1], states) if until > first else states

    def receive(self, memory: VerticalMemory, row: int, log_q: Float[Tensor, "n vocab"]) -> None:
        """Put log q of the queries into the cache."""
        first, slots = memory.read[row], memory.waiting.shape[1]
        memory.read[row] = first + len(log_q)
        memory.waiting[row, torch.arange(first, memory.read[row]) % slots] = log_q

    def draft(self, memory: VerticalMemory, row: int, start: int, window: int) -> Draft | None:
        """The drafts of the window's positions whose cell `depth` rows above has been read."""
        slots = memory.waiting.shape[1]
        first, end = max(start, slots), min(start + window, memory.read[row] + slots)
        if first >= end:
            return None
        return Draft(first - start, memory.waiting[row, torch.arange(first, end) % slots])
