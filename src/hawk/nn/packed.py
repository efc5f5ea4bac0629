"""Linear layers packed for decoding on a CPU, where a step has few rows; products are in float32 or in bfloat16.

Weights may also be held in float16; products and sums are then in float32. A step of few rows takes about as long
as its weights take to be read, which 16 bits halve.

A packed product is faster than PyTorch's own at a step's row counts. It gives a row the same bits whatever the other
rows are (if widths are multiples of 64, as in models), so that a node that is verified among many others gets the same
logits as in plain AR. On processors with matrix units (AMX) the bfloat16 product of sixty rows takes hardly longer
than that of one row.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hawk.errors import HawkError
from hawk.machine import made_by_intel
from hawk.nn.layers import ROWS_AT_ONCE, WIDE, RMSNorm, SwiGLU, in_dtype, product

PACKED_FOR_ROWS = 64
"""The number of rows that the packed layout is made for: measured to be the best, even for a single row."""


class MKLLinear(nn.Module):
    """A frozen linear layer in float32, packed by MKL. The weights are held only once, in packed form."""

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None) -> None:
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.product = torch.ops.mkl._mkl_linear.default
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.detach(), PACKED_FOR_ROWS)
        # The product reads the shape of the weights here, and their values only from the packed form.
        self.register_buffer("shape", torch.zeros(1).expand(weight.shape), persistent=False)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return self.product(in_dtype(x, torch.float32), self.packed, self.shape, self.bias, x.numel() // x.shape[-1])


class OneDNNLinear(nn.Module):
    """A frozen linear layer, packed by oneDNN: its product is in float32, or in bfloat16 with sums in float32.

    The input may have any float dtype. The weights are held only once, in packed form.
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
        x = in_dtype(x, self.dtype)
        if self.dtype == torch.float32 or x.shape[-1] <= WIDE or x.numel() <= ROWS_AT_ONCE * x.shape[-1]:
            return self.product(x, self.packed, self.bias, "none", [], "")
        parts = x.flatten(0, -2).split(ROWS_AT_ONCE)
        together = torch.cat([self.product(part, self.packed, self.bias, "none", [], "") for part in parts])
        return together.unflatten(0, x.shape[:-1])


ROWS_TOGETHER = 3
"""FBGEMM adds in another order for one or two rows than for three to six, into which it splits a multiple of three."""


class HalfLinear(nn.Module):
    """A frozen linear layer with its weights in float16, packed by FBGEMM; input, product and output are in float32.

    Weights of a bfloat16 checkpoint are held exactly, except those smaller than 6e-5, which float16 rounds to a
    multiple of 6e-8. The weights are held only once, in packed form.
    """

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None) -> None:
        super().__init__()
        self.product = torch.ops.quantized.linear_dynamic_fp16.default
        wide = fitting_float16(weight)
        added = None if bias is None else bias.detach().float()
        self.packed = torch.ops.quantized.linear_prepack_fp16(wide, added)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        rows = in_dtype(x, torch.float32).reshape(-1, x.shape[-1])
        missing = -len(rows) % ROWS_TOGETHER
        if not missing:
            return self.product(rows, self.packed).view(*x.shape[:-1], -1)
        whole = F.pad(rows, (0, 0, 0, missing))
        return self.product(whole, self.packed)[: len(rows)].view(*x.shape[:-1], -1)


def can_pack() -> bool:
    """Whether this build of PyTorch has MKL's packed product, and the processor is made by Intel.

    On others oneDNN's is faster (on an AMD EPYC of 2019, 2 rows took 3.7 ms against 5.6, and 32 rows 8.5 against 12).
    """
    return made_by_intel() and torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def has_onednn() -> bool:
    """Whether this build of PyTorch has oneDNN's packed product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def can_pack_bfloat16() -> bool:
    """Whether oneDNN's packed bfloat16 product is in this build of PyTorch and runs on this processor."""
    return has_onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def fitting_float16(weight: Float[Tensor, "o i"]) -> Float[Tensor, "o i"]:
    """The weights in float32; `HawkError` where one is not finite, or is infinite in float16."""
    wide = weight.detach().float()
    most = wide.abs().max().item()  # a NaN, if there is one
    if not math.isfinite(most):
        raise HawkError("weights are not finite: the file that holds them is damaged")
    if most > torch.finfo(torch.float16).max:
        raise HawkError(f"weights up to {most:.3g} do not fit into float16: use dtype bfloat16 or float32")
    return wide


@cache
def can_pack_float16() -> bool:
    """Whether FBGEMM's packed product with float16 weights is in this build of PyTorch and runs on this processor."""
    try:
        layer = HalfLinear(torch.eye(8))
        return torch.equal(layer(torch.ones(1, 8)), torch.ones(1, 8))
    except (AttributeError, RuntimeError):  # the build lacks the product, or the processor its instructions
        return False


