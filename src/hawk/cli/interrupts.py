"""Ctrl-C on the command line: the first press stops the command, a second one does not disturb how it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from types import FrameType
from typing import Any

from hawk.errors import INTERRUPTED

AT_ONCE = 3
"""So many presses end the process without any cleaning up."""
PATIENCE = 0.5
"""Seconds that an import may take to finish after Ctrl-C."""
AGAIN = 0.02
"""Seconds between two checks of whether the import has finished."""


class Interrupts:
    """A handler of SIGINT: it raises KeyboardInterrupt once, and ends the process at the third press.

    During an import the exception is raised only once the import has finished: torch, when its import is cut short,
    may end the process by a signal. An import that takes longer than `PATIENCE` ends with the process.
    """

    def __init__(self) -> None:
        self.presses = 0
        self.pressed_at = 0.0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.presses += 1
        if self.presses == 1:
            self.pressed_at = time.monotonic()
            self.stop(signum, frame)
        if self.presses >= AT_ONCE:
            os._exit(INTERRUPTED)

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, at once or as soon as no import is under way."""
        if not (hasattr(signal, "setitimer") and is_importing(frame)):
            raise KeyboardInterrupt
        if time.monotonic() - self.pressed_at > PATIENCE:
            leave()
        signal.signal(signal.SIGALRM, self.stop)
        signal.setitimer(signal.ITIMER_REAL, AGAIN)


def is_importing(frame: FrameType | None) -> bool:
    """Whether an import is under way in a frame or in those that called it."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def leave(*_: Any) -> None:
    """End the process and its children now, with one line."""
    end_children()
    os.write(2, b"hawk: interrupted\n")
    os._exit(INTERRUPTED)


def was_interrupted() -> bool:
    """Whether Ctrl-C was pressed since `Interrupts` took over; other errors may follow from it."""
    handler = signal.getsignal(signal.SIGINT)
    return isinstance(handler, Interrupts) and handler.presses > 0


def end_children() -> None:
    """End the processes that this one started, also those that leave SIGTERM to this one."""
    for child in multiprocessing.active_children():
        child.kill()
