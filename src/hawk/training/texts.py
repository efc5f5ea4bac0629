"""Texts that the target draws for while a drafter is trained: a file of prompts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from hawk.files import read_prompts


@runtime_checkable
class Texts(Protocol):
    """A text for every image, by number."""

    @property
    def fingerprint(self) -> str:
        """The same for the same texts."""
        ...

    def drawn(self, start: int, count: int) -> list[str]:
        """Of the images that a drafter learns from."""
        ...

    def unseen(self, start: int, count: int, images: int) -> list[str]:
        """Of images numbered after those `images`, which the pool is measured on."""
        ...


@dataclass(frozen=True)
class PromptFile:
    """One prompt a line, begun again at the file's end. The pool is measured on the last ones, which are held out."""

    lines: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> PromptFile:
        """The prompts in a text file; see `hawk.files.read_prompts` for its format and errors."""
        return cls(tuple(read_prompts(path)))

    @property
    def fingerprint(self) -> str:
        """A short sha256 of all prompts."""
        return texts_sha(list(self.lines))

    def drawn(self, start: int, count: int) -> list[str]:
        """From the file's beginning."""
        return [self.lines[i % len(self.lines)] for i in range(start, start + count)]

    def unseen(self, start: int, count: int, images: int) -> list[str]:
        """From the file's end, backwards."""
        return [self.lines[(images - 1 - i) % len(self.lines)] for i in range(start, start + count)]


def texts_sha(texts: list[str]) -> str:
    """A short sha256 of texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
