"""Model folders: a target, its image tokenizer, its text encoder and its drafters, saved and loaded as one.

config.json                        what the weights are (`ModelConfig`)
target.safetensors                 LlamaGen's official key names; or target-00001-of-0000N.safetensors + an index
tokenizer.safetensors              the image tokenizer, or its decoder alone
words.safetensors words.txt text.json   the text encoder where it is static (`StaticTextEncoder.load`)
drafters/heads/                    heads.safetensors, heads.json, pool.json (how `hawk` fuses and grows its tree)
README.md                          model card
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.heads import DraftHeads
from hawk.drafters.parts import DraftParts, load_parts
from hawk.drafters.settings import FusedSettings
from hawk.errors import HawkError, one_line
from hawk.files import read_json, replacing, save_tensors, write_bytes, write_json
from hawk.models.checkpoint import FLOATS
from hawk.models.config import FSQFields, ModelConfig, StaticTextFields, T5Fields, check_target_shape
from hawk.models.fingerprint import fingerprint
from hawk.models.llamagen.t5 import T5TextEncoder
from hawk.models.llamagen.target import CaptionPrompt, LlamaGen
from hawk.models.llamagen.words import StaticTextEncoder, TextEncoder
from hawk.models.tokenizers.fsq import FSQTokenizer
from hawk.models.tokenizers.vqgan import VQGAN

BUNDLED = Path(__file__).parents[1] / "weights" / "bundled"
SHARD_BYTES = 48_000_000
MAX_TOKENS = 4096
"""Most tokens of an image."""
TEXT_FILES = ("words.safetensors", "words.txt", "text.json")
HEADS_FOLDER = Path("drafters") / "heads"

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class LoadedModel:
    """A model folder in memory; `drafting` is None where no drafter is trained for it."""

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
        """The grid it was trained for."""
        return self.target.grid

    @property
    def cell(self) -> int:
        """Side of a token in pixels."""
        return self.tokenizer.downsample

    @property
    def defaults(self) -> SamplingParams:
        """The sampling parameters that a call uses where it names none."""
        return self.config.defaults

    @property
    def modules(self) -> list[nn.Module]:
        """What moves to a device."""
        return [self.target, self.tokenizer, *(self.drafting.modules if self.drafting else [])]

    def check_grid(self, grid: Grid) -> None:
        """`HawkError` for too large a grid."""
        if grid.size > MAX_TOKENS:
            raise HawkError(
                f"{grid.height}x{grid.width} tokens are too many: at most {MAX_TOKENS} fit, choose a smaller image"
            )

    def condition(self, prompts: Sequence[str], negatives: Sequence[str], grid: Grid) -> CaptionPrompt:
        """Caption features; where only some images have a negative prompt, the others take the null caption."""
        weight = self.target.tok_embeddings.weight
        encoded = self.text.encode(list(prompts))
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
        """Images of token grids, in [-1, 1]."""
        return self.tokenizer.decode(codes)

    def pack(self, dtype: torch.dtype) -> None:
        """Lay target and drafter out for decoding on a CPU, their products in `dtype`."""
        self.target.pack(dtype)
        if self.drafting:
            self.drafting.pack(dtype)

    def facts(self) -> dict[str, Any]:
        """What `hawk info` tells of its parts."""
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
) -> LoadedModel:
    """Read a model folder.

    Args:
        dtype: of the target and the draft heads; the image tokenizer stays in float32.
        drafter: a folder of draft heads to use in place of the model's own.
        with_heads: False leaves the heads alone, also where they were made for another target.
        text_device: where a T5 text encoder is to compute (default: the CPU); it is read there with the first prompt.

    Raises:
        HawkError: one line on what is missing, cut short, of the wrong shape, or made for another target.
    """
    config = read_config(folder)
    target = _filled(lambda: LlamaGen(config.target), _target_files(folder), dtype, on_meta=True)
    tokenizer = _tokenizer(folder, config)
    text = load_text(folder, config.text, text_device)
    _check_parts(folder, config, tokenizer, text)
    fingerprint = target_fingerprint(
        folder if dtype == torch.float16 else target
    )  # float16 cannot hold all of bfloat16
    heads_folder = folder / HEADS_FOLDER if drafter is None else drafter
    present = with_heads and (drafter is not None or heads_folder.is_dir())
    shape = config.target
    drafting = load_parts(heads_folder, shape.dim, shape.vocab_size, fingerprint, dtype) if present else None
    return LoadedModel(config, target, tokenizer, text, drafting, fingerprint)


def read_config(folder: Path) -> ModelConfig:
    """`config.json` of a model folder, checked."""
    path = folder / "config.json"
    if not path.is_file():
        raise HawkError(f"{folder} is no model folder: it has no config.json")
    try:
        config = ModelConfig.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise HawkError(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}") from error
    check_target_shape(path, config.target)
    return config


def load_text(folder: Path, fields: StaticTextFields | T5Fields, device: torch.device | None = None) -> TextEncoder:
    """The text encoder of a model folder; `HawkError` for damaged or missing files."""
    if isinstance(fields, T5Fields):
        dtype = torch.float32 if fields.dtype == "float32" else torch.bfloat16
        return T5TextEncoder(_text_source(folder, fields.source), fields.width, fields.tokens, dtype, device)
    try:
        return StaticTextEncoder.load(folder)
    except HawkError:
        raise
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise HawkError(f"the text encoder in {folder} is damaged: {one_line(error)}") from error


def _text_source(folder: Path, source: str) -> str:
    """Where a text encoder lies: inside the model folder, in any other folder, or on the hub."""
    for place in (folder / source, Path(source)):
        if place.is_dir():
            return str(place)
    if source.count("/") != 1 or source.startswith(("/", ".", "~")):
        raise HawkError(f"{folder}: the text encoder's folder {source} is gone: put its place into config.json")
    return source


def _tokenizer(folder: Path, config: ModelConfig) -> FSQTokenizer | VQGAN:
    """The image tokenizer, in float32 whatever the target's dtype: it is small, and pixels deserve it."""
    files, shape = [folder / "tokenizer.safetensors"], config.tokenizer
    if isinstance(shape, FSQFields):
        return _filled(lambda: FSQTokenizer(shape.shape()), files, torch.float32)
    return _filled(lambda: VQGAN(shape.shape()), files, torch.float32, on_meta=True)


