"""Sampling: guidance, filtering and the choice of a token. Each formula is written here only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hawk.decoding.arguments import real_number, whole_number
from hawk.errors import HawkError
from hawk.nn.layers import at_least_float32

MOST_GUIDANCE = 1e6
"""The largest guidance scale: beyond it, guided logits may overflow when they are divided by a low temperature."""
GREEDY_BELOW = 1e-5
"""Below this temperature a draw is greedy: a float32 logit divided by a temperature near 0 is infinite."""


@dataclass(frozen=True)
class SamplingParams:
    """How the target's logits become its distribution `p`.

    A `temperature` below `GREEDY_BELOW`, as 0, is greedy; `top_k` 0 and `top_p` 1 filter nothing; `cfg_scale` 1
    switches guidance off. Numbers of numpy and torch are taken and become `int` or `float`.

    Raises:
        HawkError: a parameter is no number, or out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "cfg_scale"):
            object.__setattr__(self, name, real_number(name, getattr(self, name)))
        object.__setattr__(self, "top_k", whole_number("top_k", self.top_k))
        if self.temperature < 0:
            raise HawkError(f"temperature must be 0 (greedy) or more, not {self.temperature}")
        if self.top_k < 0:
            raise HawkError(f"top_k must be 0 (off) or a number of tokens, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise HawkError(f"top_p must be above 0 and at most 1 (off), not {self.top_p}")
        if not 1 <= self.cfg_scale <= MOST_GUIDANCE:
            raise HawkError(f"cfg_scale must be from 1 (off) to {MOST_GUIDANCE:.0f}, not {self.cfg_scale}")

    @property
    def guided(self) -> bool:
        """Whether the target also needs an unconditional row for each image."""
        return self.cfg_scale != 1.0

    @property
    def greedy(self) -> bool:
        """Whether the token with the largest logit is always chosen."""
        return self.temperature < GREEDY_BELOW


def guide(cond: Float[Tensor, "*b d"], uncond: Float[Tensor, "*b d"], scale: float) -> Float[Tensor, "*b d"]:
    """Classifier-free guidance, `uncond + scale * (cond - uncond)`, of logits or of states before a linear head."""
    return uncond + scale * (cond - uncond)


def log_probs(logits: Float[Tensor, "*b vocab"], params: SamplingParams) -> Float[Tensor, "*b vocab"]:
    """`log p`: guided logits after temperature, top-k and top-p (in that order), normalised; removed tokens are -inf.

    Computed in float32 or wider. A greedy draw has all mass on the first largest logit.
    """
    return filtered(logits, params).log_softmax(-1)


def filtered(logits: Float[Tensor, "*b vocab"], params: SamplingParams) -> Float[Tensor, "*b vocab"]:
    """`log p` up to a constant of each row, which does not change argmax(log p + g)."""
    logits = at_least_float32(logits)
    if params.greedy:
        greedy = torch.full_like(logits, -torch.inf)
        return greedy.scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)
    logits = logits / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        threshold = logits.topk(params.top_k, sorted=False).values.amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if params.top_p < 1:
        logits = _nucleus(logits, params.top_p)
    return logits


def _nucleus(logits: Float[Tensor, "*b vocab"], top_p: float) -> Float[Tensor, "*b vocab"]:
    """Keep the smallest set of largest tokens whose probability reaches `top_p` (arXiv 1904.09751)."""
    ordered, index = logits.sort(dim=-1, descending=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs
    least = torch.finfo(ordered.dtype).tiny  # a smaller top_p would be 0 in this dtype and keep no token
    ordered = ordered.masked_fill(before >= max(top_p, least), -torch.inf)
    return torch.empty_like(logits).scatter_(-1, index, ordered)


def draws(q: Float[Tensor, " vocab"], count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    """`count` independent draws from q, on the CPU, where the generator of an image lies."""
    return torch.multinomial(q.cpu().double(), count, replacement=True, generator=generator)


def gumbel_argmax(scores: Float[Tensor, "*b vocab"], noise: Float[Tensor, "*b vocab"]) -> Int[Tensor, "*b"]:
    """The token that `log p` (or a draft's `log q`) and the noise of its position select: argmax(scores + noise)."""
    return (scores + noise).max(-1).indices  # on a CPU, max takes half the time of argmax
