"""The target as a teacher: its hidden states and its distribution p at every token of grids that it drew itself.

Drafters read the guided state, `guide(cond, uncond)`, because decoding gives them this state. They learn p. With a
linear output head, p follows from the guided state, so one state is kept for each token. With any other head (Janus),
p follows from the guided logits, `guide(head(cond), head(uncond))`, so both states are kept (the dimension `states`
below). A drafter's q still comes from the guided state then, so its drafts fit a little worse; decoding stays lossless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hawk.decoding.forward import Target, guided_state
from hawk.decoding.grid import Grid
from hawk.decoding.sampling import BatchParams, SamplingParams, guide, log_probs
from hawk.models.protocol import ImageTarget
from hawk.nn.packed import fast_dtype

Prompts = Callable[[int, int], Any]
"""(start, count) -> the target's prompt of `count` rows; row i depends on `start + i` alone."""

Sampling = SamplingParams | Sequence[SamplingParams]
"""The sampling parameters of a batch: one setting for all of its images, or one setting for each image."""

CHUNK = 256
"""Tokens in one teacher-forced forward. On the bundled model this is as fast as one forward of the whole image."""


class TeacherLoss(nn.Module):
    """A drafter's loss against a frozen target, whose weights are none of the module's parameters."""

    def __init__(self, target: ImageTarget, params: SamplingParams) -> None:
        super().__init__()
        self.params = params
        self._target = (target,)  # the tuple keeps `nn.Module` from registering the target as a submodule

    @property
    def target(self) -> ImageTarget:
        """The frozen target."""
        return self._target[0]


@torch.no_grad()
def forced_hidden(
    target: Target, tokens: Int[Tensor, "b n"], prompt: Any, grid: Grid, params: SamplingParams, chunk: int = CHUNK
) -> Float[Tensor, "states b n d"]:
    """The last hidden state before each token, computed with the target's KV cache: [guided], or [cond, uncond]."""
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
        return guided_state(whole, BatchParams.alike(params, batch, target.vocab_size, whole))[None]
    return whole.unflatten(0, (2, batch))


def states_per_token(target: Target, params: SamplingParams) -> int:
    """How many hidden states are kept of each token: 1 (guided) or 2 (cond, uncond)."""
    return 1 if target.linear_head or not params.guided else 2


def guided_states(hidden: Float[Tensor, "states *b d"], params: Sampling) -> Float[Tensor, "*b d"]:
    """The guided states, which drafters read."""
    if len(hidden) == 1:
        return hidden[0]
    if not isinstance(params, SamplingParams):
        return torch.cat([guided_states(hidden[:, i : i + 1], own) for i, own in enumerate(params)])
    return guide(hidden[0], hidden[1], params.cfg_scale)


def teacher_log_p(
    target: ImageTarget, hidden: Float[Tensor, "states b n d"], params: Sampling
) -> Float[Tensor, "b n vocab"]:
    """log p after guidance, temperature, top-k and top-p: the distribution from which plain AR samples."""
    if not isinstance(params, SamplingParams):
        return torch.cat([teacher_log_p(target, hidden[:, i : i + 1], own) for i, own in enumerate(params)])
    hidden = hidden.to(target.dtype)
    if len(hidden) == 1:
        return log_probs(target.head(hidden[0]), params)
    return log_probs(guide(target.head(hidden[0]), target.head(hidden[1]), params.cfg_scale), params)


def draft_log_q(target: ImageTarget, states: Float[Tensor, "*b d"], params: Sampling) -> Float[Tensor, "*b vocab"]:
    """log q of draft states, at the temperature of p (at 1 for a greedy p) but without top-k and top-p.

    A filtered q would be 0 at tokens that p allows, and the losses would be infinite there.
    """
    if not isinstance(params, SamplingParams):
        return torch.cat([draft_log_q(target, states[i : i + 1], own) for i, own in enumerate(params)])
    return log_probs(
        target.draft_head(states.to(target.dtype)), SamplingParams(1.0 if params.greedy else params.temperature)
    )


def teacher_autocast(target: ImageTarget) -> torch.autocast:
    """The precision of a teacher's forward: bfloat16 for a float32 target on a CPU that multiplies it, else its own."""
    half = target.device.type == "cpu" and target.dtype == torch.float32 and fast_dtype() == torch.bfloat16
    return torch.autocast(target.device.type, torch.bfloat16, enabled=half)
