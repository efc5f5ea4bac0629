"""A trained part of a drafter on disk: NAME.safetensors, and NAME.json with its shape and its target's fingerprint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file
from torch import nn

from hawk.errors import HawkError
from hawk.files import refuse_pointers, save_tensors, write_json

M = TypeVar("M", bound=nn.Module)


def files_of(name: str) -> tuple[str, str]:
    """Names of a part's two files."""
    return f"{name}.safetensors", f"{name}.json"


def save_part(part: nn.Module, config: Any, folder: Path, name: str, target_fingerprint: str) -> None:
    """Write a part's weights in bfloat16, which cannot change what is generated, and its shape and target."""
    weights, described = files_of(name)
    save_tensors(folder / weights, {key: value.bfloat16().contiguous() for key, value in part.state_dict().items()})
    write_json(folder / described, {**asdict(config), "target": target_fingerprint})


def load_part(make: Callable[[dict[str, Any]], M], folder: Path, name: str, target_fingerprint: str) -> M | None:
    """Read a part that `make` builds from its shape; None where there is none.

    Raises `HawkError` for a part of another target, and for a Git LFS pointer anywhere in the folder: no other part of
    the drafter could be read either.
    """
    refuse_pointers(folder)
    weights, described = (folder / file for file in files_of(name))
    if not weights.is_file() or not described.is_file():
        return None
    shape = json.loads(described.read_text(encoding="utf-8"))
    trained_for = shape.pop("target")
    if trained_for != target_fingerprint:
        raise HawkError(
            f"{described} was trained for target {trained_for}, not {target_fingerprint}: train a new drafter"
        )
    part = make(shape)
    part.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
    return part.eval()
