"""Checkpoint files as others publish them: no code in them is run, and weights are mapped, not read into memory."""

from __future__ import annotations

import pickle  # noqa: TID251 (only the class of torch's refusal: nothing is unpickled here)
import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hawk.errors import HawkError, one_line

WRAPPERS = ("model", "module", "state_dict")

FLOATS = ("BF16", "F16", "F32", "F64")
"""Dtypes that weights may have, as safetensors names them."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file or a PyTorch checkpoint, bare or as its "model", "module", "state_dict".

    The tensors are mapped from the file: they take memory only as they are copied. Only tensors and plain data are
    unpickled, and the `argparse.Namespace` of settings that training scripts leave beside them.

    Raises:
        HawkError: one line where the file is missing, cut short, holds code, or no state dict.
    """
    if not path.is_file():
        raise HawkError(f"there is no file {path}")
    weights = _safetensors(path) if path.suffix == ".safetensors" else _unwrapped(path, _unpickled(path))
    odd = [
        name for name, tensor in weights.items() if tensor.ndim and not tensor.is_floating_point()
    ]  # a number may count
    if odd:
        raise HawkError(f"{path}: {odd[0]} is {weights[odd[0]].dtype}, weights must be floating-point numbers")
    return weights


def check_weights(path: Path, weights: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """That the weights read from a file have these names and shapes; `HawkError` names one that has not."""
    missing = sorted(wanted.keys() - weights.keys())
    unknown = sorted(weights.keys() - wanted.keys())
    if missing:
        instead = f" and holds {unknown[0]} instead" if unknown else ""
        raise HawkError(f"{path} lacks {len(missing)} of {len(wanted)} weights, among them {missing[0]}{instead}")
    if unknown:
        raise HawkError(f"{path} holds {unknown[0]}, which this architecture does not have")
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != shape:
            raise HawkError(f"{path}: {name} has shape {tuple(weights[name].shape)}, not {shape} as the rest asks for")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise HawkError(f"{path} is damaged or cut short ({one_line(error)}): fetch it again") from error


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
    """The state dict inside what was unpickled."""
    inner = document if isinstance(document, Mapping) else {}
    inner = next((inner[key] for key in WRAPPERS if isinstance(inner.get(key), Mapping)), inner)
    if not inner or not all(isinstance(tensor, Tensor) for tensor in inner.values()):
        raise HawkError(f"{path} holds no state dict, neither bare nor as {', '.join(WRAPPERS)}")
    return {str(name): tensor for name, tensor in inner.items()}
