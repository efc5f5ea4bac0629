"""Weights in safetensors files: a file's header is checked before its weights take memory or a module is built.

Weights are mapped from their file, not read into memory as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hawk.errors import HawkError, one_line
from hawk.files import refuse_pointer

FLOATS = ("BF16", "F16", "F32", "F64")
"""Dtypes that weights may have, as safetensors names them."""

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each weight, by the weight's name."""

MOST = 2**31
"""The largest width that a JSON file may ask for: a product of two such numbers is no overflow."""

Count = Annotated[int, Field(ge=1, le=MOST)]
"""A width or a number of layers in a JSON file."""

M = TypeVar("M", bound=nn.Module)


# --- reading -------------------------------------------------------------------------------------------------


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


def lossless_dtype(files: Iterable[Path]) -> torch.dtype:
    """The narrowest dtype that holds the weights of safetensors files exactly: one of 16 bits if all are in it."""
    found: set[str] = set()
    for path in files:
        with opened(path) as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()} & set(FLOATS)  # noqa: SIM118
    half = {frozenset({"BF16"}): torch.bfloat16, frozenset({"F16"}): torch.float16}
    return half.get(frozenset(found), torch.float32)


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


def refuse_not_finite(path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Raise `HawkError` with the file and the name of a weight that holds a NaN or an infinite number.

    With `dtype`, a finite number that is infinite in that dtype is refused too.
    """
    for name, tensor in weights.items():
        if not tensor.numel() or not tensor.is_floating_point():
            continue
        # The extremes take a tenth of the time of `isfinite().all()`, and a NaN among the weights is both of them.
        ends = torch.stack(tensor.aminmax())
        if not ends.isfinite().all():
            raise HawkError(f"{path} is damaged: {name} holds a NaN or an infinite number; fetch or make it again")
        if dtype is not None and not ends.to(dtype).isfinite().all():
            kind = str(dtype).removeprefix("torch.")
            raise HawkError(f"{path}: {name} holds {ends.abs().max():.3g}, which is infinite in {kind}")


def outlined(
    make: Callable[[], M], files: Sequence[Path], described: Path, depths: Mapping[str, int] | None = None
) -> M:
    """The module that `make` builds, without memory; its weights' names and shapes must be those of the files' headers.

    Args:
        described: the JSON file from which the module's shape was read.
        depths: fields of `described` that count layers. Each layer has a weight, so that a module with more layers than
            the files have weights is refused before it is built.

    Raises:
        HawkError: one line on a file that is missing or damaged, or a weight that is missing or of another shape.
    """
    held = {path: shapes_in(path) for path in files}
    weights = sum(len(shapes) for shapes in held.values())
    for name, depth in (depths or {}).items():
        if depth > weights:
            raise HawkError(f"{described}: {name} is {depth}, but {files[0].name} has only {weights} weights")
    try:
        with torch.device("meta"):
            module = make()
    except (RuntimeError, OverflowError) as error:
        raise HawkError(f"{described} describes a shape that is too large ({one_line(error)})") from error
    check_weights(held, shapes_of(module.state_dict()), f"{described.name} asks")
    return module
