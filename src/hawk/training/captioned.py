"""Captioned pictures, and the batches of tokens that a target learns from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from hawk.models.llamagen.words import StaticTextEncoder, TextFeatures
from hawk.models.tokenizers.fsq import ImageTokenizer
from hawk.training.sprites.tokenizer import to_tensor


@dataclass(frozen=True)
class Captioned:
    """Pictures uint8 `[b, side, side, 3]` and their captions."""

    rgb: UInt8[np.ndarray, "b side side 3"]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Readable:
    """Pictures and captions as they travel to the device that encodes and learns them, made by any process."""

    rgb: UInt8[Tensor, "b side side 3"]
    text: TextFeatures


def readable(drawn: Captioned, text: StaticTextEncoder) -> Readable:
    """The pictures as a tensor, and the features of their captions."""
    return Readable(torch.from_numpy(drawn.rgb), text.encode(list(drawn.captions)))


@dataclass(frozen=True)
class CaptionedTokens:
    """A training batch: image tokens in raster order, caption features, and the padding mask of the features."""

    tokens: Int[Tensor, "b n"]
    features: Float[Tensor, "b t d"]
    mask: Bool[Tensor, "b t"]


@torch.no_grad()
def tokenised(read: Readable, tokenizer: ImageTokenizer, device: str, half: bool = False) -> CaptionedTokens:
    """Pictures and captions as the target reads them, on `device`; `half` encodes the pictures in bfloat16."""
    with torch.autocast(device, torch.bfloat16, enabled=half):
        codes = tokenizer.encode(to_tensor(read.rgb, device))
    return CaptionedTokens(codes.flatten(1), read.text.features.to(device), read.text.mask.to(device))
