"""A model by name: where its folder is, which family reads it, on which device and in which dtype."""

from __future__ import annotations

from pathlib import Path

import torch

from hawk.bundle import BUNDLED, load_model
from hawk.errors import HawkError
from hawk.model import Model
from hawk.packed import fast_dtype, worth_packing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
FETCHED = ("*.json", "*.safetensors", "*spiece.model", "words.txt", "README.md")
"""What a model folder can hold, of all that a hub repository may: no pickles and no code."""


def load_on(folder: Path, place: torch.device, dtype: str, drafter: Path | None) -> Model:
    """The model in a folder, on a device and laid out for decoding there; `dtype` is a name of `DTYPES`."""
    mixed = place.type == "cpu" and dtype in ("float32", "bfloat16")
    model = load_model(folder, torch.float32 if mixed else DTYPES[dtype], drafter, text_device=place)
    for module in model.modules:
        module.to(place)
    if mixed and worth_packing(model.target, DTYPES[dtype]):
        model.pack(DTYPES[dtype])
    return model


def dtype_named(dtype: str, place: torch.device) -> str:
    """A name of `DTYPES`; "auto" is bfloat16 on a CPU with matrix units (AMX), and float32 elsewhere."""
    if dtype not in ("auto", *DTYPES):
        raise HawkError(f"unknown dtype {dtype!r}: choose one of auto, {', '.join(DTYPES)}")
    if dtype != "auto":
        return dtype
    return "bfloat16" if place.type == "cpu" and fast_dtype() == torch.bfloat16 else "float32"


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


def model_folder(model: str | Path) -> Path:
    """The folder of "bundled", of a path, or of a hub id (fetched where it is not in the cache)."""
    if model == "bundled":
        if not (BUNDLED / "config.json").is_file():
            raise HawkError(
                f"this installation has no bundled model in {BUNDLED}: reinstall hawk, or name a model folder"
            )
        return BUNDLED
    path = Path(model)
    if path.exists():
        if not path.is_dir():
            raise HawkError(f"{path} is a file: give the model's folder")
        return path
    name = str(model)
    if name.count("/") != 1 or name.startswith(("/", ".", "~")) or name.endswith("/"):
        raise HawkError(f"no model folder at {name} (and it is no hub id, which would look like owner/name)")
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
