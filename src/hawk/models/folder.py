"""Model folders in Hawk's own format: a target, its image tokenizer, its text encoder and its drafters.

config.json                        the shape of every part (`ModelConfig`)
target.safetensors                 the target under LlamaGen's official weight names; a large one is in several files,
                                   target-00001-of-0000N.safetensors, and an index
tokenizer.safetensors              the image tokenizer, or only its decoder
words.safetensors words.txt text.json   the static text encoder (`StaticTextEncoder.load`); a T5 lies elsewhere
drafters/heads/                    heads.safetensors, heads.json, pool.json (how `hawk` fuses and grows its tree)
README.md                          model card
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.heads import DraftHeads
from hawk.drafters.parts import DraftParts, load_parts
from hawk.drafters.settings import FusedSettings
from hawk.errors import HawkError
from hawk.files import read_fields, refuse_pointers, replacing, save_tensors, write_bytes, write_json
from hawk.models.checkpoint import indexed_files
from hawk.models.config import FSQFields, ModelConfig, StaticTextFields, T5Fields, check_target_shape
from hawk.models.fingerprint import fingerprint
from hawk.models.hub import is_hub_id
from hawk.models.llamagen.t5 import T5TextEncoder
from hawk.models.llamagen.target import CaptionPrompt, LlamaGen
from hawk.models.llamagen.words import StaticTextEncoder, TextEncoder
from hawk.models.pixels import FAR
from hawk.models.tokenizers.fsq import FSQTokenizer
from hawk.models.tokenizers.vqgan import VQGAN
from hawk.nn.stored import opened, outlined, read_safetensors, refuse_not_finite

BUNDLED = Path(__file__).parents[1] / "weights" / "bundled"
SHARD_BYTES = 48_000_000
"""Largest weight file that `save_model` writes."""
MAX_TOKENS = 4096
"""The most tokens that an image may have."""
TEXT_FILES = ("words.safetensors", "words.txt", "text.json")
HEADS_FOLDER = Path("drafters") / "heads"

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class FolderModel:
    """A `Model` that was read from a model folder; `drafting` is None if the folder holds no drafter."""

    config: ModelConfig
    target: LlamaGen
    tokenizer: FSQTokenizer | VQGAN
    text: TextEncoder
    drafting: DraftParts | None
    fingerprint: str

    @property
    def name(self) -> str:
        """The model's own name."""
        return self.config.name

    @property
    def grid(self) -> Grid:
        """The grid that the target was trained for."""
        return self.target.grid

    @property
    def cell(self) -> int:
        """Side of a token in pixels."""
        return self.tokenizer.downsample

    @property
    def defaults(self) -> SamplingParams:
        """The sampling parameters of a call that names none."""
        return self.config.defaults

    @property
    def modules(self) -> list[nn.Module]:
        """The modules to move when the model moves to a device."""
        return [self.target, self.tokenizer, *(self.drafting.modules if self.drafting else [])]

    def check_grid(self, grid: Grid) -> None:
        """Raise `HawkError` for a grid of more than `MAX_TOKENS` tokens."""
        if grid.size > MAX_TOKENS:
            raise HawkError(
                f"{grid.height}x{grid.width} tokens are too many: at most {MAX_TOKENS} fit, choose a smaller image"
            )

    def condition(self, prompts: Sequence[str], negatives: Sequence[str], grid: Grid) -> CaptionPrompt:
        """The caption features of prompts; an image with an empty negative prompt is guided by the null caption."""
        weight = self.target.tok_embeddings.weight
        encoded = self.text.encode(list(prompts))
        hint = self.text.hint([*prompts, *negatives]) if isinstance(self.text, StaticTextEncoder) else None
        if hint:
            warnings.warn(hint, stacklevel=2)
        features, mask = encoded.features.to(weight), encoded.mask.to(weight.device)
        if not any(text.strip() for text in negatives):
            return CaptionPrompt(features, mask)
        null, null_mask = self.target.null_features(features).clone(), mask.clone()
        for row, negative in enumerate(negatives):
            if negative.strip():
                one = self.text.encode([negative])
                null[row], null_mask[row] = one.features[0].to(weight), one.mask[0].to(weight.device)
        return CaptionPrompt(features, mask, null, null_mask)

    def pixels(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        """Images of token grids, about in [-1, 1]; a pixel beyond `FAR` stays, so that damaged weights are noticed."""
        if not isinstance(self.tokenizer, FSQTokenizer):
            return self.tokenizer.decode(codes)
        pixels = self.tokenizer.unclamped(codes)
        return torch.where(pixels.abs() > FAR, pixels, pixels.clamp(-1, 1))

    def pack(self, dtype: torch.dtype) -> None:
        """Pack the linear layers of target and drafters for decoding on a CPU, with products in `dtype`."""
        self.target.pack(dtype)
        if self.drafting:
            self.drafting.pack(dtype)

    def facts(self) -> dict[str, Any]:
        """Facts about the model's parts, for `hawk info`."""
        shape = self.config.target
        return {
            "target": {
                "architecture": self.config.architecture,
                "parameters": self.target.parameter_count,
                "layers": shape.n_layer,
                "width": shape.dim,
                "fingerprint": self.fingerprint,
            },
            "tokenizer": {
                "codes": self.tokenizer.codebook_size,
                "parameters": sum(parameter.numel() for parameter in self.tokenizer.parameters()),
            },
            "text": self.text.facts(),
        }


# --- loading -------------------------------------------------------------------------------------------------


def load_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    drafter: Path | None = None,
    with_heads: bool = True,
    text_device: torch.device | None = None,
) -> FolderModel:
    """Read a model folder.

    Args:
        dtype: the dtype of the target and the draft heads; the image tokenizer stays in float32.
        drafter: a folder of draft heads to use in place of the model's own.
        with_heads: False reads no draft heads, so that heads of another target cannot be refused.
        text_device: the device of a T5 text encoder (default: the CPU), which is read when the first prompt comes.

    Raises:
        HawkError: one line on what is missing, cut short, of the wrong shape, or made for another target.
    """
    heads_folder = folder / HEADS_FOLDER if drafter is None else drafter
    present = with_heads and (drafter is not None or heads_folder.is_dir())
    return _folder_model(folder, dtype, heads_folder if present else None, text_device)


