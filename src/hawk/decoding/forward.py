"""The target as the decoder sees it, and the guided forward: nodes in, hidden states and log-probabilities out.

Under classifier-free guidance an image has two rows of the target, without it one (`BatchParams`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hawk.decoding.cache import KVCache, Prefilled
from hawk.decoding.grid import Grid
from hawk.decoding.sampling import BatchParams, filtered, guide
from hawk.errors import HawkError


@runtime_checkable
class Target(Protocol):
    """The large AR model.

    `linear_head` says that `head` is linear in the hidden state, so that guiding the state guides the logits.
    Over a `FixedCache`, `forward_nodes` must not read any value from the device, so that a GPU can replay it.
    """

    vocab_size: int
    hidden_size: int
    linear_head: bool

    def prefill(self, prompt: Any, guided: bool, capacity: int) -> Prefilled:
        """Read the prompts, into a KV cache with room for `capacity` more nodes in each row."""
        ...

    def forward_nodes(
        self,
        tokens: Int[Tensor, "rows n"],
        positions: Int[Tensor, "rows n"],
        ancestors: Bool[Tensor, "rows n n"],
        padding: Int[Tensor, " rows"],
        cache: KVCache,
        grid: Grid,
    ) -> Float[Tensor, "rows n d"]:
        """Append nodes to the cache without committing them, and return the last hidden state of each node.

        A node sees its row's committed entries, its ancestors and itself; `padding` entries of a row are left padding.
        """
        ...

    def head(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b vocab"]:
        """The logits of hidden states, in float32 or float64."""
        ...


@dataclass(frozen=True)
class Nodes:
    """What a forward scores: for each image its tokens, their positions in the grid, and which node sees which."""

    tokens: Int[Tensor, "b n"]
    positions: Int[Tensor, "b n"]
    ancestors: Bool[Tensor, "b n n"]


@dataclass(frozen=True)
class Scores:
    """What the target says at each node: its guided hidden state, and of the token after the node the filtered logits.

    The logits are log p up to a constant of each node, which is all that the coupled choice compares. `broken` is true
    where a node has no distribution (`without_distribution`).
    """

    states: Float[Tensor, "b n d"]
    logits: Float[Tensor, "b n vocab"]
    broken: Bool[Tensor, "b n"]

    @cached_property
    def log_p(self) -> Float[Tensor, "b n vocab"]:
        """log p of the token after each node; removed tokens are -inf."""
        return self.logits.log_softmax(-1)

    def mended(self) -> Scores:
        """The same scores with equal logits at the broken nodes, so that verifiers can run until one is committed."""
        return replace(self, logits=self.logits.masked_fill(self.broken[..., None], 0.0))


def score(
    target: Target, nodes: Nodes, padding: Int[Tensor, " rows"], cache: KVCache, grid: Grid, params: BatchParams
) -> Scores:
    """One target forward over new nodes: what the target says after each of them."""
    return scores_of(target, forward(target, nodes, padding, cache, grid, params), params)


def forward(
    target: Target, nodes: Nodes, padding: Int[Tensor, " rows"], cache: KVCache, grid: Grid, params: BatchParams
) -> Float[Tensor, "rows n d"]:
    """The last hidden states of new nodes; positions past the grid's end count as the last one."""
    return target.forward_nodes(
        params.rows_of(nodes.tokens),
        params.rows_of(nodes.positions.clamp(max=grid.size - 1)),
        params.rows_of(nodes.ancestors),
        padding,
        cache,
        grid,
    )


def score_prompt(target: Target, prefilled: Prefilled, params: BatchParams) -> Scores:
    """What the target says after each image's prompt, as a single node: its token is the image's first one."""
    return scores_of(target, prefilled.hidden[:, None], params)


def scores_of(target: Target, hidden: Float[Tensor, "rows n d"], params: BatchParams) -> Scores:
    """Guidance, output head, temperature, top-k and top-p over hidden states."""
    states = guided_state(hidden, params)
    logits = guided_logits(target, hidden, states, params)
    kept = filtered(logits, params)
    return Scores(states, kept, without_distribution(logits, kept, params))


def without_distribution(
    logits: Float[Tensor, "b n vocab"], kept: Float[Tensor, "b n vocab"], params: BatchParams
) -> Bool[Tensor, "b n"]:
    """Where logits, or the filtered logits `kept`, hold a NaN or have no finite maximum: their softmax is undefined.

    Filtered logits show both: the filters keep a NaN and an infinite maximum, and a finite logit may overflow when it
    is divided by the temperature. A greedy draw divides nothing, and its filtered logits are always finite.
    """
    if params.greedy == "none":
        return ~kept.amax(-1).isfinite()
    greedy = ~logits.amax(-1).isfinite()
    return (
        greedy if params.greedy == "all" else torch.where(params.is_greedy[..., 0], greedy, ~kept.amax(-1).isfinite())
    )


def not_finite(dtype: torch.dtype) -> HawkError:
    """The error for broken logits of a committed node, where the target computes in `dtype`."""
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float16:
        return HawkError("the model's logits are not finite in float16, which overflows: use dtype bfloat16 or float32")
    return HawkError(f"the model's logits are not finite in {name}: its weights or its config.json are damaged")


def guided_state(hidden: Float[Tensor, "rows n d"], params: BatchParams) -> Float[Tensor, "b n d"]:
    """One hidden state an image from its rows."""
    cond = hidden.index_select(0, params.cond)
    return guide(cond, hidden.index_select(0, params.uncond), params.cfg_scale) if params.guided else cond


def guided_logits(
    target: Target, hidden: Float[Tensor, "rows n d"], guided: Float[Tensor, "b n d"], params: BatchParams
) -> Float[Tensor, "b n vocab"]:
    """Guided logits of the images' rows; a linear head is applied once, to their guided state."""
    if target.linear_head or not params.guided:
        return target.head(guided)
    return guided_state(target.head(hidden), params)


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype of probabilities and noise: float64 for a float64 model, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
