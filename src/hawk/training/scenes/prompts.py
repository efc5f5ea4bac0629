"""The prompts of `hawk train drafter` where none are given: captions of the scenes that the model was taught."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hawk.training.scenes.captions import vocabulary
from hawk.training.scenes.data import ScenePictures
from hawk.training.texts import texts_sha

FINGERPRINT_CAPTIONS = 64
"""The number of captions whose hash identifies them all."""


@dataclass(frozen=True)
class SceneCaptions:
    """Captions of scenes: every image number, however large, has a caption of its own."""

    @property
    def fingerprint(self) -> str:
        """A short SHA-256 of the first captions."""
        return texts_sha(self.drawn(0, FINGERPRINT_CAPTIONS))

    def drawn(self, start: int, count: int) -> list[str]:
        """The captions of the scenes `start`, `start + 1`, ...; a number always has the same caption."""
        return ScenePictures().captions("train", range(start, start + count))

    def unseen(self, start: int, count: int, images: int) -> list[str]:
        """The captions of the scenes from `start` on, which no drafter has learned from."""
        return self.drawn(start, count)


def knows_scenes(folder: Path) -> bool:
    """Whether the model in a folder was taught scenes: whether its words are those of their captions."""
    try:
        words = (folder / "words.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return False
    return set(vocabulary()) <= set(words)