def outline_model(folder: Path) -> FolderModel:
    """The model in a folder without the weights of target and image tokenizer: their shapes are checked by headers.

    Raises `HawkError` as `load_model` does.
    """
    heads_folder = folder / HEADS_FOLDER
    return _folder_model(folder, None, heads_folder if heads_folder.is_dir() else None)


def _folder_model(
    folder: Path, dtype: torch.dtype | None, heads_folder: Path | None, text_device: torch.device | None = None
) -> FolderModel:
    """The parts of a model folder; with `dtype` None, target and image tokenizer have no weights."""
    refuse_pointers(folder)
    config = read_config(folder)
    layers = {"target.n_layer": config.target.n_layer}
    target = _read_module(lambda: LlamaGen(config.target), target_files(folder), dtype, layers)
    # The tokenizer is small, and low precision shows in pixels: it is in float32.
    tokenizer = _tokenizer(folder, config, None if dtype is None else torch.float32)
    text = load_text(folder, config.text, text_device)
    _check_parts(folder, config, tokenizer, text)
    # The hash is of bfloat16 weights, which float16 cannot hold: it is made from the file then.
    mark = target_fingerprint(folder if dtype in (None, torch.float16) else target)
    shape, drafting = config.target, None
    if heads_folder is not None:
        drafting = load_parts(heads_folder, shape.dim, shape.vocab_size, mark, dtype or torch.bfloat16)
    return FolderModel(config, target, tokenizer, text, drafting, mark)


def read_config(folder: Path) -> ModelConfig:
    """The `config.json` of a model folder; raises `HawkError` where it is missing or wrong."""
    path = folder / "config.json"
    if not path.is_file():
        raise HawkError(f"{folder} is no model folder: it has no config.json")
    config = read_fields(ModelConfig, path)
    shape = config.target
    check_target_shape(path, shape)
    if shape.height * shape.width > MAX_TOKENS:
        raise HawkError(f"{path}: a grid of {shape.height}x{shape.width} tokens is too large: at most {MAX_TOKENS} fit")
    return config


