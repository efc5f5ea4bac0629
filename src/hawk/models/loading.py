"""From names to what runs: a model's name to a loaded model, and the names of devices, dtypes and engines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import cast, get_args

import torch
from torch import nn

from hawk.decoding.arguments import name_of, path_of, shown
from hawk.decoding.memory import refused_where_memory_ends
from hawk.decoding.recording import Engine
from hawk.drafters.parts import DraftParts, load_parts
from hawk.errors import HawkError, install
from hawk.files import read_json
from hawk.machine import has_float64
from hawk.models.checkpoint import weight_files
from hawk.models.folder import BUNDLED, HEADS_FOLDER, load_model, outline_model, target_files
from hawk.models.hub import fetched, is_hub_id
from hawk.models.llamagen.target import LlamaGen
from hawk.models.protocol import ImageTarget, Model
from hawk.nn.packed import can_pack_float16, fast_dtype
from hawk.nn.stored import lossless_dtype, shapes_in

LARGE = 200_000_000
"""On a GPU, a model of more parameters is drawn in bfloat16, unless a dtype is named."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

DEVICES = ("cpu", "cuda", "mps")
"""The types of devices that a model can be on."""


# --- loading -------------------------------------------------------------------------------------------------


def load_on(
    folder: Path, device: torch.device, dtype: str, drafter: Path | None, pack: bool = True, with_drafter: bool = True
) -> Model:
    """Load the model in a folder to a device.

    Args:
        dtype: a name in `DTYPES`.
        drafter: a drafter's folder, to use in place of the model's own drafter.
        pack: lay the linear layers out for decoding, where the device and the dtype gain from it (`mixed_precision`).
        with_drafter: False loads no drafter, not even the model's own.

    Raises:
        HawkError: one line on what is missing, damaged, made for another target, or too large for the memory.
    """
    elsewhere = "" if device.type == "cpu" else ", or --device cpu"
    if device.type == "cpu" and dtype == "float16" and pack and not can_pack_float16():
        message = "hawk: this CPU has no product with float16 weights: they are rounded to float16 and held in float32"
        logging.getLogger(__name__).warning(message)
    with refused_where_memory_ends(f"load the model in bfloat16, or choose a smaller model{elsewhere}"):
        if is_checkpoint(folder):
            return _load_checkpoint(folder, device, dtype, drafter, pack)
        model = load_model(folder, dtype_read(folder, device, dtype, pack), drafter, with_drafter, text_device=device)
        for module in model.modules:
            module.to(device)
        if pack and mixed_precision(device, dtype):
            model.pack(DTYPES[dtype])
        return model


def load_spread(folder: Path, device: torch.device, dtype: str, spread: Callable[[nn.ModuleList], None]) -> Model:
    """Load the model in a folder for several devices together, unpacked and without a drafter.

    All weights are read to the memory of the host. `spread` is called with the target's blocks and moves them; then the
    others are moved to `device`. Raises `HawkError` as `load_on` does.
    """
    with refused_where_memory_ends("load the model in bfloat16, or use more processes"):
        if is_checkpoint(folder):
            return _load_checkpoint(folder, device, dtype, None, pack=False, spread=spread)
        read_as = dtype_read(folder, device, dtype, pack=False)
        model = load_model(folder, read_as, None, with_heads=False, text_device=device)
        spread(model.target.blocks)
        for module in model.modules:
            module.to(device)
        return model


def packed_copy(target: ImageTarget, device: torch.device, dtype: str) -> ImageTarget:
    """A copy of an unpacked target, packed as `load_on` packs it; the target itself where `load_on` would not pack."""
    if not isinstance(target, LlamaGen) or not mixed_precision(device, dtype):
        return target
    copy = deepcopy(target)
    copy.pack(DTYPES[dtype])
    return copy


def mixed_precision(device: torch.device, dtype: str) -> bool:
    """Whether only the weights of linear layers are in `dtype`, and all but their products is computed in float32."""
    return device.type == "cpu" and dtype != "float64"


def dtype_read(folder: Path, device: torch.device, dtype: str, pack: bool = True) -> torch.dtype:
    """The dtype in which `load_on` reads target and drafters from their files, before it packs them."""
    if not mixed_precision(device, dtype):
        return DTYPES[dtype]
    if not is_checkpoint(folder):
        return torch.float32
    return lossless_dtype(weight_files(folder)) if dtype == "float16" and pack else DTYPES[dtype]


