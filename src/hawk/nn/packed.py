"""Linear layers packed for the few rows of a decoding step on a CPU, in float32 or in bfloat16.

Both products are faster than the plain one at a step's row counts, and give a row the same bits whatever rows stand
beside it (where widths are multiples of 64, as in models): so verifying many nodes at once rounds as plain AR does.
On processors with matrix units (AMX) the bfloat16 product takes hardly longer for sixty rows than for one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hawk.machine import made_by_intel
from hawk.nn.layers import RMSNorm, SwiGLU

PACKED_FOR_ROWS = 64
"""Rows that the packing is laid out for; measured best, also for fewer rows and for a single one."""

ROWS_AT_ONCE, WIDE = 32, 512
"""oneDNN orders the sums of a bfloat16 product over more than `WIDE` inputs otherwise above `ROWS_AT_ONCE` rows."""

PACK_LIMIT = 1 << 30
"""Bytes of float32 weights up to which a second, packed copy of them is worth its memory."""


class MKLLinear(nn.Module):
    """A frozen linear layer in float32, packed by MKL."""

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.product = torch.ops.mkl._mkl_linear.default
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight.detach(), PACKED_FOR_ROWS)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return self.product(x.float(), self.packed, self.weight, self.bias, x.numel() // x.shape[-1])


class OneDNNLinear(nn.Module):
    """A frozen linear layer with its product in float32, or in bfloat16 with sums in float32, packed by oneDNN.

    Takes any float dtype. Holds its weights once.
    """

    def __init__(
        self, weight: Float[Tensor, "o i"], dtype: torch.dtype, bias: Float[Tensor, " o"] | None = None
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        self.product = torch.ops.mkldnn._linear_pointwise.default
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), PACKED_FOR_ROWS)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        x = x.to(self.dtype)
        if self.dtype == torch.float32 or x.shape[-1] <= WIDE or x.numel() <= ROWS_AT_ONCE * x.shape[-1]:
            return self.product(x, self.packed, self.bias, "none", [], "")
        parts = x.flatten(0, -2).split(ROWS_AT_ONCE)
        together = torch.cat([self.product(part, self.packed, self.bias, "none", [], "") for part in parts])
        return together.unflatten(0, x.shape[:-1])


def can_pack() -> bool:
    """Whether this build of PyTorch carries MKL's packed product, and the processor is one that MKL is made for.

    On others oneDNN's is faster (measured on an AMD EPYC of 2019: 2 rows 3.7 against 5.6 ms, 32 rows 8.5 against 12).
    """
    return made_by_intel() and torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def has_onednn() -> bool:
    """Whether this build of PyTorch carries oneDNN's packed product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def can_pack_bfloat16() -> bool:
    """Whether this build and processor carry oneDNN's packed bfloat16 product."""
    return has_onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_matrix_units() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware (AMX), so that bfloat16 is the fast dtype on it."""
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)  # not in every supported PyTorch
    return can_pack_bfloat16() and asked is not None and bool(asked())


def fast_dtype() -> torch.dtype:
    """The dtype of products in which this CPU decodes fastest."""
    return torch.bfloat16 if has_matrix_units() else torch.float32


def worth_packing(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether to pack a module: MKL holds float32 twice then, which large models cannot afford."""
    return dtype == torch.bfloat16 or not can_pack() or sum(p.nbytes for p in module.parameters()) <= PACK_LIMIT


class FrozenLinear(nn.Module):
    """A frozen linear layer as PyTorch has it, for machines and dtypes without a packed product."""

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def packed_linear(
    weight: Float[Tensor, "o i"], dtype: torch.dtype, bias: Float[Tensor, " o"] | None = None
) -> nn.Module:
    """A frozen linear layer on the CPU with its product in `dtype`, packed where this machine can."""
    if dtype == torch.float32 and can_pack():
        return MKLLinear(weight, bias)
    if (dtype == torch.float32 and has_onednn()) or (dtype == torch.bfloat16 and can_pack_bfloat16()):
        return OneDNNLinear(weight, dtype, bias)
    return FrozenLinear(weight, bias, dtype)


def pack_linears(module: nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Replace the float32 linear layers on the CPU below `module` by packed ones; how many there were."""
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and child.weight.dtype == torch.float32 and child.weight.device.type == "cpu"
    ]
    for parent, name, child in found:
        setattr(parent, name, packed_linear(child.weight, dtype, child.bias))
    return len(found)


class PackedNormLinear(nn.Module):
    """A frozen RMSNorm and the linear layer after it, the norm's weight folded into the layer's."""

    def __init__(self, norm: RMSNorm, weight: Float[Tensor, "o i"], dtype: torch.dtype) -> None:
        super().__init__()
        self.eps, self.dtype = norm.eps, dtype
        self.linear = packed_linear(weight.detach() * norm.weight.detach(), dtype)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        x = x.float()
        # The norm in few and small steps: PyTorch's own takes eight on a CPU.
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return self.linear(torch.mul(x, scale, out=torch.empty_like(x, dtype=self.dtype)))


class PackedFeedForward(nn.Module):
    """A frozen RMSNorm and the SwiGLU block after it; the two products of its entry are one."""

    def __init__(self, norm: RMSNorm, block: SwiGLU, dtype: torch.dtype) -> None:
        super().__init__()
        self.entry = PackedNormLinear(norm, torch.cat((block.w1.weight, block.w3.weight)), dtype)
        self.w2 = packed_linear(block.w2.weight, dtype)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        gate, up = self.entry(x).chunk(2, -1)
        return self.w2(F.silu(gate).mul_(up))


def pack_after_norm(block: nn.Module, norm: str, layer: str, dtype: torch.dtype) -> None:
    """Pack the linear layer or SwiGLU block named `layer` together with the RMSNorm before it, named `norm`."""
    before, after = block.get_submodule(norm), block.get_submodule(layer)
    assert isinstance(before, RMSNorm)
    if isinstance(after, SwiGLU):
        packed: nn.Module = PackedFeedForward(before, after, dtype)
    else:
        assert isinstance(after, nn.Linear)
        packed = PackedNormLinear(before, after.weight, dtype)
    block.set_submodule(layer, packed)
    block.set_submodule(norm, nn.Identity())
