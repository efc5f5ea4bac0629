"""The prompts for which the target draws grids while a drafter is trained: the interface, and a file of prompts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from hawk.files import read_prompts


@runtime_checkable
class Texts(Protocol):
    """A text for every image number."""

    @property
    def fingerprint(self) -> str:
        """A short hash that changes with the texts."""
        ...

    def drawn(self, start: int, count: int) -> list[str]:
        """Texts of the images `start`, `start + 1`, ..., which the target draws and a drafter learns from."""
        ...

    def unseen(self, start: int, count: int, images: int) -> list[str]:
        """Texts of the images numbered from `start` on, `start >= images`, on which the pool is measured."""
        ...


@dataclass(frozen=True)
class PromptFile:
    """A file with one prompt a line, repeated as often as there are images.

    The pool is measured on the file's last prompts: their images are held out where every prompt has one image.
    """

    lines: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> PromptFile:
        """The prompts in a text file; see `hawk.files.read_prompts` for its format and errors."""
        return cls(tuple(read_prompts(path)))

    @property
    def fingerprint(self) -> str:
        """A short SHA-256 of all prompts."""
        return texts_sha(list(self.lines))

    def drawn(self, start: int, count: int) -> list[str]:
        """Prompts from the beginning of the file."""
        return [self.lines[i % len(self.lines)] for i in range(start, start + count)]

    def unseen(self, start: int, count: int, images: int) -> list[str]:
        """Prompts from the end of the file, backwards."""
        return [self.lines[(images - 1 - i) % len(self.lines)] for i in range(start, start + count)]


def texts_sha(texts: list[str]) -> str:
    """A short SHA-256 of texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