def load_text(folder: Path, fields: StaticTextFields | T5Fields, device: torch.device | None = None) -> TextEncoder:
    """The text encoder of a model folder; raises `HawkError` where a file is damaged or missing."""
    if isinstance(fields, T5Fields):
        dtype = torch.float32 if fields.dtype == "float32" else torch.bfloat16
        return T5TextEncoder(_text_source(folder, fields.source), fields.width, fields.tokens, dtype, device)
    return StaticTextEncoder.load(folder)


def _text_source(folder: Path, source: str) -> str:
    """The folder of a text encoder (inside the model folder or anywhere else), or its hub id."""
    for candidate in (folder / source, Path(source)):
        if candidate.is_dir():
            return str(candidate)
    if not is_hub_id(source):
        raise HawkError(f"{folder}: the text encoder's folder {source} is gone: put its new path into config.json")
    return source


def _tokenizer(folder: Path, config: ModelConfig, dtype: torch.dtype | None) -> FSQTokenizer | VQGAN:
    """The image tokenizer of a model folder in `dtype`, without its weights if that is None."""
    files, shape = [folder / "tokenizer.safetensors"], config.tokenizer
    if isinstance(shape, FSQFields):
        depths = {"tokenizer.decoder_depths": max(shape.decoder_depths), "tokenizer.levels": len(shape.levels)}
        return _read_module(lambda: FSQTokenizer(shape.shape()), files, dtype, depths, on_meta=False)
    depths = {"tokenizer.blocks": shape.blocks, "tokenizer.multipliers": len(shape.multipliers)}
    return _read_module(lambda: VQGAN(shape.shape()), files, dtype, depths)


def _check_parts(folder: Path, config: ModelConfig, tokenizer: FSQTokenizer | VQGAN, text: TextEncoder) -> None:
    """Check that target, tokenizer and text encoder fit together."""
    shape = config.target
    if shape.vocab_size != tokenizer.codebook_size:
        raise HawkError(
            f"{folder}: the target draws {shape.vocab_size} codes, the image tokenizer has {tokenizer.codebook_size}"
        )
    if (shape.caption_tokens, shape.caption_dim) != (text.tokens, text.width):
        raise HawkError(
            f"{folder}: the target takes captions of {shape.caption_tokens}x{shape.caption_dim}, "
            f"the text encoder gives {text.tokens}x{text.width}"
        )


def _read_module(
    make: Callable[[], M], files: list[Path], dtype: torch.dtype | None, depths: Mapping[str, int], on_meta: bool = True
) -> M:
    """A frozen module with the weights of safetensors files in `dtype`; names and shapes must be the module's own.

    The module is made without memory, so that a large model is held only once; the files fill it. `on_meta=False` is
    for a module that holds more than the files do: it is made once more, with memory. If `dtype` is None, the files'
    headers are checked and no weight is read. `depths` are the fields of config.json that count layers.
    """
    module = outlined(make, files, files[0].parent / "config.json", depths)
    if dtype is not None:
        module = module if on_meta else make()
        weights: dict[str, Tensor] = {}
        for path in files:
            held = read_safetensors(path)
            refuse_not_finite(path, held)
            weights |= {name: tensor.to(dtype) for name, tensor in held.items()}
        module.load_state_dict(weights, assign=True)
    return module.eval().requires_grad_(False)


def target_files(folder: Path) -> list[Path]:
    """The target's weight files: those of the index where there is one, else the single file."""
    index = folder / "target.safetensors.index.json"
    return indexed_files(index) if index.is_file() else [folder / "target.safetensors"]


def target_fingerprint(source: Path | LlamaGen) -> str:
    """The fingerprint of a target, or of the target in a model folder: a hash of its shape and its output head."""
    if isinstance(source, LlamaGen):
        config, head = source.config, source.output.weight
    else:
        config = read_config(source).target
        head, wanted = _named_tensor(target_files(source), "output.weight"), (config.vocab_size, config.dim)
        if tuple(head.shape) != wanted:
            raise HawkError(f"{source}: output.weight has shape {tuple(head.shape)}, config.json asks for {wanted}")
    # A switch that is off is left out: a switch that is new must not change the fingerprints of older targets.
    shape = {name: value for name, value in asdict(config).items() if value is not False}
    return fingerprint(shape, [head])


