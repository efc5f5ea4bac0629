"""The target as decoders see it, and its guided forward: rows are [cond] or, under guidance, [cond; uncond]."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hawk.cache import KVCache, Prefilled
from hawk.grid import Grid
from hawk.sampling import SamplingParams, guide


@runtime_checkable
class Target(Protocol):
    """The large AR model. Rows are [cond] or, under guidance, [cond; uncond], each `batch` long.

    `linear_head` says that `head` is linear in the hidden state, so that guiding the state guides the logits.
    Over a `FixedCache`, `forward_nodes` reads nothing of the device, so that a GPU can replay it.
    """

    vocab_size: int
    hidden_size: int
    linear_head: bool

    def prefill(self, prompt: Any, guided: bool, capacity: int) -> Prefilled: ...

    def forward_nodes(
        self,
        tokens: Int[Tensor, "rows n"],
        positions: Int[Tensor, "rows n"],
        ancestors: Bool[Tensor, "rows n n"],
        padding: Int[Tensor, " rows"],
        cache: KVCache,
        grid: Grid,
    ) -> Float[Tensor, "rows n d"]: ...

    def head(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b vocab"]: ...


def guided_state(hidden: Float[Tensor, "rows *n d"], params: SamplingParams, batch: int) -> Float[Tensor, "b *n d"]:
    """One state per image from its [cond; uncond] rows."""
    return guide(hidden[:batch], hidden[batch:], params.cfg_scale) if params.guided else hidden


def guided_logits(
    target: Target, hidden: Float[Tensor, "rows n d"], guided: Float[Tensor, "b n d"], params: SamplingParams
) -> Float[Tensor, "b n vocab"]:
    """Guided logits of [cond; uncond] rows; a linear head is applied once, to their guided state."""
    if target.linear_head or not params.guided:
        return target.head(guided)
    logits = target.head(hidden)
    return guide(logits[: len(guided)], logits[len(guided) :], params.cfg_scale)


def both(tensor: Tensor, params: SamplingParams) -> Tensor:
    """The same nodes for the conditional and the unconditional rows."""
    return torch.cat((tensor, tensor)) if params.guided else tensor


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype of probabilities and noise: float64 for a float64 model, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
