"""Transformer layers shared by targets and drafters: RMSNorm, N-axis rotary positions, SwiGLU, masked attention.

On a CPU, products and attention round a row differently beside other rows than alone, unless they are computed in whole
blocks of rows. `product`, `attend` under a mask of `whole_query_blocks`, and `WholeBlocks` around other libraries' code
give a row the same bits however many rows are computed with it. (The layers between them do so for widths that are
multiples of 8, as in models.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def in_dtype(x: Float[Tensor, "*b"], dtype: torch.dtype) -> Float[Tensor, "*b"]:
    """The tensor in a dtype. A tensor that has it already is returned at once, which `Tensor.to` needs 3 us for."""
    return x if x.dtype == dtype else x.to(dtype)


def at_least_float32(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The tensor in float32, or in float64 if it is so already."""
    return x if x.dtype == torch.float64 else in_dtype(x, torch.float32)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in at least float32 and scaled in the input's dtype."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        wide = at_least_float32(x)
        return in_dtype(F.rms_norm(wide, wide.shape[-1:], None, self.eps), x.dtype) * in_dtype(self.weight, x.dtype)


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


def rotate(x: Float[Tensor, "b #n heads d"], angles: Float[Tensor, "#b #n half 2"]) -> Float[Tensor, "b whole heads d"]:
    """Turn each pair of adjacent channels by its angle; (cos, sin) of (0, 0) makes it zero, as in LlamaGen's prefix."""
    wide = at_least_float32(x)
    pairs, angles = wide.unflatten(-1, (-1, 2)), in_dtype(angles, wide.dtype).unsqueeze(-3)
    # The compiler can fuse real arithmetic, but not complex; not every Apple GPU has complex numbers.
    if torch.compiler.is_compiling() or x.device.type == "mps":
        (x1, x2), (cos, sin) = pairs.unbind(-1), angles.unbind(-1)
        return torch.stack((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1).flatten(-2).to(x.dtype)
    turned = torch.view_as_complex(pairs) * torch.view_as_complex(angles)  # complex numbers need a single pass
    return in_dtype(torch.view_as_real(turned).flatten(-2), x.dtype)


def swiglu_width(dim: int, multiple_of: int) -> int:
    """The usual hidden width of a SwiGLU block: two thirds of 4 x dim, rounded up to a multiple."""
    return -(-(8 * dim // 3) // multiple_of) * multiple_of


def rotated_heads(
    projected: Float[Tensor, "b n channels"], heads: int, kv_heads: int, angles: Float[Tensor, "#b queries half 2"]
) -> tuple[Float[Tensor, "b heads queries d"], Float[Tensor, "b kv_heads n d"], Float[Tensor, "b kv_heads n d"]]:
    """Split one projection into queries, keys and values; queries and keys are rotated to their positions.

    For one row there may be several angles: then there is a query for each of them (`whole_query_blocks`).
    """
    split = projected.unflatten(-1, (heads + 2 * kv_heads, -1))
    turned = rotate(split[..., : heads + kv_heads, :], angles).transpose(1, 2)
    keys = turned[:, heads:, : projected.shape[1]]
    return turned[:, :heads], keys, split[..., heads + kv_heads :, :].transpose(1, 2)


def causal_visibility(real: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n n"]:
    """Which entries of a padded sequence each entry sees: itself, and the real ones (not padding) before it."""
    n = real.shape[1]
    before = torch.ones(n, n, dtype=torch.bool, device=real.device).tril()
    return (before & real[:, None, :]) | torch.eye(n, dtype=torch.bool, device=real.device)


def additive_mask(visible: Bool[Tensor, "b n m"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "b 1 n m"]:
    """The additive attention mask of all heads: 0 where a query sees a key, -inf where it does not."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, -torch.inf).unsqueeze(1)


ROW_BLOCK = 4
"""On a CPU, products and attention are computed for whole blocks of so many rows or queries.

MKL rounds one, two and three rows each in another way than four or more (measured in float32 on an AMD CPU)."""

ROWS_AT_ONCE, WIDE = 32, 512
"""In a bfloat16 product with more than `WIDE` inputs, oneDNN adds in another order above `ROWS_AT_ONCE` rows."""


def same_bits_in_windows(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a node's logits have the same bits in a window as alone: on CPUs, except in PyTorch's float16.

    How a GPU's kernels round depends on the shape.
    """
    return device.type == "cpu" and dtype != torch.float16


def whole_query_blocks(mask: Float[Tensor, "b 1 n m"]) -> Float[Tensor, "b 1 whole m"]:
    """An additive mask with a whole number of query blocks on a CPU; the queries that it adds see every key."""
    missing = -mask.shape[2] % ROW_BLOCK if mask.device.type == "cpu" else 0
    return F.pad(mask, (0, 0, 0, missing)) if missing else mask


def attend(
    q: Float[Tensor, "b heads queries d"],
    k: Float[Tensor, "b kv_heads m d"],
    v: Float[Tensor, "b kv_heads m d"],
    mask: Float[Tensor, "#b 1 whole m"] | None,
    nodes: int | None = None,
) -> Float[Tensor, "b n dim"]:
    """Attention under an additive mask (None: causal). There may be fewer key heads than query heads (grouped keys).

    The mask may have more rows than there are queries (`whole_query_blocks`): so many queries are computed. The outputs
    of the first `nodes` queries are returned (default: of all that were given), with the heads joined in the last axis.
    """
    grouped, queries = q.shape[1] != k.shape[1], q.shape[2]
    if torch.is_grad_enabled() and q.requires_grad and q.device.type == "cpu" and mask is not None and not grouped:
        trained: Tensor = _TrainedAttention.apply(q, k, v, in_dtype(mask, q.dtype))  # type: ignore[no-untyped-call]
        return trained.transpose(1, 2).flatten(2)
    if mask is not None and mask.shape[2] > queries:
        added = q[:, :, -1:].expand(-1, -1, mask.shape[2] - queries, -1)
        q = torch.cat((q, added), dim=2)  # takes less time than `F.pad`
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=None if mask is None else in_dtype(mask, q.dtype),
        is_causal=mask is None,
        enable_gqa=grouped,
    )
    return out[:, :, : nodes or queries].transpose(1, 2).flatten(2)


def product(
    x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*b o"]:
    """PyTorch's own product of a linear layer; on a CPU a row has the same bits however many rows there are."""
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    whole = F.pad(rows, (0, 0, 0, -len(rows) % ROW_BLOCK))
    if x.dtype == torch.bfloat16 and x.shape[-1] > WIDE and len(whole) > ROWS_AT_ONCE:
        out = torch.cat([F.linear(part, weight, bias) for part in whole.split(ROWS_AT_ONCE)])
    else:
        out = F.linear(whole, weight, bias)
    return out[: len(rows)].view(*x.shape[:-1], -1)


class WholeBlocks(TorchFunctionMode):
    """A context in which PyTorch's linear layers and attention are computed in whole blocks of rows on a CPU.

    It is for modules whose code is not ours. Attention without a mask stays as it is.
    """

    @no_type_check  # PyTorch calls it for every operation; there is no shape to check
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return product(*args, **{"x" if name == "input" else name: value for name, value in kwargs.items()})
        if func is F.scaled_dot_product_attention and kwargs.get("attn_mask") is not None:
            return _masked_attention(func, *args, **kwargs)
        return func(*args, **kwargs)


def _masked_attention(
    attention: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, **options: Any
) -> Tensor:
    """PyTorch's masked attention, for a whole number of query blocks on a CPU.

    A mask with a single row is the mask of every query: transformers folds grouped heads into the queries of one node.
    """
    queries = query.shape[-2]
    missing = -queries % ROW_BLOCK if query.device.type == "cpu" else 0
    if missing:
        query = F.pad(query, (0, 0, 0, missing))
        attn_mask = attn_mask if attn_mask.shape[-2] == 1 else F.pad(attn_mask, (0, 0, 0, missing))
    return attention(query, key, value, attn_mask=attn_mask, **options)[..., :queries, :]


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
