"""The interface of image tokenizers (`decode` to draw, `encode` to train), and the bundled model's tokenizer.

`FSQTokenizer` has a *local* encoder, in which a cell sees 12x12 pixels, so that a flat background is the same code
everywhere; its decoder is wide. Published tokenizers, which only decode here, are in `vqgan.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@runtime_checkable
class PixelDecoder(Protocol):
    """Turns codes `[batch, rows, cols]` into images `[batch, 3, height, width]` with pixels about in [-1, 1]."""

    @property
    def codebook_size(self) -> int: ...

    @property
    def downsample(self) -> int: ...

    def decode(self, codes: Int[Tensor, "b rows cols"]) -> Float[Tensor, "b 3 h w"]: ...


@runtime_checkable
class ImageTokenizer(PixelDecoder, Protocol):
    """A `PixelDecoder` that can also encode images in [-1, 1] to codes."""

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b rows cols"]: ...


# --- the bundled tokenizer -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FSQConfig:
    """The shape of an `FSQTokenizer`: levels of each latent channel; widths and depths at 1/2, 1/4 and 1/8 size."""

    levels: tuple[int, ...] = (8, 8, 8, 4)
    encoder_widths: tuple[int, ...] = (64, 128, 256)
    decoder_widths: tuple[int, ...] = (64, 128, 256)
    decoder_depths: tuple[int, ...] = (2, 2, 3)

    def to_dict(self) -> dict[str, Any]:
        return {name: list(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FSQConfig:
        return cls(**{name: tuple(value) for name, value in values.items()})


class FSQ(nn.Module):
    """Finite scalar quantisation (arXiv 2309.15505): each latent channel is rounded to `levels[i]` values.

    No codebook is learned, so none can collapse. The channels' levels are the digits of a code in a mixed radix.
    """

    sizes: Tensor
    radix: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        sizes = torch.tensor(levels)
        radix = torch.cumprod(torch.tensor((1, *levels[:-1])), 0)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("radix", radix, persistent=False)
        self.codebook_size = prod(levels)

    def forward(self, z: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        """Quantised latents in [-1, 1], with straight-through gradients."""
        bounded = self._bound(z)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self.sizes // 2)

    def codes(self, z: Float[Tensor, "*b c"]) -> Int[Tensor, "*b"]:
        """The code of each latent vector."""
        digits = self._bound(z).round().long() + self.sizes // 2
        return (digits * self.radix).sum(-1)

    def latents(self, codes: Int[Tensor, "*b"]) -> Float[Tensor, "*b c"]:
        """The quantised latent vector that a code stands for."""
        digits = codes.unsqueeze(-1) // self.radix % self.sizes
        return (digits - self.sizes // 2).float() / (self.sizes // 2)

    def _bound(self, z: Tensor) -> Tensor:
        """Squash latents so that rounding gives exactly `levels` integers; an even count is half a step off centre."""
        half = (self.sizes - 1) * (1 + 1e-3) / 2
        offset = (1 - self.sizes % 2).to(z.dtype) / 2
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset


class PixelNorm(nn.Module):
    """RMS norm over the channels of each pixel, so that a cell's code does not depend on distant pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        pixels = x.permute(0, 2, 3, 1)
        return F.rms_norm(pixels, pixels.shape[-1:], self.weight.to(x.dtype), 1e-6).permute(0, 3, 1, 2)


class Conv3x3(nn.Conv2d):
    """3x3 convolution with replicate padding: zero padding would change a flat background's code at the border."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return super().forward(_replicate_border(x))


def _replicate_border(x: Tensor) -> Tensor:
    """Replicate the border by one pixel on each side; `F.pad` would give up the channels-last layout and be slower."""
    x = torch.cat((x[:, :, :1], x, x[:, :, -1:]), 2)
    return torch.cat((x[..., :1], x, x[..., -1:]), 3)


class PixelResidual(nn.Module):
    """A residual block; with `spatial=False` all convolutions are 1x1, so that a pixel sees no neighbour."""

    def __init__(self, channels: int, spatial: bool) -> None:
        super().__init__()
        self.norm = PixelNorm(channels)
        self.conv1 = Conv3x3(channels, channels) if spatial else nn.Conv2d(channels, channels, 1)
        self.conv2 = Conv3x3(channels, channels) if spatial else nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


class Upsample2x(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution.

    `expand` does the doubling: torch 2.13's compiler loses the gradient of `F.interpolate` in channels-last bfloat16.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Conv3x3(inputs, outputs)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        doubled = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
        return self.conv(doubled.flatten(4).flatten(2, 3))


class FSQTokenizer(nn.Module):
    """The bundled model's image tokenizer: a token is 8x8 pixels, and there are `prod(levels)` codes."""

    downsample = 8

    def __init__(self, config: FSQConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FSQConfig()
        e2, e4, e8 = config.encoder_widths
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            Conv3x3(12, e2),
            nn.SiLU(),
            nn.Conv2d(e2, e4, 2, stride=2),
            PixelResidual(e4, spatial=False),
            nn.Conv2d(e4, e8, 2, stride=2),
            PixelResidual(e8, spatial=False),
            PixelResidual(e8, spatial=False),
            nn.Conv2d(e8, len(config.levels), 1),
        )
        self.quantizer = FSQ(config.levels)
        blocks: list[nn.Module] = [Conv3x3(len(config.levels), config.decoder_widths[-1])]
        for level in reversed(range(3)):
            width = config.decoder_widths[level]
            blocks += [PixelResidual(width, spatial=True) for _ in range(config.decoder_depths[level])]
            if level:
                blocks.append(Upsample2x(width, config.decoder_widths[level - 1]))
        blocks += [nn.SiLU(), Conv3x3(config.decoder_widths[0], 12), nn.PixelShuffle(2)]
        self.decoder = nn.Sequential(*blocks)
        self._initialize()

    def _initialize(self) -> None:
        """Draw weights that keep the variance of activations and spread the latents over all levels."""
        for module in self.modules():
            # A module without memory (on the meta device) has no weights to look at.
            if isinstance(module, nn.Conv2d) and (module.weight.is_meta or module.weight.any()):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        latents = self.encoder[-1]
        assert isinstance(latents, nn.Conv2d)
        latents.weight.data.mul_(1.5)

    @property
    def codebook_size(self) -> int:
        """The number of codes."""
        return self.quantizer.codebook_size

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Reconstruct images in [-1, 1] with straight-through gradients, for training."""
        latents = self.quantizer(self._latents(images))
        return self.decoder(latents.permute(0, 3, 1, 2).to(images.dtype)).float()

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b rows cols"]:
        """The codes of images in [-1, 1]; height and width must be multiples of 8."""
        return self.quantizer.codes(self._latents(images))

    def decode(self, codes: Int[Tensor, "b rows cols"]) -> Float[Tensor, "b 3 h w"]:
        """The pixels, in [-1, 1], of a grid of codes of any height and width; an overflow stays infinite."""
        pixels = self.unclamped(codes)
        return torch.where(pixels.isinf(), pixels, pixels.clamp(-1, 1))  # an infinity is kept, so that it is refused

    def unclamped(self, codes: Int[Tensor, "b rows cols"]) -> Float[Tensor, "b 3 h w"]:
        """The pixels as the decoder gives them; those of a sound decoder lie about in [-1, 1]."""
        latents = self.quantizer.latents(codes).to(next(self.decoder.parameters()).dtype)
        return self.decoder(latents.permute(0, 3, 1, 2)).float()

    def _latents(self, images: Tensor) -> Tensor:
        return self.encoder(images).permute(0, 2, 3, 1).float()
