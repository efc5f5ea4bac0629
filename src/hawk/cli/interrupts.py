"""Ctrl-C on the command line: the first press stops the command, a second one does not disturb how it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

from hawk.errors import INTERRUPTED

AT_ONCE = 3
"""So many presses end the process without any cleaning up."""


class Interrupts:
    """A handler of SIGINT: it raises KeyboardInterrupt once, and ends the process at the third press."""

    def __init__(self) -> None:
        self.presses = 0

    def __call__(self, *_: Any) -> None:
        self.presses += 1
        if self.presses == 1:
            raise KeyboardInterrupt
        if self.presses >= AT_ONCE:
            os._exit(INTERRUPTED)


def was_interrupted() -> bool:
    """Whether Ctrl-C was pressed since `Interrupts` took over; other errors may follow from it."""
    handler = signal.getsignal(signal.SIGINT)
    return isinstance(handler, Interrupts) and handler.presses > 0


def end_children() -> None:
    """End the processes that this one started."""
    for child in multiprocessing.active_children():
        child.terminate()
