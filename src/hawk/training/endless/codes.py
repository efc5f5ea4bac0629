"""Embedding and output rows that FSQ codes share while a target is trained: a code is its digits, not a bare number.

A row is the code's own row plus a sum of rows that all codes with the same digit, or the same pair of neighbouring
digits, share. What one code teaches thus helps all that look alike. The sums are folded into plain rows afterwards.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hawk.models.llamagen.target import LlamaGen
from hawk.models.tokenizers.fsq import FSQTokenizer


class SharedRows(nn.Module):
    """A parametrisation: weight `[codes, dim]` -> weight + digits `[codes, f]` @ shared `[f, dim]`."""

    digits: Tensor

    def __init__(self, digits: Float[Tensor, "codes f"], dim: int, std: float) -> None:
        super().__init__()
        self.register_buffer("digits", digits, persistent=False)
        self.shared = nn.Parameter(torch.randn(digits.shape[1], dim) * std)

    def forward(self, weight: Float[Tensor, "codes dim"]) -> Float[Tensor, "codes dim"]:
        return weight + self.digits @ self.shared


def share_rows(target: LlamaGen, tokenizer: FSQTokenizer, std: float = 0.02) -> None:
    """Let a target's embedding and output rows share what codes have in common.

    `std` is that of the embeddings' new shared rows; with 0 the target computes the same as before.
    """
    digits, dim = code_digits(tokenizer).to(target.device), target.config.dim
    parametrize.register_parametrization(target.tok_embeddings, "weight", SharedRows(digits, dim, std))
    parametrize.register_parametrization(target.output, "weight", SharedRows(digits, dim, 0.0))


def fold_rows(target: LlamaGen) -> None:
    """Turn shared rows into plain ones; the target computes the same as before."""
    for module in (target.tok_embeddings, target.output):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def code_digits(tokenizer: FSQTokenizer) -> Float[Tensor, "codes f"]:
    """For each code 1 at its digit in every channel, and at each pair of digits of neighbouring channels, else 0."""
    quantizer = tokenizer.quantizer
    codes = torch.arange(tokenizer.codebook_size, device=quantizer.sizes.device)
    digits = codes[:, None] // quantizer.radix % quantizer.sizes
    sizes: list[int] = quantizer.sizes.tolist()
    parts = [F.one_hot(digits[:, i], size) for i, size in enumerate(sizes)]
    for i, (left, right) in enumerate(itertools.pairwise(sizes)):
        parts.append(F.one_hot(digits[:, i] * right + digits[:, i + 1], left * right))
    return torch.cat(parts, dim=1).float()
