"""The decoders of published VQGAN tokenizers (arXiv 2012.09841), which turn codes into pixels.

One class serves LlamaGen's VQ-16 and VQ-8 (unit codes, attention at the coarsest level; arXiv 2406.06525) and the
tokenizer that Chameleon, Anole and Lumina-mGPT share. `own_key` translates the weight names of both kinds of files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hawk.nn.layers import at_least_float32


@dataclass(frozen=True)
class VQGANConfig:
    """The shape of a `VQGAN`. The default is LlamaGen's VQ-16; VQ-8 has multipliers (1, 2, 2, 4), attention at level 3.

    Level i has `channels * multipliers[i]` channels; level 0 is the finest, and each next level has half the height
    and width. `attention_levels` are the levels with attention. A level has `blocks + 1` residual blocks (in the
    published configs, `blocks` counts those of the encoder). `unit_codes` scales codebook vectors to length one.
    """

    codebook_size: int = 16384
    codebook_dim: int = 8
    z_channels: int = 256
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    attention_levels: tuple[int, ...] = (4,)
    unit_codes: bool = True

    @classmethod
    def chameleon(cls) -> VQGANConfig:
        """The shape of the tokenizer of Chameleon, Anole and Lumina-mGPT (`vqgan.ckpt`)."""
        return cls(codebook_size=8192, codebook_dim=256, attention_levels=(), unit_codes=False)


class VQGAN(nn.Module):
    """A codebook and its decoder: a `fsq.PixelDecoder` whose parameters are named as in LlamaGen's files."""

    def __init__(self, config: VQGANConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VQGANConfig()
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config.codebook_size, config.codebook_dim)})
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)
        self.decoder = Decoder(config)

    @property
    def codebook_size(self) -> int:
        """The number of codes."""
        return self.config.codebook_size

    @property
    def downsample(self) -> int:
        """The side of a token in pixels."""
        return 2 ** (len(self.config.multipliers) - 1)

    def decode(self, codes: Int[Tensor, "b rows cols"]) -> Float[Tensor, "b 3 h w"]:
        """The pixels of a grid of codes of any height and width, in float32 or float64.

        Pixels are about in [-1, 1]: like the public decoders, this one does not clamp them.
        """
        vectors = self.quantize["embedding"](codes)
        if self.config.unit_codes:
            vectors = F.normalize(vectors, dim=-1)
        return at_least_float32(self.decoder(self.post_quant_conv(vectors.permute(0, 3, 1, 2))))


class Decoder(nn.Module):
    """The decoder: a convolution, a middle part (residual, attention, residual), the levels, a norm, a convolution.

    Levels run from the coarsest to the finest.
    """

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        top = widths[-1]
        self.conv_in = nn.Conv2d(config.z_channels, top, 3, padding=1)
        self.mid = nn.Sequential(ResidualBlock(top, top), AttentionBlock(top), ResidualBlock(top, top))
        self.conv_blocks = nn.Sequential(
            *(
                Level(
                    widths[min(level + 1, len(widths) - 1)],
                    widths[level],
                    config.blocks + 1,
                    attention=level in config.attention_levels,
                    finest=level == 0,
                )
                for level in reversed(range(len(widths)))
            )
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Float[Tensor, "b z rows cols"]) -> Float[Tensor, "b 3 h w"]:
        x = self.conv_blocks(self.mid(self.conv_in(x)))
        return self.conv_out(F.silu(self.norm_out(x)))


class Level(nn.Module):
    """The blocks of one resolution; all levels but the finest end with a `Doubling`."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool, finest: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResidualBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(outputs) if attention else nn.Identity() for _ in range(blocks))
        self.upsample = nn.Identity() if finest else Doubling(outputs)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        for residual, attention in zip(self.res, self.attn, strict=True):
            x = attention(residual(x))
        return self.upsample(x)


class Doubling(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ResidualBlock(nn.Module):
    """A residual block of two convolutions; its shortcut has a 1x1 convolution if the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = group_norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        change = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(change)))


class AttentionBlock(nn.Module):
    """Residual single-head attention over all cells, with 1x1 convolutions as projections."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        normed = self.norm(x)
        q, k, v = (projection(normed).flatten(2).transpose(1, 2) for projection in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(mixed)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups, as all published VQGANs have it."""
    return nn.GroupNorm(32, channels, eps=1e-6)


# --- published files -----------------------------------------------------------------------------------------

_NOT_FOR_DECODING = re.compile(r"encoder\.|quant_conv\.|loss\.|quantize\.codebook_used$")
_MIDDLE = {"block_1": "0", "attn_1": "1", "block_2": "2"}


def own_key(name: str, levels: int) -> str | None:
    """The name in a `VQGAN` of a tensor in a published file; None for a tensor that decoding does not need.

    LlamaGen's names are those of `VQGAN`. The names of taming-transformers, Chameleon and Lumina-mGPT are translated;
    they count a decoder's `levels` from the finest. An unknown name is returned unchanged: the loader refuses it.
    """
    if _NOT_FOR_DECODING.match(name):
        return None
    if middle := re.fullmatch(r"decoder\.mid\.(block_1|attn_1|block_2)\.(.+)", name):
        return f"decoder.mid.{_MIDDLE[middle[1]]}.{middle[2]}"
    if level := re.fullmatch(r"decoder\.up\.(\d+)\.(block|attn|upsample)\.(.+)", name):
        kind = "res" if level[2] == "block" else level[2]
        return f"decoder.conv_blocks.{levels - 1 - int(level[1])}.{kind}.{level[3]}"
    return name


def decoding_weights(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a published file, renamed for a `VQGAN`; those that only an encoder needs are left out."""
    found = (re.match(r"decoder\.(?:conv_blocks|up)\.(\d+)\.", name) for name in published)
    levels = 1 + max((int(level[1]) for level in found if level), default=0)
    renamed = {name: own_key(name, levels) for name in published}
    return {own: published[name] for name, own in renamed.items() if own is not None}


def shape_of(weights: Mapping[str, Tensor], unit_codes: bool) -> VQGANConfig:
    """The shape of the `VQGAN` with these weights; raises KeyError with the name of a weight that is missing."""
    codes, dim = weights["quantize.embedding.weight"].shape
    blocks = {
        (int(found[1]), int(found[2]), found[3])
        for name in weights
        if (found := re.match(r"decoder\.conv_blocks\.(\d+)\.(?:res|attn)\.(\d+)\.(conv1|q)\.weight$", name))
    }
    levels = 1 + max((level for level, _, _ in blocks), default=0)
    widths = [weights[f"decoder.conv_blocks.{i}.res.0.conv1.weight"].shape[0] for i in reversed(range(levels))]
    channels = math.gcd(*widths)
    return VQGANConfig(
        codebook_size=codes,
        codebook_dim=dim,
        z_channels=weights["post_quant_conv.weight"].shape[0],
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=max(block for _, block, _ in blocks),
        attention_levels=tuple(sorted({levels - 1 - level for level, _, part in blocks if part == "q"})),
        unit_codes=unit_codes,
    )