def drafters_on(model: Model, folder: Path, device: torch.device, dtype: str, drafter: Path | None) -> DraftParts:
    """The drafters of a model in memory, read again as `load_on` loads them for another device or dtype.

    The device need not be there: the drafters lie on the CPU. `HawkError` for a damaged drafter.
    """
    target, mark = model.target, model.fingerprint
    place, read_as = folder / HEADS_FOLDER if drafter is None else drafter, dtype_read(folder, device, dtype)
    parts = load_parts(place, target.hidden_size, target.vocab_size, mark, read_as)
    if mixed_precision(device, dtype):
        parts.pack(DTYPES[dtype])
    return parts


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint in transformers' format, and not a model folder in Hawk's own."""
    path = folder / "config.json"
    return path.is_file() and "model_type" in read_json(path)


def is_large(folder: Path) -> bool:
    """Whether the model in a folder has more than `LARGE` parameters, by the headers of its weight files.

    False for a folder whose files are missing or damaged: the loader says what is wrong with it.
    """
    try:
        files = weight_files(folder) if is_checkpoint(folder) else target_files(folder)
        return sum(prod(shape) for path in files for shape in shapes_in(path, any_dtype=True).values()) > LARGE
    except HawkError:
        return False


def load_outline(folder: Path) -> Model:
    """The model in a folder for `Model.facts`: no weights are read but those of output head, text encoder and drafters.

    Its other modules have shapes alone, so it cannot draw. Raises `HawkError` as `load_on` does.
    """
    if not is_checkpoint(folder):
        return outline_model(folder)
    try:
        from hawk.models.hf.model import outline_transformers_model
    except ModuleNotFoundError as error:
        raise _without_transformers(folder, error) from error
    return outline_transformers_model(folder)


def _load_checkpoint(
    folder: Path,
    device: torch.device,
    dtype: str,
    drafter: Path | None,
    pack: bool,
    spread: Callable[[nn.ModuleList], None] | None = None,
) -> Model:
    try:
        from hawk.models.hf.model import load_transformers_model
    except ModuleNotFoundError as error:
        raise _without_transformers(folder, error) from error
    model = load_transformers_model(folder, device, dtype_read(folder, device, dtype, pack), drafter, spread)
    if pack and mixed_precision(device, dtype):
        model.pack(DTYPES[dtype])
    return model


def _without_transformers(folder: Path, error: ModuleNotFoundError) -> Exception:
    """What to raise where a checkpoint cannot be read because a module is missing."""
    if error.name != "transformers":
        return error
    return HawkError(f"{folder} is a transformers checkpoint: {install('hf')} to draw with it")


# --- names ---------------------------------------------------------------------------------------------------


def dtype_named(dtype: str, device: torch.device, large: bool = False) -> str:
    """A name in `DTYPES`; "auto" becomes the dtype in which the device decodes fastest.

    On a CPU that is bfloat16 where it has instructions for it (AMX, AVX512_BF16), else float16 where layers can be
    packed so, else float32.
    On a GPU it is bfloat16 for a `large` model (`is_large`), else float32. Raises `HawkError` for an unknown name, and
    for float64 where the device does not have it.
    """
    name_of("dtype", dtype, ("auto", *DTYPES))
    if dtype == "float64" and not has_float64(device):
        raise HawkError(f"{device.type} has no float64: choose auto, float32, bfloat16 or float16")
    if dtype != "auto":
        return dtype
    if device.type != "cpu":
        return "bfloat16" if large else "float32"
    if fast_dtype() == torch.bfloat16:
        return "bfloat16"
    return "float16" if can_pack_float16() else "float32"


def device_named(name: str) -> torch.device:
    """The device of a name; "auto" is a CUDA GPU if there is one. Raises `HawkError` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise HawkError(f"unknown device {shown(name)}: choose auto, cpu, cuda or mps") from error
    if device.type not in DEVICES:
        raise HawkError(f"device {name!r} is not supported: choose auto, cpu, cuda or mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise HawkError(f"device {name!r} is not there: this PyTorch sees no Apple GPU")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise HawkError(f"device {name!r} is not there: this PyTorch sees {torch.cuda.device_count()} GPUs")
    return device


def engine_named(engine: str, device: torch.device) -> Engine:
    """The engine of a name; "auto" is "graph" on a CUDA GPU, else "eager".

    On an Apple GPU ("mps") every engine is "eager", and one line of the log says so. Raises `HawkError` for an unknown
    engine, and for "graph" and "compiled" on a CPU.
    """
    if name_of("engine", engine, ("auto", *get_args(Engine))) == "auto":
        return "graph" if device.type == "cuda" else "eager"
    if engine != "eager" and device.type == "mps":
        logging.getLogger(__name__).warning("hawk: engine %r needs CUDA: on an Apple GPU the engine is eager", engine)
        return "eager"
    if engine != "eager" and device.type != "cuda":
        raise HawkError(f"engine {engine!r} is for GPUs, and this is {device.type}: choose auto or eager")
    return cast(Engine, engine)


def model_folder(model: str | Path) -> Path:
    """The folder of a model: "bundled", a path, or a hub id, which is downloaded unless it is in the cache.

    Raises `HawkError` where there is no such folder.
    """
    path = path_of("model", model, "'bundled', a folder or a hub id (owner/name)")
    if model == "bundled":
        if not (BUNDLED / "config.json").is_file():
            raise HawkError(
                f"this installation has no bundled model in {BUNDLED}: reinstall hawk, or name a model folder"
            )
        return BUNDLED
    return _local_or_fetched(path, "model folder")


def drafter_folder(drafter: str | Path) -> Path:
    """The folder of a drafter: a path or a hub id. Raises `HawkError` where there is no such folder."""
    return _local_or_fetched(path_of("drafter", drafter, "a folder or a hub id (owner/name)"), "drafter folder")


def _local_or_fetched(path: Path, what: str) -> Path:
    name = str(path)
    if path.exists():
        if not path.is_dir():
            raise HawkError(f"{path} is a file: give the {what}")
        return path
    if not is_hub_id(name):
        raise HawkError(f"no {what} at {name} (and it is no hub id, which would look like owner/name)")
    return fetched(name)
