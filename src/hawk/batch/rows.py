"""The rows of a file of prompts: read one by one, checked, and each with an id of its own.

A row has a prompt and, as it likes, `id`, `negative_prompt` and `seed`; its other columns are kept as they are. A row
that cannot be drawn becomes a `Failure` with the reason, and the rows after it are read on.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hawk.decoding.arguments import shown
from hawk.decoding.request import MAX_SEED
from hawk.errors import HawkError, install, one_line
from hawk.files import prompt_lines, read_prompt_text

KNOWN = ("id", "prompt", "negative_prompt", "seed")
"""The columns that Hawk reads."""
LONGEST_ID = 200
"""The most characters of an id."""


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt to draw. `line` is its line or row in the file, from 1; `negative` "" is none; `seed` None is derived.

    `columns` holds the row's other columns.
    """

    line: int
    id: str
    prompt: str
    negative: str = ""
    seed: int | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def given(self) -> dict[str, Any]:
        """The row as a file of prompts may hold it."""
        own = {"negative_prompt": self.negative} if self.negative else {}
        seed = {} if self.seed is None else {"seed": self.seed}
        return {"id": self.id, "prompt": self.prompt, **own, **seed, **self.columns}


@dataclass(frozen=True, slots=True)
class Failure:
    """A row without images, and the reason; `given` holds what the row's columns were, as JSON values."""

    line: int
    reason: str
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        """The line of failures.jsonl: the row itself, its line and the reason."""
        return {**self.given, "line": self.line, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Raw:
    """The columns of a row as they were read."""

    line: int
    columns: dict[str, Any]


def read_rows(path: Path, images: int) -> Iterator[Row | Failure]:
    """The rows of a file of prompts in its order; each is to have `images` images.

    A row without an id has the first 16 digits of the sha256 of its prompts as its id; the second row with the same
    prompts has -2 behind them, the third -3. Of several rows with one id, the first is drawn.

    Raises:
        HawkError: the file cannot be read, is of no known kind, or has no column `prompt`.
    """
    first: dict[str, int] = {}
    repeats: Counter[str] = Counter()
    for raw in _reader(path)(path):
        row = raw if isinstance(raw, Failure) else _row(raw, images)
        if isinstance(row, Row):
            if not row.id:
                name = derived_id(row.prompt, row.negative)
                repeats[name] += 1
                number = f"-{repeats[name]}" if repeats[name] > 1 else ""
                row = Row(row.line, name + number, row.prompt, row.negative, row.seed, row.columns)
            if row.id in first:
                row = Failure(row.line, f"the id {row.id} is that of row {first[row.id]}, too", row.given)
            else:
                first[row.id] = row.line
        yield row


def derived_id(prompt: str, negative: str) -> str:
    """The id of a row that names none: it depends on the prompts alone, not on the row's place in the file."""
    return hashlib.sha256(f"{prompt}\n{negative}".encode()).hexdigest()[:16]


# --- checks --------------------------------------------------------------------------------------------------


def _row(raw: Raw, images: int) -> Row | Failure:
    """A row of columns, with the id "" where it names none; a failure where a column is wrong."""
    columns = raw.columns
    given = {name: value for name, value in columns.items() if value is not None}
    try:
        prompt, negative = _text(columns, "prompt"), _text(columns, "negative_prompt")
        if not prompt:
            raise HawkError("the prompt is empty" if "prompt" in given else "there is no prompt")
        others = {name: value for name, value in given.items() if name not in KNOWN}
        return Row(raw.line, _id(columns.get("id")), prompt, negative, _seed(columns.get("seed"), images), others)
    except HawkError as error:
        return Failure(raw.line, str(error), given)


def _text(columns: dict[str, Any], name: str) -> str:
    """A column of text without blanks around it, "" if it is missing; `HawkError` for any other value."""
    value = columns.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise HawkError(f"{name} must be text, not {shown(value)}")
    _check_unicode(name, value)
    return value.strip()


def _check_unicode(name: str, value: str) -> None:
    """Raise `HawkError` for text that cannot be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise HawkError(f"{name} is not UTF-8 text") from error


def _id(value: Any) -> str:
    """An id as text, "" for none; `HawkError` for what is neither text nor a whole number."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise HawkError(f"id must be text or a whole number, not {shown(value)}")
    text = str(value)
    _check_unicode("id", text)
    if len(text) > LONGEST_ID or not text.isprintable():
        raise HawkError(f"id must have at most {LONGEST_ID} printable characters, not {shown(value)}")
    return text


def _seed(value: Any, images: int) -> int | None:
    """The seed of a row's first image; `HawkError` where a seed of one of its images is out of range."""
    if value is None or value == "":
        return None
    number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 20 else value
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_SEED - (images - 1):
        raise HawkError(f"seed must be a whole number from 0 to 2^63 - {images}, not {shown(value)}")
    return number


# --- readers -------------------------------------------------------------------------------------------------


def _reader(path: Path) -> Callable[[Path], Iterator[Raw | Failure]]:
    """The reader of a kind of file; `HawkError` for an unknown kind, and for a file that is not there."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise HawkError(f"{path}: a file of prompts ends in {', '.join(READERS)}")
    if not path.is_file():
        raise HawkError(f"there is no file of prompts at {path}")
    return reader


def _read_text(path: Path) -> Iterator[Raw | Failure]:
    """A prompt a line; blank lines and lines that begin with # are left out."""
    for number, line in prompt_lines(read_prompt_text(path)):
        yield Raw(number, {"prompt": line})


def _read_jsonl(path: Path) -> Iterator[Raw | Failure]:
    """A JSON object a line; blank lines are left out. Lines end with a line feed alone: text may hold other ends."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not content.strip():
                continue
            try:
                found = json.loads(content.decode().rstrip("\r\n"), parse_constant=_no_number, parse_float=_finite)
                if not isinstance(found, dict):
                    raise ValueError("it is no JSON object")
            except (ValueError, RecursionError) as error:
                text = content.decode(errors="replace").strip()[:1000]
                yield Failure(number, f"the line is malformed ({one_line(error)})", {"text": text})
                continue
            yield Raw(number, found)


def _no_number(text: str) -> float:
    """Raise ValueError for NaN and Infinity, which Python reads and JSON lacks."""
    raise ValueError(f"JSON has no {text}: write null or a finite number")


def _finite(text: str) -> float:
    """A number of JSON; ValueError where no float is as large."""
    number = float(text)
    return number if math.isfinite(number) else _no_number(shown(text))


def _read_csv(path: Path) -> Iterator[Raw | Failure]:
    """A table with the columns' names in its first line; an empty cell is a missing value."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv.reader(file, strict=True)
        names = next(lines, [])
        _check_columns(path, names)
        while True:
            try:
                cells = next(lines, None)
            except csv.Error as error:
                yield Failure(lines.line_num, f"the line is malformed ({one_line(error)})")
                continue
            if cells is None:
                return
            given = {name: cell for name, cell in zip(names, cells, strict=False) if cell}
            if cells and len(cells) != len(names):
                reason = f"the line is malformed ({len(cells)} cells for {len(names)} columns)"
                yield Failure(lines.line_num, reason, {name: _plain(cell) for name, cell in given.items()})
            elif cells:
                yield Raw(lines.line_num, given)


def _read_parquet(path: Path) -> Iterator[Raw | Failure]:
    """The rows of a parquet file, in batches; values that JSON lacks, such as dates, become text."""
    parquet = parquet_package()
    from pyarrow import ArrowException

    try:
        file = parquet.ParquetFile(path)
        _check_columns(path, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for columns in batch.to_pylist():
                number += 1
                yield Raw(number, {name: _plain(value) for name, value in columns.items()})
    except (ArrowException, OSError) as error:
        raise HawkError(f"{path} is no parquet file that can be read ({one_line(error)})") from error


def parquet_package() -> Any:
    """The module that reads and writes parquet files; `HawkError` where it is not installed."""
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise HawkError(f"parquet files need the package pyarrow: {install('ray')}") from error
    return parquet


def _plain(value: Any) -> Any:
    """A value as JSON holds it: text in place of bytes, dates, NaN and what else JSON lacks."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return json.loads(json.dumps(value, default=str), parse_constant=str)


def _check_columns(path: Path, names: list[str]) -> None:
    """Raise `HawkError` unless a table has a column `prompt`, and no name twice."""
    if "prompt" not in names:
        raise HawkError(f"{path} has no column prompt: its columns are {', '.join(names)[:100] or 'missing'}")
    if len({*names}) < len(names):
        raise HawkError(f"{path} has two columns of one name: give each column a name of its own")


READERS: dict[str, Callable[[Path], Iterator[Raw | Failure]]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".txt": _read_text,
}
"""The kinds of files of prompts, by the ends of their names."""
