"""Standard output of a command, where the system may refuse to write: a full disk, or a pipe that nobody reads."""

from __future__ import annotations

import os
from typing import Any, TextIO


class Output:
    """A text stream whose errors name it as standard output, as errors of files name the file."""

    NAME = "standard output"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @classmethod
    def around(cls, stream: TextIO | None) -> Any:
        """The stream with its errors named; None, which Python has for a closed standard output, writes nowhere."""
        return cls(nowhere() if stream is None else stream)

    @staticmethod
    def flushed(stream: TextIO | None) -> bool:
        """Whether a stream could write all that it was given; Python tries once more when it ends."""
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            return False
        return True

    def write(self, text: str) -> int:
        """Write text; an OSError names standard output."""
        try:
            return self._stream.write(text)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.NAME) from error

    def flush(self) -> None:
        """Write what waits to be written; an OSError names standard output."""
        try:
            self._stream.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.NAME) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def nowhere() -> TextIO:
    """A stream that drops what is written to it."""
    return open(os.devnull, "w")
