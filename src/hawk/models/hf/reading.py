"""Reading checkpoints in transformers' format: safetensors only, whole, with every weight in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer
from transformers.utils import logging

from hawk.errors import HawkError, one_line
from hawk.files import read_json
from hawk.models.checkpoint import FLOATS

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def read_model(
    folder: Path, architecture: str, dtype: torch.dtype, place: torch.device, may_lack: tuple[str, ...] = ()
) -> Any:
    """A frozen transformers model on a device, its weights read straight to it, with attention by SDPA.

    Args:
        architecture: name of its class in transformers.
        may_lack: beginnings of the names of weights that the files may lack.

    Raises:
        HawkError: one line on files that are missing, pickled, cut short, of another model or of no float dtype.
    """
    quantized = "quantization_config" in read_json(folder / "config.json")
    for path in weight_files(folder):
        check_weights(path, FLOATS if not quantized else None)
    with quiet():
        try:
            model, info = getattr(transformers, architecture).from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": place},
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
            raise HawkError(f"{folder} is no checkpoint that transformers can read: {one_line(error)}") from error
    lacking = sorted(name for name in info["missing_keys"] if not name.startswith(may_lack))
    if lacking:
        raise HawkError(f"the weights in {folder} lack {len(lacking)} tensors, among them {lacking[0]}")
    unknown = sorted(info["unexpected_keys"])
    if unknown:
        raise HawkError(f"the weights in {folder} hold {unknown[0]}, which {architecture} does not have")
    return model.eval().requires_grad_(False)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer beside the weights."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise HawkError(
            f"no tokenizer in {folder} (tokenizer.json and tokenizer_config.json, as published): {one_line(error)}"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads of a checkpoint: the single one, or else those of its index.

    `HawkError` where one is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        if pickled:
            raise HawkError(f"{folder} holds pickled weights only ({pickled[0]}): convert them to safetensors first")
        raise HawkError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise HawkError(f"{folder / INDEX} has no weight_map")
    names = sorted({str(name) for name in places.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise HawkError(f"{folder / INDEX} names {name}, which is no safetensors file beside it")
        if not (folder / name).is_file():
            raise HawkError(f"{folder / name} is missing, though {INDEX} names it: fetch it again")
    return [folder / name for name in names]


def check_weights(path: Path, dtypes: tuple[str, ...] | None) -> None:
    """That a safetensors file is whole and holds tensors of these dtypes (None: any)."""
    try:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                entry = file.get_slice(name)
                dtype = entry.get_dtype()
                if dtypes is not None and entry.get_shape() and dtype not in dtypes:  # a single number may be a count
                    raise HawkError(f"{path}: {name} is {dtype}, weights must be one of {', '.join(dtypes)}")
    except SafetensorError as error:
        raise HawkError(f"{path} is damaged or cut short ({one_line(error)}): fetch it again") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and warnings: what is wrong is raised."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
