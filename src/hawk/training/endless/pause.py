"""Training waits between two steps while a file exists."""

from __future__ import annotations

import time
from pathlib import Path


def wait_while_exists(path: Path | None, seconds: float = 1.0) -> None:
    """Return when there is no file at `path`; looks again every few `seconds`."""
    while path is not None and path.exists():
        time.sleep(seconds)