def _check_parts(folder: Path, config: ModelConfig, tokenizer: FSQTokenizer | VQGAN, text: TextEncoder) -> None:
    """That target, tokenizer and text encoder fit together."""
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


def _filled(make: Callable[[], M], files: list[Path], dtype: torch.dtype, on_meta: bool = False) -> M:
    """A module holding the weights of safetensors files in `dtype`; every key and shape must be as the module's."""
    if on_meta:  # no second copy of a large model: its parameters are made by the files alone
        with torch.device("meta"):
            module = make()
    else:
        module = make()
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found: dict[str, Tensor] = {}
    for path in files:
        for name, tensor in _checked_tensors(path, wanted):
            found[name] = tensor.to(dtype)
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise HawkError(f"{files[0]} lacks {len(missing)} of {len(wanted)} weights, among them {missing[0]}")
    module.load_state_dict(found, assign=True)
    return module.eval().requires_grad_(False)


def _checked_tensors(path: Path, wanted: dict[str, tuple[int, ...]]) -> list[tuple[str, Tensor]]:
    """The tensors of one safetensors file, each of which must be wanted, of its shape, and of a float dtype."""
    if not path.is_file():
        raise HawkError(f"{path} is missing: the model folder is not complete")
    try:
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
            for name in names:
                entry = file.get_slice(name)
                if name not in wanted:
                    raise HawkError(f"{path} holds {name}, which this architecture does not have")
                if tuple(entry.get_shape()) != wanted[name]:
                    raise HawkError(
                        f"{path}: {name} has shape {tuple(entry.get_shape())}, config.json asks for {wanted[name]}"
                    )
                if entry.get_dtype() not in FLOATS:
                    raise HawkError(
                        f"{path}: {name} is {entry.get_dtype()}, weights must be one of {', '.join(FLOATS)}"
                    )
            return [(name, file.get_tensor(name)) for name in names]
    except SafetensorError as error:
        raise HawkError(f"{path} is damaged or cut short ({one_line(error)}): fetch or train it again") from error


