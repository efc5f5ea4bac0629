"""Two measures of a draft: the mass that it shares with the target, and how well it predicts the coupled token."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hawk.decoding.sampling import gumbel_argmax


def overlap(log_q: Float[Tensor, "*b vocab"], log_p: Float[Tensor, "*b vocab"]) -> Float[Tensor, "*b"]:
    """The mass kept: the sum over tokens of min(p, q), which is 1 minus the total variation distance."""
    return torch.minimum(log_q.exp(), log_p.exp()).sum(-1)


def coupled_nats(
    log_q: Float[Tensor, "*b vocab"], log_p: Float[Tensor, "*b vocab"], noise: Float[Tensor, "*b vocab"]
) -> Float[Tensor, "*b"]:
    """-log softmax(log q + g) at the target's token argmax(log p + g), where g is the Gumbel noise.

    While decoding, the drafter knows the noise with which the target chooses its token. So the drafter learns to
    predict that one token, whereas cross-entropy would teach it the probabilities of all tokens.
    """
    chosen = gumbel_argmax(log_p, noise)
    return -(log_q + noise).log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
