"""A trained part of a drafter on disk: NAME.safetensors, and NAME.json with its shape and its target's fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from hawk.decoding.arguments import shown
from hawk.errors import HawkError
from hawk.files import checked_fields, read_json, refuse_pointers, save_tensors, write_json
from hawk.nn.stored import outlined, read_safetensors, refuse_not_finite

C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)


def files_of(name: str) -> tuple[str, str]:
    """Names of a part's two files."""
    return f"{name}.safetensors", f"{name}.json"


def check_heads(width: int, heads: int, axes: int) -> None:
    """Raise `HawkError` unless attention of that width splits into heads whose channels turn about `axes` axes."""
    if width % heads or width // heads % (2 * axes):
        raise HawkError(f"{width} channels do not split into {heads} heads of a multiple of {2 * axes} channels")


def save_part(part: nn.Module, config: Any, folder: Path, name: str, target_fingerprint: str) -> None:
    """Write a part's weights in bfloat16, which cannot change what is generated, and its shape and target."""
    weights, described = files_of(name)
    save_tensors(folder / weights, {key: value.bfloat16().contiguous() for key, value in part.state_dict().items()})
    write_json(folder / described, {**asdict(config), "target": target_fingerprint})


def load_part(
    make: Callable[[C], M], config: type[C], depths: tuple[str, ...], folder: Path, name: str, target_fingerprint: str
) -> M | None:
    """Read a part that `make` builds from its shape, a `config`; None where there is none.

    `depths` are the fields of the shape that count layers.

    Raises:
        HawkError: one line on a part that lacks one of its two files, a part of another target, a shape that the
            weights do not have, a weight that is not finite, or a Git LFS pointer anywhere in the folder: no other part
            of the drafter could be read either.
    """
    refuse_pointers(folder)
    weights, described = (folder / file for file in files_of(name))
    there = [path for path in (weights, described) if path.is_file()]
    if not there:
        return None
    if len(there) == 1:
        lacking = described if there == [weights] else weights
        raise HawkError(f"the drafter is damaged: {there[0]} is there, {lacking.name} is not: fetch or train it again")
    fields = read_json(described)
    trained_for = fields.pop("target", None)
    if trained_for != target_fingerprint:
        other = trained_for if isinstance(trained_for, str) else shown(trained_for)
        raise HawkError(f"{described} was trained for target {other}, not {target_fingerprint}: train a new drafter")
    shape = checked_fields(config, fields, described)
    counts = {field: getattr(shape, field) for field in depths}
    try:
        part = outlined(lambda: make(shape), [weights], described, counts)
        held = read_safetensors(weights)
        refuse_not_finite(weights, held)
    except HawkError as error:
        raise HawkError(f"the drafter is damaged: {error}") from error
    part.load_state_dict({key: value.float() for key, value in held.items()}, assign=True)
    return part.eval()
