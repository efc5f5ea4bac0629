"""Converts published checkpoints to folders that Hawk loads: `hawk convert llamagen` and `hawk convert janus`.

A LlamaGen text-to-image model is published as t2i_XL_stage1_256.pt or t2i_XL_stage2_512.pt (the transformer),
vq_ds16_t2i.pt (the image tokenizer) and FLAN-T5-XL (the text encoder, which is not copied).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.errors import HawkError, install, one_line
from hawk.files import new_folder, read_json, save_tensors, write_bytes, write_json
from hawk.models.arguments import check_pixels
from hawk.models.checkpoint import check_numbers, read_checkpoint
from hawk.models.config import ModelConfig, T5Fields, VQGANFields, check_target_shape
from hawk.models.folder import save_target
from hawk.models.hub import is_hub_id
from hawk.models.llamagen.target import LlamaGen, LlamaGenConfig
from hawk.models.tokenizers.vqgan import VQGAN, VQGANConfig, decoding_weights, shape_of
from hawk.nn.stored import check_weights, refuse_not_finite, shapes_of

SHARD_BYTES = 500_000_000
"""Largest weight file of a converted transformer."""
FLAN_T5_XL = "google/flan-t5-xl"
STAGE_PIXELS = {1: 256, 2: 512}
TARGET_NAME = re.compile(r"t2i_(\w+)_stage([12])_(\d+)\.(?:pt|safetensors)")
OFFICIAL_DEFAULTS = SamplingParams(temperature=1.0, top_k=1000, top_p=1.0, cfg_scale=7.5)
OTHER_WEIGHTS = "the other weights ask"
"""Who wants a shape, in messages of `check_weights`: a model's shape is computed from some weights of its file."""
STORAGE_DTYPES = {"bfloat16": torch.bfloat16, "stored": None}
# Buffers that some versions of the public code save with the weights, although they can be computed.
_TABLES = re.compile(r"freqs_cis|causal_mask|layers\.\d+\.attention\.kv_cache\.[kv]_cache")


@dataclass(frozen=True)
class Size:
    """A published size of LlamaGen. The number of heads has to be known: the weights' shapes do not tell it."""

    name: str
    dim: int
    n_layer: int
    n_head: int


OFFICIAL_SIZES = (
    Size("B", 768, 12, 12),
    Size("L", 1024, 24, 16),
    Size("XL", 1280, 36, 20),
    Size("XXL", 1536, 48, 24),
    Size("XXXL", 2560, 48, 40),
    Size("1B", 2048, 22, 32),
    Size("3B", 3200, 24, 32),
    Size("7B", 4096, 32, 32),
)


@dataclass(frozen=True)
class PublishedModel:
    """The files of a published model, and the size of its images in pixels; `text` is a T5's folder or hub id."""

    target: Path
    tokenizer: Path
    text: str
    height: int
    width: int


def find_published(
    folder: Path,
    stage: int | None = None,
    target: Path | None = None,
    tokenizer: Path | None = None,
    text: str | None = None,
    height: int | None = None,
    width: int | None = None,
) -> PublishedModel:
    """Find the parts of a LlamaGen model in a folder by their published file names; parts that are given are taken.

    Raises:
        HawkError: a part is missing, two files could be the transformer, or `target` is named after another stage.
    """
    if not folder.is_dir():
        raise HawkError(f"there is no folder {folder}")
    if stage is not None and stage not in STAGE_PIXELS:
        raise HawkError(f"stage is 1 (256 pixels) or 2 (512 pixels), not {stage}")
    target = target or _target_in(folder, stage)
    tokenizer = tokenizer or next(
        (folder / name for name in ("vq_ds16_t2i.pt", "vq_ds16_t2i.safetensors") if (folder / name).is_file()), None
    )
    if tokenizer is None:
        raise HawkError(f"there is no vq_ds16_t2i.pt in {folder}: name the image tokenizer's file with --tokenizer")
    own_text = next((p for p in (folder / "t5-ckpt" / "flan-t5-xl", folder / "flan-t5-xl") if p.is_dir()), None)
    if text is None:
        text = FLAN_T5_XL if own_text is None else str(own_text.resolve())
    elif Path(text).is_dir():
        text = str(Path(text).resolve())
    named = TARGET_NAME.fullmatch(target.name)
    if stage and named and int(named[2]) != stage:
        raise HawkError(f"{target.name} is the transformer of stage {named[2]}, not of stage {stage}: leave stage out")
    side = STAGE_PIXELS[stage] if stage else int(named[3]) if named else None
    height, width = height or width or side, width or height or side
    if height is None or width is None:
        raise HawkError(
            f"the name of {target} does not tell the size of its images: give --stage, or --height and --width"
        )
    return PublishedModel(target, tokenizer, text, height, width)


