"""Source: anything that gives a distribution to some of an image's coming positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hawk.decoding.canvas import Canvas
from hawk.decoding.sampling import SamplingParams, log_probs
from hawk.decoding.verify import Verified

OutputHead = Callable[[Tensor], Tensor]
"""The target's frozen output head: states `[*, dim]` to guided logits `[*, vocab]`."""

Embeddings = Callable[[Tensor], Tensor]
"""The target's frozen token embeddings: tokens `[*]` to `[*, dim]`."""


def draft_log_probs(
    head: OutputHead, states: Float[Tensor, "*b dim"], params: SamplingParams
) -> Float[Tensor, "*b vocab"]:
    """log q of draft states; where the logits hold a NaN or overflow, q is uniform.

    A damaged drafter, or one that overflows in float16, is thus slow and changes nothing that is drawn.
    """
    log_q = log_probs(head(states), params)
    broken = log_q[..., :1].isnan()  # a softmax without a sum is NaN at every token
    return log_q.masked_fill(broken, -math.log(log_q.shape[-1])) if bool(broken.any()) else log_q


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
