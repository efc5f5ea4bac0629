"""Linear layers packed for the few rows of a decoding step on a CPU.

MKL's packed product is faster than the plain one from a few to some sixty rows, and, unlike it, gives a row the same
bits whatever rows stand beside it (where widths are multiples of 64, as in models): so verifying many nodes at once
rounds as plain AR does.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

PACKED_FOR_ROWS = 64
"""Rows that the packing is laid out for; measured best, also for fewer rows and for a single one."""

PACK_LIMIT = 1 << 30
"""Bytes of weights up to which a second, packed copy of them is worth its memory."""


class PackedLinear(nn.Module):
    """A frozen `nn.Linear` whose float32 weight is also held packed; `weight` and `bias` keep their names."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.product = torch.ops.mkl._mkl_linear.default
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(linear.weight.detach(), PACKED_FOR_ROWS)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return self.product(x, self.packed, self.weight, self.bias, x.numel() // x.shape[-1])


def can_pack() -> bool:
    """Whether this build of PyTorch carries MKL's packed product."""
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def pack_linears(module: nn.Module) -> int:
    """Replace the frozen float32 linear layers below `module` by packed ones; how many. None on other machines."""
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and child.weight.dtype == torch.float32 and child.weight.device.type == "cpu"
    ]
    if not can_pack() or sum(child.weight.nbytes for _, _, child in found) > PACK_LIMIT:
        return 0
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child.requires_grad_(False)))
    return len(found)
