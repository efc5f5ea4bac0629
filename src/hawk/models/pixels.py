"""From image codes to pixels: decoders compute in at least float32, and pixels that are not finite are refused."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from hawk.decoding.memory import is_out_of_memory, refused_where_memory_ends
from hawk.errors import HawkError
from hawk.models.protocol import Model

DRAWN = (
    "the tokens were drawn, but not even one image's pixels could be decoded: free memory or draw smaller images; "
    "the same seeds draw the same tokens again"
)
"""What to do where memory ends after the tokens were drawn."""


def finite_pixels(model: Model, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
    """Images of token grids, about in [-1, 1].

    A batch that does not fit into memory is decoded in parts. Raises `HawkError` where a pixel is not a finite number,
    and where not even one image fits.
    """
    with refused_where_memory_ends(DRAWN):
        pixels = _in_parts(model, codes)
    if not bool(pixels.isfinite().all()):
        raise HawkError(
            "the pixel decoder gave pixels that are not finite numbers: its weights are damaged, or were too large for "
            "the dtype that they were converted to: load the published weights in float32"
        )
    return pixels


def _in_parts(model: Model, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
    """Images of token grids: of all at once, or else of either half, on the CPU."""
    try:
        return model.pixels(codes)
    except (RuntimeError, MemoryError) as error:
        if len(codes) == 1 or not is_out_of_memory(error):
            raise
    # The error is gone here, and with it the memory that its traceback held.
    return torch.cat([_in_parts(model, half).cpu() for half in codes.tensor_split(2)])


def decoded_wide(decoder: Any, codes: Int[Tensor, "b *grid"]) -> Float[Tensor, "b 3 height width"]:
    """The pixels that `decoder.decode(codes)` gives, computed in at least float32.

    Published decoders overflow in float16. Weights of 16 bits are cast for this call only: the decoder, which may
    belong to the caller, stays as it is.
    """
    held = (*decoder.named_parameters(), *decoder.named_buffers())
    narrow = {name: weight for name, weight in held if weight.is_floating_point() and weight.itemsize < 4}
    wide = {f"decoder.{name}": weight.to(torch.float32) for name, weight in narrow.items()}
    pixels: Tensor = functional_call(_Decoding(decoder), wide, (codes,))
    return pixels


class _Decoding(nn.Module):
    """A module whose `forward` is the `decode` of another one, because `functional_call` calls `forward`."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder: Any = decoder

    def forward(self, codes: Int[Tensor, "b *grid"]) -> Float[Tensor, "b 3 height width"]:
        pixels: Tensor = self.decoder.decode(codes)
        return pixels