def products_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which packed layers with weights in `dtype` compute."""
    return torch.float32 if dtype == torch.float16 else dtype


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 products (AMX or AVX512_BF16): bfloat16 is then its fastest dtype.

    On an AMD EPYC with AVX512_BF16, 32 rows take 0.55 of the time that they take with float16 weights, 2 rows 0.8.
    """
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
    return can_pack_bfloat16() and any(ask is not None and ask() for ask in asked)  # some PyTorch versions lack one


def fast_dtype() -> torch.dtype:
    """The dtype of matrix products in which this CPU decodes fastest."""
    return torch.bfloat16 if multiplies_bfloat16() else torch.float32


class FrozenLinear(nn.Module):
    """A frozen linear layer with PyTorch's own product, for machines and dtypes without a packed one."""

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return product(in_dtype(x, self.weight.dtype), self.weight, self.bias)


def packed_linear(
    weight: Float[Tensor, "o i"], dtype: torch.dtype, bias: Float[Tensor, " o"] | None = None
) -> nn.Module:
    """A frozen linear layer on the CPU with its weights in `dtype`, packed if this machine can do so.

    Its product is in `dtype`, too, but for float16, where it is in float32.
    """
    if dtype == torch.float16:
        if can_pack_float16():
            return HalfLinear(weight, bias)
        return packed_linear(fitting_float16(weight).half().float(), torch.float32, bias)
    if dtype == torch.float32 and can_pack():
        return MKLLinear(weight, bias)
    if (dtype == torch.float32 and has_onednn()) or (dtype == torch.bfloat16 and can_pack_bfloat16()):
        return OneDNNLinear(weight, dtype, bias)
    return FrozenLinear(weight, bias, dtype)


def pack_linears(module: nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Replace all linear layers on the CPU inside `module` by packed ones; return how many there were.

    Layers in float32 or in `dtype` are packed (for float16, layers in bfloat16, too). Each layer's own weights are
    freed before the next layer is packed.
    """
    packable = {torch.float32, dtype} | ({torch.bfloat16} if dtype == torch.float16 else set())
    found = [
        (parent, name)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and child.weight.dtype in packable and child.weight.device.type == "cpu"
    ]
    for parent, name in found:
        layer = getattr(parent, name)
        setattr(parent, name, packed_linear(layer.weight, dtype, layer.bias))
        del layer
    return len(found)


class PackedNormLinear(nn.Module):
    """A frozen RMSNorm and the linear layer after it; the norm's weight is multiplied into the layer's.

    With float16 weights, which hold those of a bfloat16 checkpoint exactly, the norm's weight stays apart.
    """

    eps: Tensor

    def __init__(
        self,
        norm: RMSNorm,
        weight: Float[Tensor, "o i"],
        dtype: torch.dtype,
        bias: Float[Tensor, " o"] | None = None,
    ) -> None:
        super().__init__()
        self.dtype = products_in(dtype)
        self.register_buffer("eps", torch.tensor(norm.eps), persistent=False)
        self.gain = nn.Parameter(norm.weight.detach(), requires_grad=False) if dtype == torch.float16 else None
        joined = weight.detach() if dtype == torch.float16 else weight.detach() * norm.weight.detach()
        self.linear = packed_linear(joined, dtype, bias)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        x = in_dtype(x, torch.float32)
        # The norm takes four operations; PyTorch's own takes eight on a CPU.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(self.eps, length, length, value=1 / x.shape[-1]).rsqrt_()
        normed = torch.mul(x, scale, out=torch.empty_like(x, dtype=self.dtype))
        return self.linear(normed if self.gain is None else normed.mul_(self.gain))


class PackedFeedForward(nn.Module):
    """A frozen RMSNorm and the SwiGLU block after it, whose two input products are computed as one."""

    def __init__(self, norm: RMSNorm, block: SwiGLU, dtype: torch.dtype) -> None:
        super().__init__()
        self.entry = PackedNormLinear(norm, torch.cat((block.w1.weight, block.w3.weight)), dtype)
        self.w2 = packed_linear(block.w2.weight, dtype)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        gate, up = self.entry(x).chunk(2, -1)
        return self.w2(F.silu(gate).mul_(up))


def pack_after_norm(block: nn.Module, norm: str, layer: str, dtype: torch.dtype) -> None:
    """Pack the linear layer or SwiGLU block named `layer` together with the RMSNorm before it, named `norm`.

    A linear layer keeps its bias; a SwiGLU block has none.
    """
    before, after = block.get_submodule(norm), block.get_submodule(layer)
    assert isinstance(before, RMSNorm)
    if isinstance(after, SwiGLU):
        packed: nn.Module = PackedFeedForward(before, after, dtype)
    else:
        assert isinstance(after, nn.Linear)
        packed = PackedNormLinear(before, after.weight, dtype, after.bias)
    block.set_submodule(layer, packed)
    block.set_submodule(norm, nn.Identity())
