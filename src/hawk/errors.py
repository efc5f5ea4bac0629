"""The exceptions of bad input and of SIGTERM, how errors of other code are quoted or passed on, and exit codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C stopped."""


TERMINATED = 143
"""The exit code of a training command that SIGTERM stopped."""


class TerminatedError(BaseException):
    """SIGTERM came: what is finished is saved. No code that handles errors should take it for one of its own."""


class HawkError(ValueError):
    """Bad input that the user can correct: the message is one line that says what is wrong and what is expected."""


def one_line(error: Exception) -> str:
    """The message of another library's exception in one line of at most 200 characters, to be part of a `HawkError`."""
    return " ".join(str(error).split())[:200]


def os_line(error: OSError) -> str:
    """What the operating system refused, and the file that it refused it for."""
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"


class CallersFunction:
    """A function of the caller's, such as a callback, and the error that it raised last.

    That error passes through Hawk as it is: Hawk's messages are for errors of Hawk's own work.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.error: BaseException | None = None

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self.function(*arguments)
        except BaseException as error:
            self.error = error
            raise


def install(extra: str) -> str:
    """What an error advises where a package of one of Hawk's extras is missing."""
    return f"run pip install '.[{extra}]' in Hawk's folder"