def _target_in(folder: Path, stage: int | None) -> Path:
    """The transformer's file in a folder: the only one there, or the one of the given stage."""
    named = [(path, found) for path in sorted(folder.iterdir()) if (found := TARGET_NAME.fullmatch(path.name))]
    fitting = [path for path, found in named if stage is None or int(found[2]) == stage]
    if not fitting:
        looked = f"t2i_XL_stage{stage}_{STAGE_PIXELS[stage]}.pt" if stage else "t2i_XL_stage1_256.pt or _stage2_512.pt"
        raise HawkError(f"there is no {looked} in {folder}: name the transformer's file with --target")
    if len(fitting) > 1:
        raise HawkError(f"{folder} holds {fitting[0].name} and {fitting[1].name}: choose one with --stage or --target")
    return fitting[0]


def convert_llamagen(
    published: PublishedModel,
    out: Path,
    dtype: str = "bfloat16",
    n_head: int | None = None,
    name: str | None = None,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> ModelConfig:
    """Write a model folder that `HawkPipeline.from_pretrained` loads; it appears whole or not at all.

    Args:
        dtype: the dtype to store the transformer in: "bfloat16" (the public code samples in it) or "stored" (the
            file's own). The image tokenizer's decoder keeps the dtype of its file.
        n_head: the number of heads of a transformer that has none of the published sizes.
        name: the model's name (default: made from its size).
        on_bytes: called with the bytes of the transformer written so far and its bytes in all.

    Raises:
        HawkError: one line on the file that is missing, damaged, or of another kind of model, or on the weight that is
            not finite in the dtype in which it is stored.
    """
    if dtype not in STORAGE_DTYPES:
        raise HawkError(f"unknown dtype {dtype!r}: choose one of {', '.join(STORAGE_DTYPES)}")
    weights = {key: tensor for key, tensor in read_checkpoint(published.target).items() if not _TABLES.fullmatch(key)}
    decoder = decoding_weights(read_checkpoint(published.tokenizer))
    vqgan = decoder_shape(published.tokenizer, decoder)
    shape = target_shape(published.target, weights, _grid(published, 2 ** (len(vqgan.multipliers) - 1)), n_head)
    if vqgan.codebook_size != shape.vocab_size:
        raise HawkError(
            f"{published.target} draws {shape.vocab_size} codes, {published.tokenizer} has {vqgan.codebook_size}"
        )
    _check_text(published.text, shape.caption_dim)
    refuse_not_finite(published.target, weights, STORAGE_DTYPES[dtype])
    refuse_not_finite(published.tokenizer, decoder, torch.float32)  # the decoder computes in float32
    size = official_size(shape.dim, shape.n_layer)
    kind = size.name if size else f"{shape.n_layer}x{shape.dim}"
    config = ModelConfig(
        name=name or f"llamagen-t2i-{kind}-{published.height}x{published.width}",
        target=shape,
        tokenizer=VQGANFields(**vars(vqgan)),
        text=T5Fields(source=published.text, tokens=shape.caption_tokens, width=shape.caption_dim),
        defaults=OFFICIAL_DEFAULTS,
    )
    with new_folder(out) as folder:
        save_target(folder, weights, STORAGE_DTYPES[dtype], SHARD_BYTES, on_bytes)
        save_tensors(folder / "tokenizer.safetensors", {key: tensor.clone() for key, tensor in decoder.items()})
        write_bytes(folder / "README.md", _card(config, published).encode())
        write_json(folder / "config.json", config.model_dump(mode="json"))
    return config


def convert_janus(source: Path, out: Path, on_bytes: Callable[[int, int], None] = lambda done, total: None) -> Grid:
    """Write a Janus of DeepSeek's own format in transformers' format, and return the grid of an image.

    The folder `out` appears whole or not at all. `on_bytes` is called with the bytes of the weights written so far and
    their bytes in all. Raises `HawkError`: one line on what is missing, unknown, damaged or misshapen.
    """
    try:
        from hawk.models.hf.original_janus import convert_original
    except ModuleNotFoundError as error:
        if error.name not in ("transformers", "tokenizers", "huggingface_hub"):
            raise
        raise HawkError(f"Janus is converted with transformers: {install('hf')}") from error
    return convert_original(source, out, on_bytes)


def official_size(dim: int, n_layer: int) -> Size | None:
    """The published size of that width and depth, if there is one."""
    return next((size for size in OFFICIAL_SIZES if (size.dim, size.n_layer) == (dim, n_layer)), None)


def target_shape(path: Path, weights: Mapping[str, Tensor], grid: Grid, n_head: int | None = None) -> LlamaGenConfig:
    """The shape of the LlamaGen transformer with these weights; raises `HawkError` if they are another model's."""
    if "cls_embedding.embedding_table.weight" in weights:
        raise HawkError(f"{path} is a class-conditional LlamaGen: only text-to-image ones can be converted")
    vocab_size, dim = _matrix(path, weights, "output.weight")
    caption_tokens, caption_dim = _matrix(path, weights, "cls_embedding.uncond_embedding")
    qkv, _ = _matrix(path, weights, "layers.0.attention.wqkv.weight")
    hidden, _ = _matrix(path, weights, "layers.0.feed_forward.w1.weight")
    n_layer = 1 + max(int(key.split(".")[1]) for key in weights if re.match(r"layers\.\d+\.", key))
    size = official_size(dim, n_layer)
    heads = n_head or (size.n_head if size else None)
    if heads is None:
        raise HawkError(f"{path} has {n_layer} layers {dim} wide, which is no published size: say its --heads")
    kv_heads = (qkv * heads // dim - heads) // 2 if dim % heads == 0 else 0
    shape = LlamaGenConfig(
        dim=dim,
        n_layer=n_layer,
        n_head=heads,
        n_kv_head=None if kv_heads in (0, heads) else kv_heads,
        vocab_size=vocab_size,
        caption_dim=caption_dim,
        caption_tokens=caption_tokens,
        height=grid.height,
        width=grid.width,
    )
    if shape.hidden != hidden:
        shape = replace(shape, ffn_hidden=hidden, multiple_of=1)
    check_target_shape(path, shape)
    with torch.device("meta"):
        wanted = LlamaGen(shape).state_dict()
    check_weights({path: shapes_of(weights)}, shapes_of(wanted), OTHER_WEIGHTS)
    return shape


def decoder_shape(path: Path, weights: Mapping[str, Tensor]) -> VQGANConfig:
    """The shape of the image tokenizer with these decoder weights; raises `HawkError` if they are another model's."""
    try:
        shape = VQGANFields(**vars(shape_of(weights, unit_codes=True))).shape()
    except KeyError as error:
        raise HawkError(
            f"{path} lacks {error.args[0]}: it is no LlamaGen image tokenizer, or its keys were renamed"
        ) from error
    except ValueError as error:
        raise HawkError(f"{path} is no LlamaGen image tokenizer ({one_line(error)})") from error
    with torch.device("meta"):
        wanted = VQGAN(shape).state_dict()
    check_weights({path: shapes_of(weights)}, shapes_of(wanted), OTHER_WEIGHTS)
    return shape


def _matrix(path: Path, weights: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """The rows and columns of a matrix that every LlamaGen transformer has."""
    if name not in weights or weights[name].ndim != 2:
        raise HawkError(f"{path} lacks {name}: it is no LlamaGen text-to-image transformer, or its keys were renamed")
    rows, columns = weights[name].shape
    return rows, columns


def _grid(published: PublishedModel, cell: int) -> Grid:
    for side, pixels in (("height", published.height), ("width", published.width)):
        check_pixels(side, pixels, cell)
    return Grid(published.height // cell, published.width // cell)


def _check_text(source: str, width: int) -> None:
    """Check that the T5 in a local folder has the captions' width; a T5 on the hub is checked when it is first used."""
    if Path(source).is_dir():
        check_numbers(Path(source) / "config.json")
        found = read_json(Path(source) / "config.json").get("d_model")
        if found != width:
            raise HawkError(f"the T5 encoder in {source} is {found} wide, the transformer takes captions {width} wide")
    elif not is_hub_id(source):
        raise HawkError(f"no T5 encoder at {source} (and it is no hub id, which would look like owner/name)")


def _card(config: ModelConfig, published: PublishedModel) -> str:
    """The README.md of a converted model."""
    return f"""# {config.name}

LlamaGen text to image (arXiv 2406.06525), converted to a Hawk model folder by `hawk convert llamagen`.

| part | from |
|---|---|
| transformer | {published.target.name} |
| decoder of the image tokenizer | {published.tokenizer.name} |
| text encoder (not in this folder) | {published.text} |

    from hawk import HawkPipeline
    pipe = HawkPipeline.from_pretrained("path/to/this/folder")
    pipe("a red fox in snow").images[0].save("fox.png")

The licence under which the authors published the weights still applies to them.
"""
