"""Converts Janus and Janus-Pro checkpoints of DeepSeek's own format ("multi_modality") to transformers' format.

Weights are renamed, and none is computed anew. Two change their shape: the image encoder's fused `qkv` becomes three
matrices, and its position embedding loses its leading axis.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import JanusConfig, LlamaConfig
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig

from hawk.decoding.grid import Grid
from hawk.errors import HawkError, one_line
from hawk.files import new_folder, read_fields, read_json, write_bytes, write_json
from hawk.models.checkpoint import INDEX, SINGLE, check_numbers, indexed_files, read_checkpoint
from hawk.models.folder import save_sharded
from hawk.models.hf.janus_origins import LEFT_OUT, PIXELS, VISION, origins_in
from hawk.models.hf.janus_text import IMAGE_TOKENS, generation_config, processor_files, read_original_tokenizer
from hawk.models.hf.reading import FOREIGN, quiet
from hawk.models.tokenizers.vqgan import decoding_weights, shape_of
from hawk.nn.stored import Count, Shapes, check_weights, refuse_not_finite

R = TypeVar("R")

KIND = "multi_modality"
"""The `model_type` of DeepSeek's format."""
LANGUAGE = "llama"
"""The `model_type` of the language model in DeepSeek's format."""
QUANTIZED = "quantization_config"
"""The field of a config.json of transformers that says how weights are quantized."""
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SHARD_BYTES = 2_000_000_000
"""Largest weight file of a converted checkpoint."""
SIGLIP_HEADS = 16
"""Attention heads of every SigLIP image encoder in DeepSeek's code; the weights' shapes do not tell it."""

# --- config.json ---------------------------------------------------------------------------------------------


class _Fields(BaseModel):
    """Fields that the conversion reads; a file may have more."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class Projector(_Fields):
    """A stack of `depth` linear layers with GELU between them."""

    projector_type: Literal["mlp_gelu"]
    n_embed: Count
    depth: Count = 1


class Encoder(_Fields):
    """The image encoder."""

    model_name: str = Field(pattern="^siglip")
    image_size: Count


class Codes(_Fields):
    """The image codes."""

    image_token_size: Count
    n_embed: Count


class Head(_Fields):
    """The output head of image codes."""

    n_embed: Count
    image_token_embed: Count


class _Aligner(_Fields):
    params: Projector


class _Vision(_Fields):
    params: Encoder


class _Codes(_Fields):
    cls: Literal["VQ-16"]
    params: Codes


class _Head(_Fields):
    params: Head


class OriginalConfig(_Fields):
    """The fields of an original config.json."""

    model_type: Literal["multi_modality"]
    language_config: dict[str, Any]
    vision_config: _Vision
    aligner_config: _Aligner
    gen_vision_config: _Codes
    gen_aligner_config: _Aligner
    gen_head_config: _Head

    @property
    def tied(self) -> bool:
        """Whether `lm_head` shares the weights of the embeddings; DeepSeek's language models do not, by default."""
        return bool(self.language_config.get("tie_word_embeddings", False))


