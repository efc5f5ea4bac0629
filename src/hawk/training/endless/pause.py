"""Training waits between two steps while a file exists."""

from __future__ import annotations

import time
from pathlib import Path

from hawk.training.stopping import stop_asked


def wait_while_exists(path: Path | None, seconds: float = 1.0) -> None:
    """Return when there is no file at `path`, or when SIGTERM came; looks again every few `seconds`."""
    while path is not None and path.exists() and not stop_asked():
        time.sleep(seconds)
