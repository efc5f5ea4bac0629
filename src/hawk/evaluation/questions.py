"""What a prompt about one of the bundled model's things asks for: the thing, its background, its place and its size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hawk.training.sprites.captions import PLAIN
from hawk.training.sprites.composition import BACKGROUNDS, COLOUR_SYNONYMS, FAR, NEAR, WHITE

PALETTE = {"white": WHITE, **BACKGROUNDS}
"""The background colours that the model was taught, by name."""
SIZES = {"small": "small", "tiny": "small", "little": "small", "large": "large", "big": "large", "huge": "large"}

_COLOUR_OF = {word: name for name in PALETTE for word in (name, *COLOUR_SYNONYMS.get(name, ()))}


def _either(words: Mapping[str, object] | tuple[str, ...]) -> str:
    """A pattern for one of the words, the longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_NAMED = rf"(?:an?\s+)?(?:(?:{_either(PLAIN)})\s+)?(?P<colour>{_either(_COLOUR_OF)})"
_BACKGROUNDS = (
    re.compile(rf"(?:,|\bon|\bwith)\s+{_NAMED}\s+background\b"),
    re.compile(rf"\bon\s+{_NAMED}(?=\s*(?:,|$))"),
)
_PLACE = re.compile(
    r"\b(?:in|on|at|to) the (?:(?P<along>top|upper|bottom|lower)\b ?)?(?:(?P<across>left|right)\b)?"
    r"(?: ?(?:corner|side|half)\b)?"
)
_ALONG = {"top": NEAR, "upper": NEAR, "bottom": FAR, "lower": FAR, None: 0.5}
_ACROSS = {"left": NEAR, "right": FAR, None: 0.5}
_SIZE = re.compile(rf"\b(?:{_either(SIZES)})\b")


@dataclass(frozen=True)
class Question:
    """What a prompt names; what it leaves open is not asked for.

    Attributes:
        things: the labels that the prompt's thing may have; empty where it names no taught thing, or several.
        background: a name in `PALETTE`, or "".
        place: where the middle of the thing belongs, across and down in sides of the picture, or None.
        size: "small", "large" or "".
    """

    things: frozenset[str] = frozenset()
    background: str = ""
    place: tuple[float, float] | None = None
    size: str = ""


@dataclass(frozen=True)
class Reader:
    """Reads prompts; `names` maps every name of a taught thing to the labels of the things that it may mean."""

    names: Mapping[str, frozenset[str]]

    def question(self, prompt: str) -> Question:
        """What the prompt asks for. A prompt about several things asks for its background only."""
        text = " ".join(prompt.lower().split())
        background = next((found for pattern in _BACKGROUNDS if (found := pattern.search(text))), None)
        colour = "" if background is None else _COLOUR_OF[background["colour"]]
        if background is not None:
            text = text[: background.start()] + "," + text[background.end() :]
        meant = [self.names[each] for each in re.findall(rf"\b(?:{_either(self.names)})\b", text)] if self.names else []
        things = frozenset.intersection(*meant) if meant else frozenset()
        if not things:
            return Question(background=colour)
        size = _SIZE.search(text)
        return Question(things, colour, _place(text), "" if size is None else SIZES[size[0]])


def _place(text: str) -> tuple[float, float] | None:
    for found in _PLACE.finditer(text):
        if found["along"] or found["across"]:
            return _ACROSS[found["across"]], _ALONG[found["along"]]
    return None
