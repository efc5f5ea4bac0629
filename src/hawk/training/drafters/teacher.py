"""The target as a teacher: its states and its distribution at every token of grids that it drew itself.

Drafters read the guided state, `guide(cond, uncond)`, whatever the head: that is what decoding gives them. What they
are taught is p. Where the head is linear p follows from the guided state; where it is not (Janus) p is that of the
guided logits, `guide(head(cond), head(uncond))`, so both states are kept ("parts" below), and only q is read from the
guided state by the head: a draft may be a little off there, what is drawn never is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hawk.decoding.forward import Target, guided_logits, guided_state
from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams, log_probs
from hawk.models.protocol import ImageTarget
from hawk.nn.packed import fast_dtype

Prompts = Callable[[int, int], Any]
"""(start, count) -> the target's prompt for that many rows; row i is a function of `start + i` alone."""

CHUNK = 256
"""Tokens of a teacher-forced forward; on the bundled model as fast as a forward of the whole image."""


@torch.no_grad()
def forced_hidden(
    target: Target, tokens: Int[Tensor, "b n"], prompt: Any, grid: Grid, params: SamplingParams, chunk: int = CHUNK
) -> Float[Tensor, "parts b n d"]:
    """Last hidden states before each token, through the target's own cache: [guided], or [cond, uncond] (see above)."""
    batch, n = tokens.shape
    prefilled = target.prefill(prompt, params.guided, n)
    cache, rows = prefilled.cache, len(prefilled.hidden)
    both = tokens.repeat(rows // batch, 1)
    hidden = [prefilled.hidden[:, None]]
    for start in range(0, n - 1, chunk):
        positions = torch.arange(start, min(start + chunk, n - 1), device=tokens.device)
        chain = positions[:, None] >= positions
        hidden.append(
            target.forward_nodes(
                both[:, positions],
                positions.expand(rows, -1),
                chain.expand(rows, -1, -1),
                prefilled.padding,
                cache,
                grid,
            )
        )
        cache.keep([list(range(len(positions)))] * rows)
    whole = torch.cat(hidden, dim=1)
    if target.linear_head or not params.guided:
        return guided_state(whole, params)[None]
    return whole.unflatten(0, (2, batch))


def parts_of(target: Target, params: SamplingParams) -> int:
    """Hidden states that are kept of each token."""
    return 1 if target.linear_head or not params.guided else 2


def guided_states(hidden: Float[Tensor, "parts *b d"], params: SamplingParams) -> Float[Tensor, "*b d"]:
    """What drafters read."""
    return hidden[0] if len(hidden) == 1 else guided_state(hidden.flatten(0, 1), params)


def teacher_log_p(
    target: ImageTarget, hidden: Float[Tensor, "parts b n d"], params: SamplingParams
) -> Float[Tensor, "b n vocab"]:
    """log p, filtered: what plain AR samples from."""
    hidden = hidden.to(target.dtype)
    guided = guided_states(hidden, params)
    return log_probs(guided_logits(target, hidden.flatten(0, 1), guided, params), params)


def draft_log_q(
    target: ImageTarget, states: Float[Tensor, "*b d"], params: SamplingParams
) -> Float[Tensor, "*b vocab"]:
    """log q of draft states at p's temperature (1 for a greedy p), unfiltered: p's zeros need it."""
    return log_probs(target.draft_head(states.to(target.dtype)), SamplingParams(params.temperature or 1.0))


def teaching(target: ImageTarget) -> torch.autocast:
    """The precision in which a teacher's forward runs: a float32 target on a CPU with matrix units uses them."""
    half = target.device.type == "cpu" and target.dtype == torch.float32 and fast_dtype() == torch.bfloat16
    return torch.autocast(target.device.type, torch.bfloat16, enabled=half)
