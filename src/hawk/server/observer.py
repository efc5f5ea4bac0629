"""What the worker tells about its work; metrics are one observer of it, a notebook that travels is another."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from hawk.decoding.stats import Stats

MOST_NOTES = 10_000
"""The most notes that a notebook keeps; the oldest are dropped."""


class Observer:
    """Takes note of the worker's work and drops it. All methods are called in the worker's thread."""

    def counted(self, waiting: int, live: int) -> None:
        """So many images wait, and so many are being drawn."""

    def stepped(self, live: int, tokens: int, seconds: float) -> None:
        """A step, or a whole group, of `live` images committed so many tokens."""

    def drawn(self, method: str, stats: Stats, images: int, waited: float, seconds: float) -> None:
        """An image is finished; its counts are shared by `images` images. It waited, and was drawn, so many seconds."""

    def ended(self, kind: str) -> None:
        """A job ended: "finished" or the kind of its failure."""

    def recovered(self, images: int) -> None:
        """A step failed that drew so many images."""

    def replicated(self, replicas: int) -> None:
        """So many replicas draw."""


@dataclass(frozen=True)
class Note:
    """What an observer was told: the name of its method, and the arguments."""

    method: str
    values: tuple[Any, ...]

    def tell(self, observer: Observer) -> None:
        """Tell another observer the same."""
        getattr(observer, self.method)(*self.values)


class Notebook(Observer):
    """Keeps what the worker of a replica tells, to be told on in another process.

    The end of a job is left out: the process that handed the job over sees it.
    """

    def __init__(self) -> None:
        self._notes: deque[Note] = deque(maxlen=MOST_NOTES)

    def counted(self, waiting: int, live: int) -> None:
        """So many images wait, and so many are being drawn."""
        self._notes.append(Note("counted", (waiting, live)))

    def stepped(self, live: int, tokens: int, seconds: float) -> None:
        """A step, or a whole group, of `live` images committed so many tokens."""
        self._notes.append(Note("stepped", (live, tokens, seconds)))

    def drawn(self, method: str, stats: Stats, images: int, waited: float, seconds: float) -> None:
        """An image is finished."""
        self._notes.append(Note("drawn", (method, stats, images, waited, seconds)))

    def recovered(self, images: int) -> None:
        """A step failed."""
        self._notes.append(Note("recovered", (images,)))

    def take(self) -> tuple[Note, ...]:
        """The notes since the last call; any thread may take them."""
        return tuple(self._notes.popleft() for _ in range(len(self._notes)))
