"""Source: anything that gives a distribution to some of an image's coming positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from hawk.decoding.canvas import Canvas
from hawk.decoding.forward import without_distribution
from hawk.decoding.sampling import BatchParams, filtered
from hawk.decoding.verify import Verified

OutputHead = Callable[[Tensor], Tensor]
"""The target's frozen output head: states `[*, dim]` to guided logits `[*, vocab]`."""

Embeddings = Callable[[Tensor], Tensor]
"""The target's frozen token embeddings: tokens `[*]` to `[*, dim]`."""


@dataclass(frozen=True)
class DraftScores:
    """log q of draft states. `broken` is true where the logits gave no distribution; None where all of them did."""

    log_q: Float[Tensor, "n vocab"]
    broken: Bool[Tensor, " n"] | None


def draft_log_probs(head: OutputHead, states: Float[Tensor, "n dim"], params: BatchParams) -> DraftScores:
    """log q of draft states, under the parameters of one image; where the logits hold a NaN or overflow, q is uniform.

    A damaged drafter, or one that overflows in float16, is thus slow and changes nothing that is drawn.
    """
    logits = head(states)[None]
    kept = filtered(logits, params)
    log_q, broken = kept[0].log_softmax(-1), without_distribution(logits, kept, params)[0]
    if not bool(broken.any()):
        return DraftScores(log_q, None)
    return DraftScores(log_q.masked_fill(broken[:, None], -math.log(log_q.shape[-1])), broken)


def slow_drafts(sources: Iterable[str], dtype: str) -> str:
    """What to tell a user whose drafter, computed in `dtype`, gave no distribution for some drafts of these sources."""
    instead = "use dtype bfloat16 or float32" if dtype == "float16" else "train the drafter again"
    return (
        f"the drafter ({', '.join(sorted(sources))}) gives numbers that are not finite in {dtype}: its drafts are "
        f"random there, which slows the drawing down and changes no image; {instead}"
    )


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
    """One source of a pool, which runs the target's output head once for all its sources.

    After each step the pool shows a source the verified tree (`see`), collects its draft states (`queries`), and hands
    it their log q (`receive`). `memory` is whatever `start` returned for the batch.
    """

    @property
    def name(self) -> str:
        """The name under which accepted drafts are counted."""
        raise NotImplementedError

    def start(self, canvas: Canvas) -> Any:
        """An empty memory."""

    def see(self, memory: Any, canvas: Canvas, row: int, verified: Verified) -> None:
        """Remember what the source needs of a verified tree, for one image."""

    def queries(self, memory: Any, canvas: Canvas, row: int) -> Float[Tensor, "n d"]:
        """Draft states of an image, for the target's output head."""
        return canvas.states[row, :0]

    def receive(self, memory: Any, row: int, log_q: Float[Tensor, "n vocab"]) -> None:
        """Keep log q of the queries."""

    def draft(self, memory: Any, row: int, start: int, window: int) -> Draft | None:
        """The drafts for an image's positions `start` to `start + window - 1`; None where there are none."""
        raise NotImplementedError
