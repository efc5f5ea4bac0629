"""The pictures that `hawk generate` is asked for: by arguments, by a file of prompts, or by an earlier picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from hawk.errors import HawkError
from hawk.files import prompt_lines, read_prompt_text


@dataclass(frozen=True)
class Wanted:
    """One picture to draw. `negative` "" is none."""

    prompt: str
    seed: int
    negative: str = ""


class _Line(BaseModel):
    """A line of a JSON-lines file of prompts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str
    seed: int | None = None
    negative_prompt: str | None = None


@dataclass(frozen=True)
class Asked:
    """A line of a file of prompts; `seed` None takes the next seed of the command."""

    prompt: str
    seed: int | None = None
    negative: str | None = None


def read_asked(source: str) -> list[Asked]:
    """The prompts of a text file, or of standard input for "-": a prompt a line, or a JSON object a line.

    An object has the keys `prompt` and, as it likes, `seed` and `negative_prompt`. Blank lines and lines that begin
    with # are left out. Raises `HawkError` that names the line.
    """
    name = "standard input" if source == "-" else source
    text = _standard_input() if source == "-" else read_prompt_text(Path(source))
    asked = [_asked(name, number, line) for number, line in prompt_lines(text)]
    if not asked:
        raise HawkError(f"{name} holds no prompt: write one a line")
    return asked


def _asked(name: str, number: int, line: str) -> Asked:
    if not line.startswith("{"):
        return Asked(line)
    try:
        read = _Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        detail = f"{where}: {first['msg']}" if where else first["msg"]
        raise HawkError(
            f"{name}, line {number}: {detail}; a line is a prompt, or an object with prompt, seed, negative_prompt"
        ) from None
    if not read.prompt.strip():
        raise HawkError(f"{name}, line {number}: the prompt is empty")
    return Asked(read.prompt, read.seed, read.negative_prompt)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HawkError("standard input is not UTF-8 text: give one prompt a line") from error


def wanted_pictures(asked: Sequence[Asked], count: int, seeds: Sequence[int], negative: str | None) -> list[Wanted]:
    """`count` pictures of each line; a line's own seed comes before that of `seeds`, its negative prompt likewise.

    Args:
        seeds: one for each picture.
    """
    wanted = []
    for i, line in enumerate(asked):
        for k in range(count):
            seed = seeds[i * count + k] if line.seed is None else line.seed + k
            wanted.append(Wanted(line.prompt, seed, line.negative if line.negative is not None else negative or ""))
    return wanted


@dataclass(frozen=True)
class Recipe:
    """How a picture of Hawk was drawn, read from the text in its PNG file. `tokens` is the SHA-256 of its tokens."""

    prompt: str
    seed: int
    negative: str | None
    model: str
    method: str
    tokens: str
    settings: dict[str, Any]


SETTINGS = ("cfg_scale", "temperature", "top_k", "top_p", "height", "width", "verifier", "dtype")
"""What the settings of a picture must hold."""


def recipe_of(text: dict[str, str], path: Path) -> Recipe:
    """The recipe in a picture's text; raises `HawkError` where Hawk did not write it."""
    try:
        settings = json.loads(text["settings"])
        settings = {name: settings[name] for name in SETTINGS}
        negative, seed = text.get("negative_prompt"), int(text["seed"])
        return Recipe(text["prompt"], seed, negative, text["model"], text["method"], text["tokens_sha256"], settings)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise HawkError(f"{path} does not say how it was drawn: give a PNG that `hawk generate` wrote") from error
