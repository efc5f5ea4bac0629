"""The `hawk` command, also as `python -m hawk`. Ctrl-C ends it with exit code 130 from its first moment on."""

from __future__ import annotations

import os
import signal
from typing import Any

INTERRUPTED = 130


def main() -> None:
    """Run the command of `sys.argv`."""
    signal.signal(signal.SIGINT, _leave)  # an import that is cut short may raise any error
    from hawk.cli.app import app
    from hawk.cli.interrupts import Interrupts

    signal.signal(signal.SIGINT, Interrupts())
    app()


def _leave(*_: Any) -> None:
    os.write(2, b"hawk: interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
