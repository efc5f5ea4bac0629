"""Image tokenizers: codes <-> pixels behind one interface (`encode`, `decode`).

`FSQTokenizer` is the bundled one: a *local* encoder (a cell sees 12x12 pixels), so that a flat background is one
code wherever it lies, and a wide decoder. `LlamaGenVQ` holds the public LlamaGen VQ-8/VQ-16 checkpoints by their keys.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@runtime_checkable
class ImageTokenizer(Protocol):
    """Codes <-> pixels. Images are `[batch, 3, height, width]` in [-1, 1]; codes `[batch, rows, cols]`."""

    @property
    def codebook_size(self) -> int: ...

    @property
    def downsample(self) -> int: ...

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b rows cols"]: ...

    def decode(self, codes: Int[Tensor, "b rows cols"]) -> Float[Tensor, "b 3 h w"]: ...


# --- the bundled tokenizer -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FSQConfig:
    """Shape of an `FSQTokenizer`: quantiser levels per latent channel, widths and depths at 1/2, 1/4 and 1/8 size."""

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

    No codebook is learned, so none can collapse. Code = mixed-radix number of the channel levels.
    """

    sizes: Tensor
    radix: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        sizes = torch.tensor(levels)
        radix = torch.cumprod(torch.tensor((1, *levels[:-1])), 0)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("radix", radix, persistent=False)
        self.codebook_size = int(sizes.prod())

    def forward(self, z: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        """Quantised latents in [-1, 1], with straight-through gradients."""
        bounded = self._bound(z)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self.sizes // 2)

    def codes(self, z: Float[Tensor, "*b c"]) -> Int[Tensor, "*b"]:
        """Code of each latent vector."""
        digits = self._bound(z).round().long() + self.sizes // 2
        return (digits * self.radix).sum(-1)

    def latents(self, codes: Int[Tensor, "*b"]) -> Float[Tensor, "*b c"]:
        """The quantised latent vector that a code stands for."""
        digits = codes.unsqueeze(-1) // self.radix % self.sizes
        return (digits - self.sizes // 2).float() / (self.sizes // 2)

    def _bound(self, z: Tensor) -> Tensor:
        """Squash so that rounding yields exactly `levels` integers (even counts lie half a step off centre)."""
        half = (self.sizes - 1) * (1 + 1e-3) / 2
        offset = (1 - self.sizes % 2).to(z.dtype) / 2
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset


class PixelNorm(nn.Module):
    """RMS norm over the channels of each pixel: no statistics leave the cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        pixels = x.permute(0, 2, 3, 1)
        return F.rms_norm(pixels, pixels.shape[-1:], self.weight.to(x.dtype), 1e-6).permute(0, 3, 1, 2)


class Conv3x3(nn.Conv2d):
    """3x3 convolution with replicate padding: zeros at the border would make a flat background vary by position."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return super().forward(_replicate_border(x))


def _replicate_border(x: Tensor) -> Tensor:
    """One replicated pixel on each side (by concatenation: `F.pad` leaves channels-last memory and is slower)."""
    x = torch.cat((x[:, :, :1], x, x[:, :, -1:]), 2)
    return torch.cat((x[..., :1], x, x[..., -1:]), 3)


class PixelResidual(nn.Module):
    """Residual block; `spatial=False` uses 1x1 convolutions only and so leaves the receptive field alone."""

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

    The doubling is an expand: torch 2.13's compiler loses the gradient of `F.interpolate` in channels-last bfloat16.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Conv3x3(inputs, outputs)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        doubled = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
        return self.conv(doubled.flatten(4).flatten(2, 3))


class FSQTokenizer(nn.Module):
    """The bundled tokenizer: 8x downsampling, `prod(levels)` codes."""

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
        """Keep the variance of activations, and let the latents span the quantiser's levels from the start."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.weight.any():
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        latents = self.encoder[-1]
        assert isinstance(latents, nn.Conv2d)
        latents.weight.data.mul_(1.5)

    @property
    def codebook_size(self) -> int:
        """Number of distinct codes."""
        return self.quantizer.codebook_size

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Reconstruction with straight-through gradients (training)."""
        latents = self.quantizer(self._latents(images))
        return self.decoder(latents.permute(0, 3, 1, 2).to(images.dtype)).float()

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b rows cols"]:
        """Codes of images in [-1, 1]; height and width must be multiples of 8."""
        return self.quantizer.codes(self._latents(images))

    def decode(self, codes: Int[Tensor, "b rows cols"]) -> Float[Tensor, "b 3 h w"]:
        """Pixels in [-1, 1] of a grid of codes, any height x width."""
        latents = self.quantizer.latents(codes).to(next(self.decoder.parameters()).dtype)
        return self.decoder(latents.permute(0, 3, 1, 2)).float().clamp(-1, 1)

    def _latents(self, images: Tensor) -> Tensor:
        return self.encoder(images).permute(0, 2, 3, 1).float()


# --- LlamaGen's tokenizer, by its public checkpoint keys ------------------------------------------------------


@dataclass(frozen=True)
class LlamaGenVQConfig:
    """Shape of a public LlamaGen VQ model. `multipliers` (1, 1, 2, 2, 4) is VQ-16, (1, 2, 2, 4) is VQ-8."""

    codebook_size: int = 16384
    codebook_dim: int = 8
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    channels: int = 128
    z_channels: int = 256
    blocks: int = 2


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _group_norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _group_norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class _Attention(nn.Module):
    """Single-head attention over all cells, with 1x1 convolutions as projections."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (proj(normed).flatten(2).transpose(1, 2) for proj in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(mixed)


class _Resample(nn.Module):
    """`up`: nearest doubling + conv; else a stride-2 conv padded by one on the right and bottom only."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class _Stage(nn.Module):
    """The blocks of one resolution, and the change to the next (`upsample` or `downsample`) where there is one."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool, up: bool, last: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(_Residual(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList(_Attention(outputs) for _ in range(blocks if attention else 0))
        if not last:
            setattr(self, "upsample" if up else "downsample", _Resample(outputs, up))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        resample = getattr(self, "upsample", None) or getattr(self, "downsample", None)
        return x if resample is None else resample(x)


class _Coder(nn.Module):
    """LlamaGen's encoder (`up=False`) or decoder (`up=True`): the same parts in opposite order."""

    def __init__(self, config: LlamaGenVQConfig, up: bool) -> None:
        super().__init__()
        self.up = up
        top = config.channels * config.multipliers[-1]
        widths = [config.channels * m for m in config.multipliers]
        outputs = widths[::-1] if up else widths
        inputs = [top if up else config.channels, *outputs[:-1]]
        self.conv_in = nn.Conv2d(config.z_channels if up else 3, inputs[0], 3, padding=1)
        self.mid = nn.ModuleList([_Residual(top, top), _Attention(top), _Residual(top, top)])
        coarsest, last = (0 if up else len(widths) - 1), len(widths) - 1
        self.conv_blocks = nn.ModuleList(
            _Stage(source, width, config.blocks + up, attention=i == coarsest, up=up, last=i == last)
            for i, (source, width) in enumerate(zip(inputs, outputs, strict=True))
        )
        self.norm_out = _group_norm(outputs[-1])
        self.conv_out = nn.Conv2d(outputs[-1], 3 if up else config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        if self.up:
            x = self._middle(x)
        for stage in self.conv_blocks:
            x = stage(x)
        if not self.up:
            x = self._middle(x)
        return self.conv_out(F.silu(self.norm_out(x)))

    def _middle(self, x: Tensor) -> Tensor:
        for block in self.mid:
            x = block(x)
        return x


class LlamaGenVQ(nn.Module):
    """LlamaGen's VQ-16 / VQ-8 by its public state-dict keys (arXiv 2406.06525); l2-normalised codebook."""

    def __init__(self, config: LlamaGenVQConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LlamaGenVQConfig()
        self.encoder, self.decoder = _Coder(config, up=False), _Coder(config, up=True)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config.codebook_size, config.codebook_dim)})
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)
        self.codebook_size = config.codebook_size
        self.downsample = 2 ** (len(config.multipliers) - 1)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b rows cols"]:
        """Nearest codebook entry by cosine for each cell."""
        z = F.normalize(self.quant_conv(self.encoder(images)), dim=1)
        return torch.einsum("bchw,nc->bhwn", z, self._codebook()).argmax(-1)

    def decode(self, codes: Int[Tensor, "b rows cols"]) -> Float[Tensor, "b 3 h w"]:
        """Pixels, about [-1, 1] (not clamped: the public decoder does not clamp)."""
        z = self._codebook()[codes].permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(z)).float()

    def _codebook(self) -> Tensor:
        return F.normalize(self.quantize.get_parameter("embedding.weight"), dim=-1)
