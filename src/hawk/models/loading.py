"""A model by name: where its folder is, which family reads it, on which device and in which dtype."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import cast, get_args

import torch

from hawk.decoding.recording import Engine
from hawk.errors import HawkError
from hawk.files import read_json
from hawk.models.folder import BUNDLED, load_model
from hawk.models.llamagen.target import LlamaGen
from hawk.models.protocol import ImageTarget, Model
from hawk.nn.packed import fast_dtype, worth_packing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
FETCHED = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", "*vqgan.ckpt", "README.md")
"""What a model folder can hold, of all that a hub repository may: no code, and no pickle but one of tensors alone."""


def load_on(
    folder: Path, place: torch.device, dtype: str, drafter: Path | None, pack: bool = True, with_drafter: bool = True
) -> Model:
    """The model in a folder, on a device and (`pack`) laid out for decoding there; `dtype` is a name of `DTYPES`.

    `with_drafter` False leaves also the model's own drafter alone.
    """
    if is_checkpoint(folder):
        return _adapted(folder, place, DTYPES[dtype], drafter)
    read_as = torch.float32 if mixes(place, dtype) else DTYPES[dtype]
    model = load_model(folder, read_as, drafter, with_drafter, text_device=place)
    for module in model.modules:
        module.to(place)
    if pack and packs(model.target, place, dtype):
        model.pack(DTYPES[dtype])
    return model


def laid_out(target: ImageTarget, place: torch.device, dtype: str) -> ImageTarget:
    """A target that is not packed as `load_on` would give it; a copy where that changes it."""
    if not isinstance(target, LlamaGen) or not packs(target, place, dtype):
        return target
    copy = deepcopy(target)
    copy.pack(DTYPES[dtype])
    return copy


def packs(target: LlamaGen, place: torch.device, dtype: str) -> bool:
    """Whether a target's linear layers are packed for decoding."""
    return mixes(place, dtype) and worth_packing(target, DTYPES[dtype])


def mixes(place: torch.device, dtype: str) -> bool:
    """Whether only matrix products are in `dtype`, and all else in float32."""
    return place.type == "cpu" and dtype in ("float32", "bfloat16")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint in transformers' format, and no model folder of ours."""
    path = folder / "config.json"
    return path.is_file() and "model_type" in read_json(path)


def _adapted(folder: Path, place: torch.device, dtype: torch.dtype, drafter: Path | None) -> Model:
    try:
        from hawk.models.hf.model import load_adapted
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise HawkError(f"{folder} is a transformers checkpoint: pip install 'hawk-t2i[hf]' to draw with it") from error
    return load_adapted(folder, place, dtype, drafter)


def dtype_named(dtype: str, place: torch.device, large: bool = False) -> str:
    """A name of `DTYPES`; "auto" is bfloat16 on a CPU with matrix units (AMX), and float32 elsewhere.

    Of a `large` model "auto" is bfloat16 on a GPU, too.
    """
    if dtype not in ("auto", *DTYPES):
        raise HawkError(f"unknown dtype {dtype!r}: choose one of auto, {', '.join(DTYPES)}")
    if dtype != "auto":
        return dtype
    fast = fast_dtype() == torch.bfloat16 if place.type == "cpu" else large
    return "bfloat16" if fast else "float32"


def device_named(device: str) -> torch.device:
    """The device of a name; "auto" is a GPU where there is one. `HawkError` for one that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise HawkError(f"unknown device {device!r}: choose auto, cpu or cuda") from error
    if place.type not in ("cpu", "cuda"):
        raise HawkError(f"device {device!r} is not supported: choose auto, cpu or cuda")
    if place.type == "cuda" and (not torch.cuda.is_available() or (place.index or 0) >= torch.cuda.device_count()):
        raise HawkError(f"device {device!r} is not there: this PyTorch sees {torch.cuda.device_count()} GPUs")
    return place


def engine_named(engine: str, place: torch.device) -> Engine:
    """The engine of a name; "auto" is "graph" on a GPU. `HawkError` for one that is not there or cannot run."""
    names = get_args(Engine)
    if engine == "auto":
        return "graph" if place.type == "cuda" else "eager"
    if engine not in names:
        raise HawkError(f"unknown engine {engine!r}: choose one of auto, {', '.join(names)}")
    if engine != "eager" and place.type != "cuda":
        raise HawkError(f"engine {engine!r} is for GPUs, and this is {place.type}: choose auto or eager")
    return cast(Engine, engine)


def model_folder(model: str | Path) -> Path:
    """The folder of "bundled", of a path, or of a hub id (fetched where it is not in the cache)."""
    if model == "bundled":
        if not (BUNDLED / "config.json").is_file():
            raise HawkError(
                f"this installation has no bundled model in {BUNDLED}: reinstall hawk, or name a model folder"
            )
        return BUNDLED
    return _here_or_on_hub(model, "model folder")


def drafter_folder(drafter: str | Path) -> Path:
    """The folder of a drafter at a path, or of a hub id."""
    return _here_or_on_hub(drafter, "drafter folder")


def _here_or_on_hub(name: str | Path, what: str) -> Path:
    path, name = Path(name), str(name)
    if path.exists():
        if not path.is_dir():
            raise HawkError(f"{path} is a file: give the {what}")
        return path
    if name.count("/") != 1 or name.startswith(("/", ".", "~")) or name.endswith("/"):
        raise HawkError(f"no {what} at {name} (and it is no hub id, which would look like owner/name)")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    """A model folder of the hub; only files that a model folder can hold are fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(FETCHED)))
    except (OSError, HFValidationError) as error:  # every hub error but the validation of ids is an OSError
        reason = " ".join(str(error).split())[:160]
        raise HawkError(f"no folder {name!r} here, and the hub did not give it ({reason})") from error