def _named_tensor(files: list[Path], name: str) -> Tensor:
    """The tensor of that name in one of several safetensors files."""
    for path in files:
        with opened(path) as file:
            if name in file.keys():  # noqa: SIM118 (the file is no mapping)
                tensor: Tensor = file.get_tensor(name)
                return tensor
    raise HawkError(f"{files[0]} lacks {name}")


# --- saving --------------------------------------------------------------------------------------------------


def save_model(
    folder: Path,
    name: str,
    target: LlamaGen,
    tokenizer: FSQTokenizer,
    text_folder: Path,
    defaults: SamplingParams | None = None,
    heads: DraftHeads | None = None,
    fused: FusedSettings | None = None,
    card: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> ModelConfig:
    """Write a model folder, file by file, each one atomically and config.json last. Weights are stored in bfloat16.

    Args:
        text_folder: the folder from which the text encoder was loaded; its files are copied.
        fused: settings of `hawk`'s pool, saved beside the heads.
        card: the text of README.md; None leaves an existing README.md as it is.
        shard_bytes: the largest size of one weight file of the target.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    fsq = FSQFields.model_validate(tokenizer.config.to_dict())
    config = ModelConfig(name=name, target=target.config, tokenizer=fsq, defaults=defaults or SamplingParams())
    folder.mkdir(parents=True, exist_ok=True)
    for file in TEXT_FILES:
        if (text_folder / file).resolve() != (folder / file).resolve():
            with replacing(folder / file) as temporary:
                shutil.copyfile(text_folder / file, temporary)
    save_target(folder, target.state_dict(), torch.bfloat16, shard_bytes)
    save_tensors(folder / "tokenizer.safetensors", _stored(tokenizer.state_dict(), torch.bfloat16))
    if heads is not None:
        heads.save(folder / HEADS_FOLDER, target_fingerprint(target))
        if fused is not None:
            fused.save(folder / HEADS_FOLDER)
    if card is not None:
        write_bytes(folder / "README.md", card.encode())
    write_json(folder / "config.json", config.model_dump(mode="json"))
    return config


def save_target(
    folder: Path,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    shard_bytes: int = SHARD_BYTES,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a target's weights in `dtype` (None: each in its own); see `save_sharded`."""
    save_sharded(folder, "target", weights, dtype, shard_bytes, on_bytes)


def save_sharded(
    folder: Path,
    stem: str,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    shard_bytes: int,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write weights in `dtype` (None: each in its own), file by file, so that only one file's are copied.

    The file is STEM.safetensors. Weights that do not fit into one file of `shard_bytes` are split over several files
    with an index, in the layout of transformers. Files of an earlier save are removed. After each file `on_bytes` is
    called with the bytes written so far and the bytes in all.
    """
    sizes = {name: tensor.numel() * (dtype or tensor.dtype).itemsize for name, tensor in weights.items()}
    shards = _shards(sizes, shard_bytes)
    old = set(folder.glob(f"{stem}*.safetensors*"))
    names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    written = {folder / name: shard for name, shard in zip(names, shards, strict=True)}
    if len(shards) == 1:
        written = {folder / f"{stem}.safetensors": shards[0]}
    done = 0
    for path, shard in written.items():
        save_tensors(path, _stored({name: weights[name] for name in shard}, dtype))
        done += sum(sizes[name] for name in shard)
        on_bytes(done, sum(sizes.values()))
    kept = set(written)
    if len(shards) > 1:
        index = folder / f"{stem}.safetensors.index.json"
        weight_map = {name: path.name for path, shard in written.items() for name in shard}
        write_json(index, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})
        kept.add(index)
    for path in old - kept:
        path.unlink()


def _shards(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """The names, in their order, split into shards of at most `shard_bytes`; a shard has at least one name."""
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _stored(weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Contiguous copies of weights on the CPU, in `dtype` (None: each in its own)."""
    return {k: v.detach().to("cpu", dtype or v.dtype, copy=True).contiguous() for k, v in weights.items()}
