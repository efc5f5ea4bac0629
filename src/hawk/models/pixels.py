"""From image codes to pixels: decoders compute in at least float32, and the pixels of damaged decoders are refused."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hawk.decoding.memory import is_out_of_memory, refused_where_memory_ends
from hawk.errors import HawkError
from hawk.models.protocol import Model

DRAWN = (
    "the tokens were drawn, but not even one image's pixels could be decoded: free memory or draw smaller images; "
    "the same seeds draw the same tokens again"
)
"""What to do where memory ends after the tokens were drawn."""


FAR = 100.0
"""A pixel of a sound decoder lies about in [-1, 1] (at most 4 from 0 in all models measured), never so far from 0."""

MOST_FAR = 0.1
"""The share of pixels beyond `FAR` above which a decoder is damaged: its pictures would be black and white only."""


def sound_pixels(model: Model, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
    """Images of token grids, about in [-1, 1].

    A batch that does not fit into memory is decoded in parts. Raises `HawkError` where a pixel is not a finite number,
    where more than the share `MOST_FAR` of the pixels lie beyond `FAR`, and where not even one image fits.
    """
    with refused_where_memory_ends(DRAWN):
        pixels = _in_parts(model, codes)
    if not bool(pixels.isfinite().all()):
        raise HawkError(
            "the pixel decoder gave pixels that are not finite numbers: its weights are damaged, or were too large for "
            "the dtype that they were converted to: load the published weights in float32"
        )
    far = int(torch.count_nonzero((pixels > FAR) | (pixels < -FAR)))
    if far > MOST_FAR * pixels.numel():
        raise HawkError(
            f"the pixel decoder gave pixels up to {pixels.abs().max():.1g}, which should lie about in [-1, 1]: its "
            "weights are damaged: fetch or make the model again"
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

    Published decoders overflow in float16. A decoder with weights of 16 bits is copied with wide weights for this call:
    the decoder itself, which may belong to the caller and be in use in other threads, never changes.
    """
    held = [*decoder.parameters(), *decoder.buffers()]
    narrow = {id(weight) for weight in held if weight.is_floating_point() and weight.itemsize < 4}
    if narrow:
        # `deepcopy` takes the copies of weights from here; wide weights are shared with the decoder.
        copies = {id(weight): _widened(weight) if id(weight) in narrow else weight for weight in held}
        decoder = deepcopy(decoder, copies)
    pixels: Tensor = decoder.decode(codes)
    return pixels


def _widened(weight: Tensor) -> Tensor:
    """A weight in float32; a parameter stays a parameter, which is not trained."""
    wide = weight.detach().to(torch.float32)
    return nn.Parameter(wide, requires_grad=False) if isinstance(weight, nn.Parameter) else wide
