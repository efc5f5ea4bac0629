"""Captioned pictures, and the batches of tokens that a target learns from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from hawk.models.llamagen.words import StaticTextEncoder, TextFeatures
from hawk.models.tokenizers.fsq import ImageTokenizer


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


def to_tensor(images: UInt8[Tensor, "b h w 3"], device: str = "cpu") -> Float[Tensor, "b 3 h w"]:
    """Convert pictures into a float batch on `device`, with values in [-1, 1]."""
    scaled = images.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return scaled.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def tokenised(read: Readable, tokenizer: ImageTokenizer, device: str) -> CaptionedTokens:
    """Pictures and captions as the target reads them, on `device`."""
    codes = tokenizer.encode(to_tensor(read.rgb, device))
    return CaptionedTokens(codes.flatten(1), read.text.features.to(device), read.text.mask.to(device))
