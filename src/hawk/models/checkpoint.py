"""Weight files as others publish them: what they hold is checked before it is used, and no code in them is run.

Weights are mapped from their file, not read into memory as a whole.
"""

from __future__ import annotations

import pickle  # noqa: TID251 (only the class of torch's refusal: nothing is unpickled here)
import re
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hawk.errors import HawkError, one_line
from hawk.files import read_json, refuse_pointer
from hawk.nn.stored import MOST, Shapes, read_safetensors

WRAPPERS = ("model", "module", "state_dict")
"""Keys under which training scripts put the state dict of a checkpoint."""

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""Dtypes that weights may have."""

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
"""The weight files of a checkpoint in transformers' format."""

# --- numbers of a config.json ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value that a number of a config.json can have."""

    least: int | float
    most: int | float


SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "num_embeddings",
    "embed_dim",
    "codebook_size",
    "base_channels",
    "latent_channels",
    "resolution",
    "patch_size",
    "d_model",
    "d_ff",
    "d_kv",
    "num_heads",
    "num_layers",
)
RANGES = {
    **dict.fromkeys(SIZES, Range(1, MOST)),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), Range(1e-12, 0.1)),
    **dict.fromkeys(("rope_theta", "factor"), Range(1, 1e12)),
    "partial_rotary_factor": Range(0.01, 1),
}
"""The ranges of numbers by their name in config.json: the modules of transformers compute with them unchecked."""


def check_numbers(path: Path, held: Mapping[Path, Shapes] | None = None) -> None:
    """Raise `HawkError` where a config.json of transformers, at `path`, holds a number with which no model can draw.

    Such a number is not finite or out of its range in `RANGES`. With the shapes of the weights in each file (`held`),
    more layers than weights are refused too: a model of very many layers takes long to build, even without memory.
    """
    weights = None if held is None else sum(map(len, held.values()))
    for place, value in _numbers(read_json(path)):
        name = place.rpartition(".")[2]
        if not isfinite(value):
            raise HawkError(f"{path}: {place} is {value}, which is no finite number")
        if weights is not None and value > weights and any(word in name for word in ("layers", "blocks", "depth")):
            raise HawkError(f"{path}: {place} is {value}, but the files hold only {weights} weights")
        right = RANGES.get(name)
        if right is not None and not right.least <= value <= right.most:
            raise HawkError(f"{path}: {place} is {value}, it must be from {right.least:g} to {right.most:g}")


def _numbers(document: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a JSON object, however deep, each with the names on the way to it and dots between them."""
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{above}{name}.")
        elif isinstance(value, int | float):
            yield f"{above}{name}", value


# --- reading -------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file or a PyTorch checkpoint, which may wrap it in one of `WRAPPERS`.

    The tensors are mapped from the file: a tensor takes memory only when it is copied. Only tensors, plain data and
    `argparse.Namespace` are unpickled; a `Namespace` holds the settings of a training script.

    Raises:
        HawkError: the file is missing, cut short, holds code or no state dict, or a weight is sparse, nested, without
            memory ("meta"), or of a dtype that is not in `FLOAT_DTYPES`; the message is one line.
    """
    if not path.is_file():
        raise HawkError(f"there is no file {path}")
    refuse_pointer(path)
    weights = read_safetensors(path) if path.suffix == ".safetensors" else _unwrapped(path, _unpickled(path))
    for name, tensor in weights.items():
        if tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided:
            kind = "meta" if tensor.is_meta else "nested" if tensor.is_nested else "sparse"
            raise HawkError(f"{path}: {name} is a {kind} tensor, weights must be dense tensors that hold numbers")
        if tensor.ndim and tensor.dtype not in FLOAT_DTYPES:  # a tensor of one number may be a counter
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
            raise HawkError(f"{path}: {name} is {tensor.dtype}, weights must be floating-point numbers, one of {kinds}")
    return weights


def indexed_files(index: Path, suffix: str = ".safetensors") -> list[Path]:
    """The weight files that an index names; raises `HawkError` unless each has the suffix and lies beside the index."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise HawkError(f"{index} has no weight_map")
    names = sorted({str(name) for name in files.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(suffix):
            raise HawkError(f"{index} names {name}, which is no {suffix.removeprefix('.')} file beside it")
        if not (index.parent / name).is_file():
            raise HawkError(f"{index.parent / name} is missing, though {index.name} names it: fetch or make it again")
    return [index.parent / name for name in names]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads from a checkpoint: the single file, or else those in its index.

    Raises `HawkError` where a file is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        if pickled:
            raise HawkError(f"{folder} holds pickled weights only ({pickled[0]}): convert them to safetensors first")
        raise HawkError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}")
    return indexed_files(folder / INDEX)


# --- PyTorch's own format ------------------------------------------------------------------------------------


def _unpickled(path: Path) -> object:
    if not zipfile.is_zipfile(path):
        raise HawkError(f"{path} is no PyTorch checkpoint (of version 1.6 or later), or is cut short: fetch it again")
    try:
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"a Python object ({found[1]})" if found else "Python objects"
        raise HawkError(f"{path} holds {what}, which could run code: only tensors and plain data are read") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise HawkError(f"{path} is damaged or cut short ({one_line(error)}): fetch it again") from error


def _unwrapped(path: Path, document: object) -> dict[str, Tensor]:
    """The state dict in an unpickled document."""
    inner = document if isinstance(document, Mapping) else {}
    inner = next((inner[key] for key in WRAPPERS if isinstance(inner.get(key), Mapping)), inner)
    if not inner or not all(isinstance(tensor, Tensor) for tensor in inner.values()):
        raise HawkError(f"{path} holds no state dict, neither bare nor as {', '.join(WRAPPERS)}")
    return {str(name): tensor for name, tensor in inner.items()}
