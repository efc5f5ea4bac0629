"""The exception that Hawk raises for bad input, how it quotes other libraries, and the exit code of Ctrl-C."""

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C stopped."""


class HawkError(ValueError):
    """Bad input that the user can correct: the message is one line that says what is wrong and what is expected."""


def one_line(error: Exception) -> str:
    """The message of another library's exception in one line of at most 200 characters, to be part of a `HawkError`."""
    return " ".join(str(error).split())[:200]


def install(extra: str) -> str:
    """What an error advises where a package of one of Hawk's extras is missing."""
    return f"run pip install '.[{extra}]' in Hawk's folder"
