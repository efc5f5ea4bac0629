"""What a source of drafts is: something that gives a distribution to some of the coming positions of an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hawk.decoding.canvas import Canvas
from hawk.decoding.verify import Scored

OutputHead = Callable[[Tensor], Tensor]
"""The target's frozen output head: states `[*, dim]` to guided logits `[*, vocab]`."""

Embeddings = Callable[[Tensor], Tensor]
"""The target's frozen token embeddings: tokens `[*]` to `[*, dim]`."""


@dataclass(frozen=True)
class Draft:
    """log q at consecutive offsets from `first` (0 is the position after the root)."""

    first: int
    log_q: Float[Tensor, "n vocab"]

    @property
    def end(self) -> int:
        """One past the last offset."""
        return self.first + len(self.log_q)

    def until(self, end: int) -> Draft:
        """The draft without its offsets from `end` on."""
        return self if self.end <= end else Draft(self.first, self.log_q[: end - self.first])


class Source:
    """One source; the pool runs the target's output head once for all of them.

    After each step a source may look at what the target said (`see`), asks with draft states (`queries`), and is handed
    their log q (`receive`). `memory` is whatever `start` returned for the batch.
    """

    @property
    def name(self) -> str:
        """What its kept drafts are counted under."""
        raise NotImplementedError

    def start(self, canvas: Canvas) -> Any:
        """An empty memory."""

    def see(self, memory: Any, canvas: Canvas, row: int, scored: Scored) -> None:
        """Take from a verified tree what is worth remembering of an image."""

    def queries(self, memory: Any, canvas: Canvas, row: int) -> Float[Tensor, "n d"]:
        """Draft states of an image, for the target's output head."""
        return canvas.states[row, :0]

    def receive(self, memory: Any, row: int, log_q: Float[Tensor, "n vocab"]) -> None:
        """Keep what the queries were answered with."""

    def draft(self, memory: Any, row: int, start: int, window: int) -> Draft | None:
        """What it says of the positions `start` .. `start + window - 1` of an image; None where it says nothing."""
        raise NotImplementedError
