"""What drafters are fitted to: the mass that they share with the target, and how often they choose its very token."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hawk.decoding.sampling import gumbel_argmax


def overlap(log_q: Float[Tensor, "*b vocab"], log_p: Float[Tensor, "*b vocab"]) -> Float[Tensor, "*b"]:
    """Mass kept: the sum over tokens of min(p, q), one less the total variation."""
    return torch.minimum(log_q.exp(), log_p.exp()).sum(-1)


def coupled_nats(
    log_q: Float[Tensor, "*b vocab"], log_p: Float[Tensor, "*b vocab"], noise: Float[Tensor, "*b vocab"]
) -> Float[Tensor, "*b"]:
    """-log softmax(log q + g) of the token argmax(log p + g), for the Gumbel noise g.

    The drafter will know the noise by which the target chooses, so it is asked for the token of each noise, where
    cross-entropy asks for all tokens by their chance.
    """
    chosen = gumbel_argmax(log_p, noise)
    return -(log_q + noise).log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
