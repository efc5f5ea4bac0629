"""Reading and writing of files.

A file or folder is written either completely or not at all: under a temporary name in the same folder first, then
moved to its own name with `os.replace`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hawk.errors import HawkError, one_line

if TYPE_CHECKING:
    from torch import Tensor

S = TypeVar("S")

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git left in place of a large one, where Git LFS is not installed."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` if the block succeeds, and is removed if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _published(path, os.replace) as temporary:
        yield temporary


@contextmanager
def _published(path: Path, publish: Callable[[Path, Path], object]) -> Iterator[Path]:
    """Yield a temporary file in the folder of `path`; after the block, `publish(temporary, path)` gives it its name.

    The file has the usual permissions then. The temporary name is removed in any case. An OSError names `path`.
    """
    handle, name = tempfile.mkstemp(prefix=_hidden(path), suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        publish(temporary, path)
    except OSError as error:
        if error.filename is None:  # a failed write (disk full) does not name the file
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; it becomes `path` if the block succeeds, and is removed if it fails.

    Raises:
        HawkError: `path` is a file or a folder that is not empty, or the system allows no folder there.
        OSError: the disk is full, or else the block raised it.
    """
    given = path
    try:
        path = path.resolve()
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise HawkError(f"{path} is there already: name a new folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_hidden(path), suffix=".tmp", dir=path.parent))
    except (OSError, RuntimeError) as error:  # before Python 3.13, a loop of links is a RuntimeError
        reason = getattr(error, "strerror", None) or one_line(error)
        raise HawkError(f"the model cannot be saved to {given} ({reason}): name another folder") from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.is_dir():
            path.rmdir()
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. Raises OSError (disk full, no permission) and leaves nothing behind in that case.

    A device or a pipe at `path` is written to, not replaced.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_new(path: Path, content: bytes) -> bool:
    """Write a file atomically if there is none at `path`; returns whether it was written.

    Of several processes that write to one path, one succeeds. Raises OSError as `write_bytes` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _published(path, _claim) as temporary:
            temporary.write_bytes(content)
    except FileExistsError:
        return False
    return True


def _claim(temporary: Path, path: Path) -> None:
    """Give a file its name; FileExistsError if another file has it."""
    try:
        os.link(temporary, path)  # unlike a move, a link never replaces a file
    except FileExistsError:
        raise
    except OSError:  # a file system without links: reserve the name with an empty file
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink()
            raise


def write_json(path: Path, document: Any) -> None:
    """Write an indented JSON document atomically."""
    write_bytes(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically. Raises OSError, or `HawkError` where safetensors refuses the tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            raise HawkError(f"cannot write {path}: {one_line(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `HawkError` if the file is missing or holds anything else."""
    if not path.is_file():
        raise HawkError(f"{path} is missing")
    refuse_pointer(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise HawkError(f"{path} is not valid JSON ({one_line(error)})") from error
    if not isinstance(document, dict):
        raise HawkError(f"{path} must hold a JSON object")
    return document


def read_cache(path: Path) -> dict[str, Any]:
    """The JSON object in a file that can be made anew; an empty one where the file is missing or cannot be read."""
    try:
        return read_json(path)
    except (OSError, HawkError):
        return {}


def claim_folder(folder: Path, job: dict[str, Any], holds: str, beside: str = "") -> None:
    """Make `folder` the folder of a job, or check that it is; `holds` says what such a folder holds.

    A new folder may hold a file named `beside` already. `job` identifies the job by JSON values, which lie in
    `job.json`. Raises `HawkError` for the folder of another job, with the first value that differs, and for a folder of
    other files.
    """
    path = folder / "job.json"
    if path.exists():
        there = read_json(path)
        for name, value in job.items():
            if there.get(name) != value:
                raise HawkError(
                    f"{folder} holds {holds} of another job ({name}: {there.get(name)} there, {value} asked for): name "
                    "another --out"
                )
    elif folder.is_dir() and any(
        entry for entry in folder.iterdir() if entry.name != beside and not entry.name.startswith(_hidden(path))
    ):
        raise HawkError(f"{folder} holds other files: name a new folder for --out")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, job)


def read_fields(kind: type[S], path: Path) -> S:
    """The JSON file at `path` as an instance of a schema of pydantic, or of a dataclass.

    Raises `HawkError` with the first field that is wrong, missing or unknown.
    """
    return checked_fields(kind, read_json(path), path)


def checked_fields(kind: type[S], document: dict[str, Any], path: Path) -> S:
    """A JSON object as an instance of a schema, as `read_fields`; `path` is where it was read, for the message."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        raise HawkError(f"{path}: {field}: {first['msg'].removeprefix('Value error, ')}") from error


def refuse_pointer(path: Path) -> None:
    """Raise `HawkError` for a Git LFS pointer, a few lines of text in place of the file itself."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise HawkError(f"{path} is a Git LFS pointer: run git lfs pull in its folder")


def refuse_pointers(folder: Path) -> None:
    """Raise `HawkError` for a Git LFS pointer among the files of a folder, if there is such a folder."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file():
            refuse_pointer(path)


def read_prompts(path: Path) -> list[str]:
    """The prompts in a UTF-8 text file, one a line; the file may begin with a byte-order mark.

    Blank lines and lines that begin with # are left out.

    Raises:
        HawkError: the file cannot be read, is not UTF-8 text, or holds no prompt.
    """
    prompts = [line for _, line in prompt_lines(read_prompt_text(path))]
    if not prompts:
        raise HawkError(f"{path} holds no prompt: write one a line")
    return prompts


def read_prompt_text(path: Path) -> str:
    """The text of a file of prompts, without its byte-order mark; `HawkError` if it cannot be read as UTF-8."""
    expected = "give a UTF-8 file with one prompt a line"
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise HawkError(f"{path} is not UTF-8 text: {expected}") from error
    except OSError as error:
        raise HawkError(f"cannot read prompts from {path}: {expected}") from error


def prompt_lines(text: str) -> list[tuple[int, str]]:
    """The lines that hold a prompt, each with its number; blank lines and lines that begin with # hold none."""
    lines = enumerate((line.strip() for line in text.splitlines()), start=1)
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _hidden(path: Path) -> str:
    """How the temporary name of a file or folder begins; not longer than a name may be."""
    return f".{path.name[:40]}."


def _umask() -> int:
    """The process's umask. Temporary files are created private; the finished file gets the usual permissions."""
    current = os.umask(0)
    os.umask(current)
    return current
