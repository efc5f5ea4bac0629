"""Files and folders written whole or not at all: a temporary one beside the place, then `os.replace`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hawk.errors import HawkError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of `path` when the block ends well, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # a failed write (no space) does not say where
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; it becomes `path` when the block ends well, else it is removed with all in it.

    Raises:
        HawkError: there is a file at `path`, or a folder that is not empty.
    """
    path = path.resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise HawkError(f"{path} is there already: name a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.is_dir():
            path.rmdir()
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; raises OSError (no space, no permission) and leaves nothing behind then."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, document: Any) -> None:
    """Write an indented JSON document atomically."""
    write_bytes(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically; raises OSError, or `HawkError` for what safetensors could not write."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            raise HawkError(f"cannot write {path}: {' '.join(str(error).split())}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises `HawkError` where it is missing or is none."""
    if not path.is_file():
        raise HawkError(f"{path} is missing")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HawkError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise HawkError(f"{path} must hold a JSON object")
    return document


def _umask() -> int:
    """The process's umask, which temporary files (private by default) are to follow once they are in place."""
    current = os.umask(0)
    os.umask(current)
    return current
