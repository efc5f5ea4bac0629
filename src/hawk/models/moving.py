"""What becomes of a loaded model: moved to another device or dtype, saved with its drafter, run in evaluation mode."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from weakref import WeakKeyDictionary

import torch
from torch import nn

from hawk.errors import HawkError, one_line
from hawk.files import new_folder
from hawk.models.folder import HEADS_FOLDER, FolderModel
from hawk.models.llamagen.t5 import T5TextEncoder
from hawk.models.loading import DTYPES, drafter_folder, mixed_precision, model_folder
from hawk.models.protocol import Model


@dataclass(frozen=True)
class Origin:
    """Where a model and its drafter were loaded from: "bundled", an absolute path, or a hub id.

    `drafter` is None if the drafter is the model's own.
    """

    model: str
    drafter: str | None = None

    @classmethod
    def of(cls, model: str | Path, drafter: str | Path | None) -> Origin:
        """The origin of names as `from_pretrained` takes them; it stays right when the working folder changes."""
        return cls(_lasting(model), None if drafter is None else _lasting(drafter))


def _lasting(name: str | Path) -> str:
    """A name that does not depend on the working folder."""
    return str(Path(name).resolve()) if name != "bundled" and Path(name).exists() else str(name)


def same_device(one: torch.device, other: torch.device) -> bool:
    """Whether two devices are one; "cuda" is "cuda:0"."""
    return (one.type, one.index or 0) == (other.type, other.index or 0)


def moved(model: Model, device: torch.device, dtype: str) -> Model:
    """The model with its weights on a device and in a dtype of `DTYPES`, as `load_on` would lay them out there.

    The modules themselves are moved, not copied. The image tokenizer keeps float32.

    Raises:
        HawkError: the model cannot be changed in place: it is packed, or a checkpoint of transformers.
    """
    another = f", dtype='{dtype}'" if DTYPES[dtype] != model.target.weight_dtype else ""
    instead = f"load it with from_pretrained(..., device='{device}'{another})"
    if not isinstance(model, FolderModel):
        raise HawkError(f"a transformers checkpoint cannot be changed in place: {instead}")
    if model.target.packed_in is not None:
        raise HawkError(f"the weights are packed for this CPU and cannot be changed in place: {instead}")
    weights = torch.float32 if mixed_precision(device, dtype) else DTYPES[dtype]
    model.tokenizer.to(device)
    for module in (model.target, *(model.drafting.modules if model.drafting else [])):
        module.to(device, weights)
    if isinstance(model.text, T5TextEncoder):
        model = replace(model, text=replace(model.text, device=device))
    if mixed_precision(device, dtype):
        model.pack(DTYPES[dtype])
    return model


def weight_places(module: nn.Module) -> tuple[tuple[int, torch.dtype, torch.device], ...]:
    """Where a module's weights and buffers lie, and in which dtype: what must not change under a recording."""
    return tuple((held.data_ptr(), held.dtype, held.device) for held in (*module.parameters(), *module.buffers()))


def save_copy(origin: Origin, folder: Path) -> None:
    """Copy the files of a model folder or checkpoint to a new folder; a drafter of another folder becomes its own.

    Hidden files are left out. Raises `HawkError` where `folder` is a file, is not empty or cannot be written.
    """
    try:
        with new_folder(folder) as temporary:
            left_out = shutil.ignore_patterns(".*", "*.tmp")
            shutil.copytree(model_folder(origin.model), temporary, ignore=left_out, dirs_exist_ok=True)
            if origin.drafter is not None:
                shutil.rmtree(temporary / HEADS_FOLDER, ignore_errors=True)
                shutil.copytree(drafter_folder(origin.drafter), temporary / HEADS_FOLDER, ignore=left_out)
    except OSError as error:
        raise HawkError(f"the model cannot be saved to {folder} ({_reason(error)}): name another folder") from error


def _reason(error: OSError) -> str:
    """Why a copy failed; `shutil.Error` holds a list of (file, its copy, reason), of which the first is told."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list) and error.args[0]:
        source, _, reason = error.args[0][0]
        return f"{Path(source).name}: {reason}"
    return one_line(error)


_IN_EVALUATION: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""The modules that `evaluation_mode` took out of training mode, with the number of bodies that run them now."""
_COUNTING = Lock()


@contextmanager
def evaluation_mode(module: nn.Module | None) -> Iterator[None]:
    """Run the body with a module in evaluation mode; afterwards each part of the module has its own mode again.

    Several threads may run one module at the same time: its modes come back when the last of their bodies ends.
    """
    parts = [] if module is None else list(module.modules())
    with _COUNTING:
        taken = [part for part in parts if part.training or part in _IN_EVALUATION]
        for part in taken:
            part.training = False
            _IN_EVALUATION[part] = _IN_EVALUATION.get(part, 0) + 1
    try:
        yield
    finally:
        with _COUNTING:
            for part in taken:
                _IN_EVALUATION[part] -= 1
                if not _IN_EVALUATION[part]:
                    del _IN_EVALUATION[part]
                    part.training = True
