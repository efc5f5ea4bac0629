"""`drawn-on.json` in a folder of pictures: the facts of every machine that drew them (`hawk.machine.machine_facts`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hawk.errors import HawkError, one_line
from hawk.files import write_json

DRAWN_ON = "drawn-on.json"
NOT_RECORDED = "a machine that was not recorded"
"""In place of the processor of batches that an older version of Hawk drew."""


def machines_of(out: Path) -> list[dict[str, Any]]:
    """The machines that drew the pictures in a folder, in the order of their first batches; none for an older folder.

    Raises `HawkError` for a damaged file.
    """
    path = out / DRAWN_ON
    if not path.is_file():
        return []
    advice = "copy it again, or remove it, and the report names no machine that drew"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise HawkError(f"{path} is not valid JSON ({one_line(error)}): {advice}") from error
    needed = {"device", "dtype", "processor"}
    if not isinstance(found, list) or not all(isinstance(each, dict) and needed <= each.keys() for each in found):
        raise HawkError(f"{path} must hold a list of machines, each with device, dtype and processor: {advice}")
    return found


def add_machine(out: Path, facts: Mapping[str, Any]) -> None:
    """Add a machine to those that drew, unless it is listed. The date of a machine is that of its first batch.

    Where batches lie in the folder and no machine is listed, an older version of Hawk drew them: the list says so.
    """
    listed = machines_of(out)
    if not listed and any(out.glob("*/batch-*.safetensors")):
        listed = [{"dtype": facts["dtype"], "device": facts["device"], "processor": NOT_RECORDED}]
    if undated(facts) not in map(undated, listed):
        write_json(out / DRAWN_ON, [*listed, dict(facts)])


def undated(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a machine without the date."""
    return {name: value for name, value in facts.items() if name != "date"}


def in_words(facts: Mapping[str, Any]) -> str:
    """The facts of a machine in one line."""
    plain = {name: value for name, value in facts.items() if name not in ("processor", "versions")}
    named = {**plain, **(facts.get("versions") or {})}
    return ", ".join([str(facts["processor"]), *(f"{name} {value}" for name, value in named.items())])


def processors(machines: Sequence[Mapping[str, Any]]) -> str:
    """The names of the machines' processors, each once."""
    return " and ".join(dict.fromkeys(str(each["processor"]) for each in machines))