def _target_files(folder: Path) -> list[Path]:
    """The target's weight files: those of the index where there is one, else the single file."""
    index = folder / "target.safetensors.index.json"
    if not index.is_file():
        return [folder / "target.safetensors"]
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise HawkError(f"{index} has no weight_map")
    names = sorted({str(name) for name in places.values()})
    if any(Path(name).name != name for name in names):
        raise HawkError(f"{index} names files outside its folder")
    return [folder / name for name in names]


def target_fingerprint(source: Path | LlamaGen) -> str:
    """A short sha256 of a target's config and output head (in bfloat16, as on disk): what draft heads belong to."""
    if isinstance(source, LlamaGen):
        config, head = source.config, source.output.weight
    else:
        config = read_config(source).target
        shapes = {"output.weight": (config.vocab_size, config.dim)}
        head = _named_tensor(_target_files(source), "output.weight")
        if tuple(head.shape) != shapes["output.weight"]:
            raise HawkError(f"{source}: output.weight has shape {tuple(head.shape)}, not {shapes['output.weight']}")
    shape = {name: value for name, value in asdict(config).items() if value is not False}  # a new switch is off
    return fingerprint(shape, [head])


def _named_tensor(files: list[Path], name: str) -> Tensor:
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as file:
                if name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                    return file.get_tensor(name)
        except (SafetensorError, FileNotFoundError) as error:
            raise HawkError(f"{path} is missing or damaged ({one_line(error)})") from error
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
    """Write a model folder; each file appears whole, config.json last. Weights are stored in bfloat16.

    Args:
        text_folder: the folder the text encoder was loaded from; its files are copied.
        fused: settings of `hawk`'s pool, saved beside the heads.
        card: text of README.md; an existing one is kept for None.
        shard_bytes: largest size of one weight file of the target.
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
    """Write a target's weights in `dtype` (None: as they are), shard by shard: no second copy of all of them.

    One file, or as many as `shard_bytes` asks for with an index; files of an earlier save are removed. After each,
    `on_bytes` is told how many bytes are written, and how many there will be.
    """
    sizes = {name: tensor.numel() * (dtype or tensor.dtype).itemsize for name, tensor in weights.items()}
    shards = _shards(sizes, shard_bytes)
    old = set(folder.glob("target*.safetensors*"))
    names = [f"target-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    written = {folder / name: shard for name, shard in zip(names, shards, strict=True)}
    if len(shards) == 1:
        written = {folder / "target.safetensors": shards[0]}
    done = 0
    for path, shard in written.items():
        save_tensors(path, _stored({name: weights[name] for name in shard}, dtype))
        done += sum(sizes[name] for name in shard)
        on_bytes(done, sum(sizes.values()))
    kept = set(written)
    if len(shards) > 1:
        index = folder / "target.safetensors.index.json"
        places = {name: path.name for path, shard in written.items() for name in shard}
        write_json(index, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})
        kept.add(index)
    for path in old - kept:
        path.unlink()


def _shards(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """Names in their order, as many to a shard as fit into it (at least one)."""
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
    """Weights as they are stored: contiguous copies on the CPU, in `dtype` or as they are."""
    return {k: v.detach().to("cpu", dtype or v.dtype, copy=True).contiguous() for k, v in weights.items()}
