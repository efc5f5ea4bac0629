"""The `hawk` command, also as `python -m hawk`. Ctrl-C ends it with exit code 130 from its first moment on."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from typing import Any

from hawk.errors import INTERRUPTED


def main() -> None:
    """Run the command of `sys.argv`."""
    # The first function to be registered runs last. After it Python unloads its modules, where Ctrl-C would kill it.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGINT, _leave)  # an import that is cut short may raise any error
    from hawk.cli.app import app
    from hawk.cli.interrupts import Interrupts

    signal.signal(signal.SIGINT, Interrupts())
    try:
        app()
    except KeyboardInterrupt:  # before the command line has begun to read its arguments
        _leave()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Python itself would end by the signal if Ctrl-C fell into code made from text
            atexit._run_exitfuncs()
            for thread in set(threading.enumerate()) - {threading.current_thread()}:
                thread.join(0.1)  # a thread of a pool that ends frees semaphores; multiprocessing reports what is left
            sys.stdout.flush()
            os._exit(INTERRUPTED)
        raise


def _leave(*_: Any) -> None:
    os.write(2, b"hawk: interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
