"""Weight files as others publish them: what they hold is checked before it is used, and no code in them is run.

Weights are mapped from their file, not read into memory as a whole.
"""

from __future__ import annotations

import pickle  # noqa: TID251 (only the class of torch's refusal: nothing is unpickled here)
import re
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hawk.errors import HawkError, one_line
from hawk.files import read_json, refuse_pointer

WRAPPERS = ("model", "module", "state_dict")
"""Keys under which training scripts put the state dict of a checkpoint."""

FLOATS = ("BF16", "F16", "F32", "F64")
"""Dtypes that weights may have, as safetensors names them."""

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
"""The weight files of a checkpoint in transformers' format."""

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each weight, by the weight's name."""


# --- reading -------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file or a PyTorch checkpoint, which may wrap it in one of `WRAPPERS`.

    The tensors are mapped from the file: a tensor takes memory only when it is copied. Only tensors, plain data and
    `argparse.Namespace` are unpickled; a `Namespace` holds the settings of a training script.

    Raises:
        HawkError: the file is missing, cut short, holds code or no state dict; the message is one line.
    """
    if not path.is_file():
        raise HawkError(f"there is no file {path}")
    refuse_pointer(path)
    weights = read_safetensors(path) if path.suffix == ".safetensors" else _unwrapped(path, _unpickled(path))
    for name, tensor in weights.items():
        if tensor.ndim and not tensor.is_floating_point():  # a tensor of one number may be a counter
            raise HawkError(f"{path}: {name} is {tensor.dtype}, weights must be floating-point numbers")
    return weights


def read_safetensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names begin with `prefix`.

    Raises `HawkError` where the file is missing, damaged or cut short.
    """
    with opened(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (the file is no mapping)
        return {name: file.get_tensor(name) for name in names}


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open to be read; raises `HawkError` where it is missing, damaged or cut short."""
    if not path.is_file():
        raise HawkError(f"{path} is missing: the model folder is not complete")
    refuse_pointer(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise HawkError(f"{path} is damaged or cut short ({one_line(error)}): fetch or make it again") from error


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


# --- checking ------------------------------------------------------------------------------------------------


def shapes_in(path: Path, any_dtype: bool = False) -> Shapes:
    """The shapes of the weights in a safetensors file, from its header: no weight is read.

    Raises:
        HawkError: the file is missing, damaged or cut short; or, without `any_dtype`, a weight is not in `FLOATS`.
    """
    with opened(path) as file:
        entries = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
        shapes = {name: tuple(entry.get_shape()) for name, entry in entries.items()}
        dtypes = {name: entry.get_dtype() for name, entry in entries.items()}
    for name, dtype in dtypes.items():
        if not any_dtype and shapes[name] and dtype not in FLOATS:  # a tensor of one number may be a counter
            raise HawkError(f"{path}: {name} is {dtype}, weights must be one of {', '.join(FLOATS)}")
    return shapes


def shapes_of(weights: Mapping[str, Tensor]) -> Shapes:
    """The shapes of weights that are at hand, such as a module's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def check_weights(files: Mapping[Path, Shapes], wanted: Shapes, asked_by: str) -> None:
    """Check that weight files hold all the wanted weights and no other, each in the wanted shape.

    Args:
        files: the shapes in each file.
        wanted: the shapes of all weights together.
        asked_by: who wants these shapes, for the message: "config.json asks" becomes "config.json asks for (16, 16)".

    Raises:
        HawkError: one line that names a weight that is missing, unknown, or of another shape.
    """
    file_of = {name: path for path, shapes in files.items() for name in shapes}
    missing, unknown = sorted(wanted.keys() - file_of.keys()), sorted(file_of.keys() - wanted.keys())
    if missing:
        instead = f" and holds {unknown[0]} instead" if unknown else ""
        raise HawkError(
            f"{next(iter(files))} lacks {len(missing)} of {len(wanted)} weights, among them {missing[0]}{instead}"
        )
    if unknown:
        raise HawkError(f"{file_of[unknown[0]]} holds {unknown[0]}, which this architecture does not have")
    for name, path in file_of.items():
        if files[path][name] != wanted[name]:
            raise HawkError(f"{path}: {name} has shape {files[path][name]}, {asked_by} for {wanted[name]}")


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
