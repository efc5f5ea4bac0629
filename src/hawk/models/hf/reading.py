"""Reads checkpoints in transformers' format: safetensors files only, each one whole, with no weight missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from hawk.decoding.memory import is_out_of_memory
from hawk.errors import HawkError, one_line
from hawk.files import read_json, refuse_pointers
from hawk.models.checkpoint import check_numbers, weight_files
from hawk.nn.stored import Shapes, read_safetensors, shapes_in, shapes_of

FOREIGN = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ImportError,
    ArithmeticError,
    AssertionError,
    StrictDataclassError,
)
"""What transformers raises, among others, for files that are wrong."""

SPARE = 50_000_000
"""Parameters that a model may have beside twice those in its files."""

PROCESSOR_FILES = ("chat_template.json", "processor_config.json")
"""Files in which releases of transformers have kept the chat template of a processor."""


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
    # Refuses a damaged file before transformers reads it.
    held = {path: shapes_in(path, any_dtype=quantized) for path in weight_files(folder)}
    check_numbers(folder / "config.json", held)
    if not quantized:
        check_sizes(without_memory(folder, architecture), folder, held)
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
        except FOREIGN as error:
            if is_out_of_memory(error):
                raise
            raise unreadable(folder, one_line(error)) from error
    lacking = sorted(name for name in info["missing_keys"] if not name.startswith(may_lack))
    if lacking:
        raise HawkError(f"the weights in {folder} lack {len(lacking)} tensors, among them {lacking[0]}")
    unknown = sorted(name for name in info["unexpected_keys"] if not name.startswith(may_hold))
    if unknown:
        raise HawkError(f"the weights in {folder} hold {unknown[0]}, which {architecture} does not have")
    return model.eval().requires_grad_(False)


def without_memory(folder: Path, architecture: str) -> Any:
    """The transformers model of a folder's config.json, without memory; `HawkError` where it cannot be built."""
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            return getattr(transformers, architecture)(config)
    except FOREIGN as error:
        raise unreadable(folder, one_line(error)) from error


def unreadable(folder: Path, why: str) -> HawkError:
    """The error for a folder that transformers cannot read."""
    return HawkError(f"{folder} is no checkpoint that transformers can read: {why}")


def check_sizes(model: Any, folder: Path, held: Mapping[Path, Shapes]) -> None:
    """Raise `HawkError` where a model without memory would take much more of it than its files hold.

    Weights of the same name are compared. Older releases of transformers saved some under other names, and some models
    lack weights that they do not need to draw: beside the names, only the sum of all sizes is bounded.
    """
    wanted = shapes_of(model.state_dict())
    for path, shapes in held.items():
        for name, shape in shapes.items():
            if wanted.get(name, shape) != shape:
                found = f"{path.name}: {name} has shape {shape}, config.json asks for {wanted[name]}"
                raise unreadable(folder, found)
    asked = sum(parameter.numel() for parameter in model.parameters())
    there = sum(prod(shape) for shapes in held.values() for shape in shapes.values())
    if asked > 2 * there + SPARE:
        raise unreadable(folder, f"config.json asks for {asked:,} parameters, the files hold {there:,}")


def outlined_model(folder: Path, architecture: str, head: str) -> Any:
    """A transformers model without memory, of which only the module named `head` has its weights, on the CPU.

    Raises `HawkError` for a damaged weight file, and where the head is missing or of another shape.
    """
    files = {path: shapes_in(path) for path in weight_files(folder)}
    check_numbers(folder / "config.json", files)
    model = without_memory(folder, architecture)
    module, last = model.get_submodule(head), head.split(".")[-1]
    wanted = {f"{last}.{name}": tuple(weight.shape) for name, weight in module.state_dict().items()}
    read = {}
    for name, shape in wanted.items():
        # Older releases of transformers saved the same weights under other prefixes.
        found = next(((p, key) for p, held in files.items() for key in held if f".{key}".endswith(f".{name}")), None)
        if found is None:
            raise HawkError(f"the weights in {folder} lack {head.removesuffix(last)}{name}")
        path, key = found
        if files[path][key] != shape:
            raise HawkError(f"{path}: {key} has shape {files[path][key]}, config.json asks for {shape}")
        read[name.removeprefix(f"{last}.")] = read_safetensors(path, key)[key]
    module.load_state_dict(read, assign=True)
    return model.eval().requires_grad_(False)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a checkpoint's folder; raises `HawkError` where there is none that can be read.

    A chat template that the folder keeps for its processor is given to the tokenizer, if that has none of its own.
    """
    refuse_pointers(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception only
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
