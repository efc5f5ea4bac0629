"""Transformer layers shared by targets and drafters: RMSNorm, N-axis rotary positions, SwiGLU, masked attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def at_least_float32(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The tensor in float32, or in float64 if it is so already."""
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in at least float32 and scaled in the input's dtype."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        wide = at_least_float32(x)
        return F.rms_norm(wide, wide.shape[-1:], None, self.eps).to(x.dtype) * self.weight.to(x.dtype)


class SwiGLU(nn.Module):
    """Feed-forward block `w2(silu(w1 x) * w3 x)` without biases."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


def rotary_angles(
    coordinates: Int[Tensor, "*b axes"], head_dim: int, base: float = 10000.0
) -> Float[Tensor, "*b half 2"]:
    """(cos, sin) of N-axis rotary positions (RoPE, arXiv 2104.09864); each axis has an equal share of the head."""
    axes = coordinates.shape[-1]
    per_axis = head_dim // axes
    exponents = torch.arange(0, per_axis, 2, device=coordinates.device)[: per_axis // 2].float() / per_axis
    angles = (coordinates.unsqueeze(-1).float() / base**exponents).flatten(-2)
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def rotate(x: Float[Tensor, "b n heads d"], angles: Float[Tensor, "#b n half 2"]) -> Float[Tensor, "b n heads d"]:
    """Turn each pair of adjacent channels by its angle; (cos, sin) of (0, 0) makes it zero, as in LlamaGen's prefix."""
    wide = at_least_float32(x)
    pairs, angles = wide.unflatten(-1, (-1, 2)), angles.to(wide.dtype).unsqueeze(-3)
    if torch.compiler.is_compiling():  # the compiler can fuse real arithmetic, but not complex
        (x1, x2), (cos, sin) = pairs.unbind(-1), angles.unbind(-1)
        return torch.stack((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1).flatten(-2).to(x.dtype)
    turned = torch.view_as_complex(pairs) * torch.view_as_complex(angles)  # complex numbers need a single pass
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def swiglu_width(dim: int, multiple_of: int) -> int:
    """The usual hidden width of a SwiGLU block: two thirds of 4 x dim, rounded up to a multiple."""
    return -(-(8 * dim // 3) // multiple_of) * multiple_of


def rotated_heads(
    projected: Float[Tensor, "b n channels"], heads: int, kv_heads: int, angles: Float[Tensor, "#b n half 2"]
) -> tuple[Float[Tensor, "b heads n d"], Float[Tensor, "b kv_heads n d"], Float[Tensor, "b kv_heads n d"]]:
    """Split one projection into queries, keys and values; queries and keys are rotated to their positions."""
    split = projected.unflatten(-1, (heads + 2 * kv_heads, -1))
    turned = rotate(split[..., : heads + kv_heads, :], angles).transpose(1, 2)
    return turned[:, :heads], turned[:, heads:], split[..., heads + kv_heads :, :].transpose(1, 2)


def causal_visibility(real: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n n"]:
    """Which entries of a padded sequence each entry sees: itself, and the real ones (not padding) before it."""
    n = real.shape[1]
    before = torch.ones(n, n, dtype=torch.bool, device=real.device).tril()
    return (before & real[:, None, :]) | torch.eye(n, dtype=torch.bool, device=real.device)


def additive_mask(visible: Bool[Tensor, "b n m"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "b 1 n m"]:
    """The additive attention mask of all heads: 0 where a query sees a key, -inf where it does not."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, -torch.inf).unsqueeze(1)


QUERY_BLOCK = 32
"""The number of queries in one block of the CPU's fused attention kernel."""


def attend(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b kv_heads m d"],
    v: Float[Tensor, "b kv_heads m d"],
    mask: Float[Tensor, "#b 1 n m"] | None,
) -> Float[Tensor, "b n dim"]:
    """Attention under an additive mask (None: causal). There may be fewer key heads than query heads (grouped keys).

    The heads' outputs are joined in the last axis.
    """
    grouped = q.shape[1] != k.shape[1]
    if torch.is_grad_enabled() and q.requires_grad and q.device.type == "cpu" and mask is not None and not grouped:
        trained: Tensor = _TrainedAttention.apply(q, k, v, mask.to(q.dtype))  # type: ignore[no-untyped-call]
        return trained.transpose(1, 2).flatten(2)
    queries = q.shape[2]
    if queries % QUERY_BLOCK == 1 and mask is not None and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        # The CPU's kernel rounds differently if a query is alone in its block: the query is computed twice.
        q, mask = torch.cat((q, q[:, :, -1:]), dim=2), torch.cat((mask, mask[:, :, -1:]), dim=2)
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=None if mask is None else mask.to(q.dtype),
        is_causal=mask is None,
        enable_gqa=grouped,
    )
    return out[:, :, :queries].transpose(1, 2).flatten(2)


class _TrainedAttention(torch.autograd.Function):
    """Attention by plain matrix products, for training on a CPU: the fused kernel's backward pass is half as fast."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        q = q * q.shape[-1] ** -0.5
        weights = (q @ k.transpose(-1, -2)).add_(mask).softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights = ctx.saved_tensors
        out = gradients[0]
        pull = weights * (out @ v.transpose(-1, -2))
        scores = pull - weights * pull.sum(-1, keepdim=True)
        return (scores @ k) * q.shape[-1] ** -0.5, scores.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ out, None