def janus_config(source: Path, original: OriginalConfig, weights: Mapping[str, Tensor]) -> Any:
    """The `JanusConfig` for an original config; what config.json does not tell is read from the weights' shapes.

    Raises `HawkError` where transformers' Janus cannot have this shape.
    """
    head, aligner = original.gen_head_config.params, original.gen_aligner_config.params
    codes, encoder = original.gen_vision_config.params, original.vision_config.params
    if head.image_token_embed != aligner.n_embed:
        raise HawkError(
            f"{source}: gen_head is {head.image_token_embed} wide and gen_aligner {aligner.n_embed}: "
            "transformers' Janus needs both alike"
        )
    seen = _read_off(source, VISION, lambda: _encoder_fields(_below(VISION, weights)))
    drawn = _read_off(source, PIXELS, lambda: _decoder_fields(_below(PIXELS, weights)))
    cell, cell_drawn = seen["patch_size"], 2 ** (len(drawn["channel_multiplier"]) - 1)
    if cell != cell_drawn:
        raise HawkError(
            f"{source}: the image encoder has cells of {cell} pixels, the pixel decoder of {cell_drawn}: "
            "transformers' Janus needs both alike"
        )
    vision: dict[str, Any] = {
        **seen,
        "image_size": encoder.image_size,
        "num_image_tokens": (encoder.image_size // cell) ** 2,
        "projection_dim": original.aligner_config.params.n_embed,
        "depth": original.aligner_config.params.depth,
    }
    vq: dict[str, Any] = {
        **drawn,
        "embed_dim": codes.n_embed,
        "num_embeddings": codes.image_token_size,
        "projection_dim": aligner.n_embed,
        "num_hidden_layers": aligner.depth,
        "image_token_embed_dim": head.n_embed,
    }
    ours = ("model_type", "architectures", "transformers_version")
    text = {k: v for k, v in original.language_config.items() if k not in ours and not k.startswith("_")}
    try:
        return JanusConfig(
            text_config=LlamaConfig(**text),
            vision_config=JanusVisionConfig(**vision),
            vq_config=JanusVQVAEConfig(**vq),
            tie_word_embeddings=original.tied,
            architectures=["JanusForConditionalGeneration"],
        )
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise HawkError(f"{source / 'config.json'} is refused by transformers: {one_line(error)}") from error


def _encoder_fields(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The shape of the image encoder with these weights, as fields of `JanusVisionConfig`."""
    width, channels, cell, _ = weights["patch_embed.proj.weight"].shape
    blocks = (re.match(r"blocks\.(\d+)\.", name) for name in weights)
    return {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": cell,
        "num_hidden_layers": 1 + max(int(block[1]) for block in blocks if block),
        "num_attention_heads": SIGLIP_HEADS,
        "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }


def _decoder_fields(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The shape of the pixel decoder with these weights, as fields of `JanusVQVAEConfig`."""
    shape = shape_of(decoding_weights(weights), unit_codes=True)
    return {
        "latent_channels": shape.z_channels,
        "base_channels": shape.channels,
        "channel_multiplier": list(shape.multipliers),
        "num_res_blocks": shape.blocks,
    }


def _read_off(source: Path, prefix: str, read: Callable[[], R]) -> R:
    """What `read` finds in the shapes of weights below a prefix; `HawkError` names a weight that it does not find."""
    try:
        return read()
    except KeyError as error:
        raise HawkError(
            f"{source} lacks {prefix}{error.args[0]}: it is no Janus, or its weights were renamed"
        ) from error
    except (ValueError, IndexError) as error:
        raise HawkError(f"{source}: the weights of {prefix} are of another model ({one_line(error)})") from error


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights below a prefix, which their names lose."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


# --- the conversion ------------------------------------------------------------------------------------------


def convert_original(source: Path, out: Path, on_bytes: Callable[[int, int], None] = lambda done, total: None) -> Grid:
    """Write the folder `out` in transformers' format; it appears whole or not at all. Returns the grid of an image.

    Weights keep their dtype. `on_bytes` is called with the bytes of the weights written so far and their bytes in all.

    Raises:
        HawkError: one line that names the file, the field or the weight that is missing, unknown, damaged or misshapen.
    """
    original = _read_config(source)
    held = read_original(source)
    for path, part in held.items():
        refuse_not_finite(path, part)
    weights = {name: tensor for part in held.values() for name, tensor in part.items()}
    if original.tied:
        weights.pop("language_model.lm_head.weight", None)
    shapes = {path: {k: tuple(v.shape) for k, v in part.items() if k in weights} for path, part in held.items()}
    check_numbers(source / "config.json", shapes)
    try:
        config = janus_config(source, original, weights)
        tokenizer = read_original_tokenizer(source)
        _check_vocabulary(source, tokenizer, config)
        origins = origins_in(config)
    except HawkError:
        raise
    except FOREIGN as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise HawkError(f"{source / 'config.json'} describes no Janus that can be built ({reason})") from error
    wanted: Shapes = {origin.name: origin.shape(shape) for origin, shape in origins.values()}
    check_weights(shapes, wanted, "config.json and the other weights ask")
    config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKENS["image_token"])
    config.dtype = weights["language_model.model.embed_tokens.weight"].dtype
    for part in (config, config.text_config):
        part.bos_token_id, part.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        part.pad_token_id = tokenizer.pad_token_id
    processor = processor_files(source, config.vision_config.num_image_tokens)
    side = config.vq_config.num_patches
    room = config.text_config.max_position_embeddings
    if room <= side * side:
        raise HawkError(
            f"{source / 'config.json'}: language_config.max_position_embeddings is {room}, it must be above "
            f"{side * side}, the tokens of an image"
        )
    with new_folder(out) as folder, quiet():
        converted = {name: origin.take(weights) for name, (origin, _) in origins.items()}
        save_sharded(folder, "model", converted, None, SHARD_BYTES, on_bytes)
        tokenizer.save_pretrained(folder)
        for name, document in processor.items():
            write_json(folder / name, document)
        write_bytes(folder / "README.md", _card(source).encode())
        generation_config(tokenizer).save_pretrained(folder)
        config.save_pretrained(folder)
    return Grid(side, side)


def read_original(source: Path) -> dict[Path, dict[str, Tensor]]:
    """The weights in each file of an original checkpoint, mapped from the files; weights nobody reads are left out.

    Safetensors files come first. In pickled files only tensors and plain data are unpickled, and no code is run.
    Raises `HawkError` where a file is missing, damaged or holds code.
    """
    if (source / SINGLE).is_file() or (source / INDEX).is_file():
        files = [source / SINGLE] if (source / SINGLE).is_file() else indexed_files(source / INDEX)
    elif (source / PICKLED).is_file():
        files = [source / PICKLED]
    elif (source / PICKLED_INDEX).is_file():
        files = indexed_files(source / PICKLED_INDEX, ".bin")
    else:
        raise HawkError(f"{source} has no weights: none of {SINGLE}, {INDEX}, {PICKLED}, {PICKLED_INDEX}")
    held = {path: read_checkpoint(path) for path in files}
    return {path: {k: v for k, v in weights.items() if not LEFT_OUT.match(k)} for path, weights in held.items()}


def _read_config(source: Path) -> OriginalConfig:
    """The config.json of an original folder; raises `HawkError` for any other folder."""
    if not source.is_dir():
        raise HawkError(f"there is no folder {source}")
    path = source / "config.json"
    document = read_json(path)
    kind = document.get("model_type")
    if kind == "janus":
        raise HawkError(f"{source} is in transformers' format already: give it to --model as it is")
    if kind != KIND:
        raise HawkError(f"{path}: model_type is {kind!r}, DeepSeek's Janus has {KIND!r}")
    original = read_fields(OriginalConfig, path)
    language = original.language_config.get("model_type", LANGUAGE)
    if language != LANGUAGE:
        raise HawkError(f"{path}: model_type of language_config is {language!r}, DeepSeek's Janus has {LANGUAGE!r}")
    for place, part in {"": document, "language_config.": original.language_config}.items():
        if part.get(QUANTIZED) is not None:
            raise HawkError(
                f"{path}: {place}{QUANTIZED} says that weights are quantized: convert the published weights"
            )
    return original


def _check_vocabulary(source: Path, tokenizer: Any, config: Any) -> None:
    """Check that the language model has an embedding for every token of the tokenizer."""
    last, rows = max(tokenizer.get_vocab().values()), config.text_config.vocab_size
    if last >= rows:
        raise HawkError(
            f"{source / 'tokenizer.json'} has token ids up to {last}, the language model only {rows} tokens"
        )


def _card(source: Path) -> str:
    """The README.md of a converted checkpoint."""
    return f"""# {source.resolve().name}

A Janus of DeepSeek (arXiv 2410.13848, 2501.17811) in transformers' format, converted by `hawk convert janus`.

    from hawk import HawkPipeline
    pipe = HawkPipeline.from_pretrained("path/to/this/folder")
    pipe("a red fox in snow").images[0].save("fox.png")

The licence under which the authors published the weights still applies to them.
"""
