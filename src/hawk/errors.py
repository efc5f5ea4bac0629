"""The one exception type that Hawk raises for input a person can mend."""


class HawkError(ValueError):
    """Bad input: the message is one line that says what is wrong and what would be right."""


def one_line(error: Exception) -> str:
    """What another library's exception says, as part of a `HawkError`'s line."""
    return " ".join(str(error).split())[:200]
