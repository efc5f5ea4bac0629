"""What the worker tells about its work; metrics are one observer of it."""

from __future__ import annotations

from hawk.decoding.stats import Stats


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
