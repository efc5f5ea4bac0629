"""Where each weight of transformers' Janus is in a checkpoint of DeepSeek's own format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration

from hawk.models.hf.reading import quiet
from hawk.nn.stored import shapes_of

VISION, PIXELS = "vision_model.vision_tower.", "gen_vision_model."
"""The original prefixes of image encoder and image tokenizer."""
LEFT_OUT = re.compile(
    r"vision_model\.vision_tower\.attn_pool\.|gen_vision_model\.quantize\.codebook_used$|.*\.rotary_emb\.inv_freq$"
)
"""Weights that no forward reads (an unused pooling layer, counts of training) and a table that is computed."""

_PREFIXES = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_model.": VISION,
    "model.aligner.": "aligner.",
    "model.vqmodel.": PIXELS,
    "model.generation_aligner.": "gen_aligner.",
    "model.generation_embeddings.": "gen_embed.",
    "model.generation_head.": "gen_head.",
}
_PARTS = {
    VISION: {
        "embeddings.patch_embedding.": "patch_embed.proj.",
        "embeddings.position_embedding.weight": "pos_embed",
        "encoder.layers.": "blocks.",
        "self_attn.projection_layer.": "attn.proj.",
        "self_attn.": "attn.",
        "layer_norm": "norm",
        "post_layernorm.": "norm.",
    },
    PIXELS: {
        "encoder.down.": "encoder.conv_blocks.",
        "decoder.up.": "decoder.conv_blocks.",
        ".block.": ".res.",
        "mid.block_1.": "mid.0.",
        "mid.attn_1.": "mid.1.",
        "mid.block_2.": "mid.2.",
    },
    "aligner.": {"fc1.": "layers.0."},
    "gen_aligner.": {"fc1.": "layers.0."},
    "gen_head.": {"proj_out.": "output_mlp_projector."},
}
"""What the modules are called in transformers and in DeepSeek's code, below the prefixes of the latter."""


@dataclass(frozen=True)
class Origin:
    """Where a weight of transformers' Janus is in an original checkpoint.

    Args:
        name: the original name.
        third: which third of the original's rows it is; None for all of them.
    """

    name: str
    third: int | None = None

    @property
    def is_position(self) -> bool:
        """Whether this is the position embedding, which has one more axis in the original."""
        return self.name == f"{VISION}pos_embed"

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the original weight, where the weight in transformers has `shape`."""
        if self.is_position:
            return (1, *shape)
        return shape if self.third is None else (3 * shape[0], *shape[1:])

    def take(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The weight for transformers, a view of the original one."""
        tensor = weights[self.name]
        if self.is_position:
            return tensor[0]
        return tensor if self.third is None else tensor.chunk(3)[self.third]


def origin_of(name: str) -> Origin:
    """Where the weight that transformers' Janus calls `name` is in an original checkpoint."""
    ours, theirs = next((ours, theirs) for ours, theirs in _PREFIXES.items() if name.startswith(ours))
    inner = name.removeprefix(ours)
    for old, new in _PARTS.get(theirs, {}).items():
        inner = inner.replace(old, new)
    inner = re.sub(r"^hidden_layers\.(\d+)\.", lambda found: f"layers.{2 * int(found[1]) + 2}.", inner)
    fused = re.search(r"\.attn\.([qkv])_proj\.", inner) if theirs == VISION else None
    if fused:
        return Origin(theirs + inner.replace(f"{fused[1]}_proj.", "qkv."), "qkv".index(fused[1]))
    return Origin(theirs + inner)


def origins_in(config: Any) -> dict[str, tuple[Origin, tuple[int, ...]]]:
    """The origin and the shape of every weight of a Janus, by its name in transformers; tied weights come once."""
    with quiet(), torch.device("meta"):
        shapes = shapes_of(JanusForConditionalGeneration(config).state_dict())
    return {
        name: (origin_of(name), shape)
        for name, shape in shapes.items()
        if not (config.tie_word_embeddings and name == "lm_head.weight")
    }
