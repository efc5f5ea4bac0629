"""Reads checkpoints in transformers' format: safetensors files only, each one whole, with no weight missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer
from transformers.utils import logging

from hawk.errors import HawkError, one_line
from hawk.files import read_json
from hawk.models.checkpoint import indexed_files, refuse_pointers, shapes_in

PROCESSOR_FILES = ("chat_template.json", "processor_config.json")
"""Files in which releases of transformers have kept the chat template of a processor."""

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def read_model(
    folder: Path,
    architecture: str,
    dtype: torch.dtype,
    device: torch.device,
    may_lack: tuple[str, ...] = (),
    may_hold: tuple[str, ...] = (),
) -> Any:
    """A frozen transformers model with SDPA attention, whose weights are read straight to a device.

    Args:
        architecture: the name of the model's class in transformers.
        may_lack: prefixes of the names of weights that may be missing.
        may_hold: prefixes of the names of weights that the class does not have and the files may hold.

    Raises:
        HawkError: one line on weights that are missing, pickled, cut short, of another model or of no float dtype.
    """
    quantized = "quantization_config" in read_json(folder / "config.json")
    for path in weight_files(folder):
        shapes_in(path, any_dtype=quantized)  # refuses a damaged file before transformers reads it
    with quiet():
        try:
            model, info = getattr(transformers, architecture).from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": device},
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
    unknown = sorted(name for name in info["unexpected_keys"] if not name.startswith(may_hold))
    if unknown:
        raise HawkError(f"the weights in {folder} hold {unknown[0]}, which {architecture} does not have")
    return model.eval().requires_grad_(False)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a checkpoint's folder; raises `HawkError` where there is none that can be read.

    A chat template that the folder keeps for its processor is given to the tokenizer, if that has none of its own.
    """
    if folder.is_dir():
        refuse_pointers(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise HawkError(
            f"no tokenizer in {folder} (tokenizer.json and tokenizer_config.json, as published): {one_line(error)}"
        ) from error
    if tokenizer.chat_template is None:
        tokenizer.chat_template = processor_template(folder)
    return tokenizer


def processor_template(folder: Path) -> str | None:
    """The chat template of a folder's processor, in a file of its own or in the processor's; None without one."""
    for name in PROCESSOR_FILES:
        template = read_json(folder / name).get("chat_template") if (folder / name).is_file() else None
        if isinstance(template, str):
            return template
    return None


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


@contextmanager
def quiet() -> Iterator[None]:
    """A context in which transformers shows no progress bar and no warning: Hawk raises what is wrong as an error."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
