"""A lock on a folder, so that two processes do not write to it at the same time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hawk.errors import HawkError
from hawk.pictures.png import check_writable

LOCK = ".lock"
"""The lock's file in the folder. It holds the process id of its owner, and stays when the owner has ended."""


@contextmanager
def sole_owner(out: Path) -> Iterator[None]:
    """In the body, no other process owns the folder `out`, which is made if it is missing.

    The operating system holds the lock on the file and drops it when the owner ends, however it ends: the file that a
    killed process leaves behind is taken over. On a file system without locks, nothing is locked.

    Raises:
        HawkError: another process owns the folder, or the folder cannot be written to.
    """
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    # Not O_TRUNC: the process id of another owner must stay readable.
    handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _locked(handle):
            owner = os.pread(handle, 20, 0).decode("ascii", "replace").strip() if hasattr(os, "pread") else ""
            raise HawkError(
                f"{out} is in use by {f'process {owner}' if owner else 'another process'}: wait until that process has "
                "ended, or name another --out"
            )
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


if sys.platform == "win32":

    def _locked(handle: int) -> bool:
        """Whether this process could lock the file."""
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(handle, 0, os.SEEK_SET)
        return True

else:

    def _locked(handle: int) -> bool:
        """Whether this process could lock the file, or the file system has no locks."""
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True
