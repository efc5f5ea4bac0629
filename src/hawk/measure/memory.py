"""What drawing takes of a device's memory, computed from shapes: weights, KV cache, and the buffers of a recording."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from hawk.decoding.cache import cache_room
from hawk.decoding.grid import Grid
from hawk.decoding.noise import whole_noise_blocks
from hawk.decoding.structure import Structure
from hawk.decoding.window import LAG, noise_ring
from hawk.models.llamagen.target import LlamaGen
from hawk.models.loading import LARGE
from hawk.models.protocol import Model

WINDOW = 32
"""The reach of the window whose memory `hawk info` tells."""

PROMPT = 64
"""The tokens of the prompt whose memory `hawk info` tells; caches have room for prompts in whole blocks."""


@dataclass(frozen=True)
class DecoderShape:
    """The shape of a decoder-only transformer with gated feed-forward layers, from a model's configuration.

    `vocab` counts the rows of the embeddings and of the output head, `codes` the image codes that are drawn from.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    codes: int

    @property
    def parameters(self) -> int:
        """The number of parameters: embeddings, layers without biases, norms, and an output head of its own."""
        attention = self.width * self.head_dim * 2 * (self.heads + self.kv_heads)
        layer = attention + 3 * self.width * self.hidden + 2 * self.width
        return self.layers * layer + 2 * self.vocab * self.width + self.width


@dataclass(frozen=True)
class Drawing:
    """What is drawn at once: `images` of a grid, prompts of `prompt` tokens, and drafts that reach `window` positions.

    `structure` holds the structure tokens that end a row.
    """

    grid: Grid
    images: int = 1
    guided: bool = True
    prompt: int = PROMPT
    window: int = WINDOW
    structure: Structure = field(default_factory=Structure)

    @property
    def rows(self) -> int:
        """The rows of the target: with guidance two for each image."""
        return self.images * (2 if self.guided else 1)

    @property
    def nodes(self) -> int:
        """The nodes of a step: the last committed token and the drafts."""
        return self.window + 1

    @property
    def capacity(self) -> int:
        """The entries of a row of the KV cache on a GPU."""
        image = self.grid.size + self.nodes + self.structure.extra(self.grid, self.nodes)
        return cache_room(self.prompt, image, torch.device("cuda"))


def weight_bytes(parameters: int, dtype: torch.dtype) -> int:
    """Bytes of weights."""
    return parameters * dtype.itemsize


def cache_bytes(shape: DecoderShape, drawing: Drawing, dtype: torch.dtype) -> int:
    """Bytes of the KV cache: keys and values of every layer, row and key head."""
    entries = shape.layers * drawing.rows * shape.kv_heads * drawing.capacity
    return 2 * entries * shape.head_dim * dtype.itemsize


def noise_bytes(shape: DecoderShape, drawing: Drawing, dtype: torch.dtype) -> int:
    """Bytes of the noise that is held at a time; it is in float32, for a float64 model in float64."""
    positions = whole_noise_blocks(min(noise_ring(drawing.nodes), drawing.grid.size))
    return drawing.images * positions * shape.codes * max(dtype.itemsize, torch.float32.itemsize)


def state_bytes(drawing: Drawing) -> int:
    """Bytes of the other tensors of a state: tokens, origins, counts, their history, padding, sampling parameters."""
    tokens = 2 * drawing.images * (drawing.grid.size + drawing.nodes)
    counts = drawing.images * (2 + drawing.grid.size + LAG + 2) + drawing.rows
    rows, top_k = 2 * drawing.images + drawing.rows, drawing.images
    numbers, marks = 3 * drawing.images, 2 * drawing.images  # temperature, top-p, scale; broken, greedy
    whole = torch.long.itemsize * (tokens + counts + rows + top_k)
    return whole + torch.float32.itemsize * numbers + torch.bool.itemsize * marks


def recording_bytes(shape: DecoderShape, drawing: Drawing, dtype: torch.dtype) -> int:
    """Bytes of the buffers of one recording, without what its step holds while it runs."""
    return cache_bytes(shape, drawing, dtype) + noise_bytes(shape, drawing, dtype) + state_bytes(drawing)


def decoder_shape(target: Any) -> DecoderShape:
    """The shape of a target that Hawk draws with."""
    if isinstance(target, LlamaGen):
        own = target.config
        sizes = (own.n_layer, own.dim, own.n_head, own.kv_heads, own.head_dim, own.hidden)
        return DecoderShape(*sizes, vocab=own.vocab_size, codes=own.vocab_size)
    shape = target.family.shape
    heads, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    sizes = (shape.num_hidden_layers, shape.hidden_size, heads, kv_heads, head_dim, shape.intermediate_size)
    return DecoderShape(*sizes, vocab=shape.vocab_size, codes=target.vocab_size)


def memory_line(model: Model) -> str:
    """What drawing one image with guidance and a window of `WINDOW` drafts takes on a GPU, in one line.

    The dtype is the one that a model of this size has on a GPU by default; the prompt has up to 128 tokens.
    """
    target = model.target
    dtype = torch.bfloat16 if target.parameter_count > LARGE else torch.float32
    family = getattr(target, "family", None)
    drawing = Drawing(model.grid, structure=Structure() if family is None else family.structure)
    shape = decoder_shape(target)
    parts = {
        "weights": weight_bytes(target.parameter_count, dtype),
        "KV cache": cache_bytes(shape, drawing, dtype),
        "noise": noise_bytes(shape, drawing, dtype),
    }
    name = str(dtype).removeprefix("torch.")
    sizes = ", ".join(f"{what} {gigabytes(size)}" for what, size in parts.items())
    return f"{sizes} ({name}, on a GPU)"


def gigabytes(size: int) -> str:
    """A number of bytes in units of 10^9 bytes, with three significant digits."""
    return f"{size / 1e9:.3g} GB"
