"""What a prompt about a drawn scene asks for: the thing, its colour, the colour behind it, its place and its size."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hawk.training.scenes.captions import MEANINGS, PATTERN_WORDS, PLACES, SIZES
from hawk.training.scenes.colours import COLOURS, SYNONYMS
from hawk.training.scenes.kinds import KINDS


def _either(words: Iterable[str]) -> str:
    """A pattern for one of the words, the longest first."""
    return "|".join(re.escape(word) for word in sorted({*words} - {""}, key=len, reverse=True))


_COLOUR_OF = {word: name for name in COLOURS for word in (name, *SYNONYMS.get(name, ()))}
_KIND_OF = {word: kind.name for kind in KINDS.values() for word in kind.names}
_PLACE_OF = {phrase: place for place, phrases in PLACES.items() for phrase in phrases}
_SIZE_OF = {word: size for size, words in SIZES.items() for word in words if word}

_COLOUR = re.compile(rf"\b(?:{_either(_COLOUR_OF)})\b")
_KIND = re.compile(rf"\b(?:{_either(_KIND_OF)})\b")
_PLACE = re.compile(rf"\b(?:{_either(_PLACE_OF)})\b")
_SIZE = re.compile(rf"\b(?:{_either(_SIZE_OF)})\b")
_PLAIN = re.compile(
    "|".join(
        re.escape(form).replace(r"on\ a\ ", r"on\ an?\ ").replace(re.escape("{c}"), f"(?:{_either(_COLOUR_OF)})")
        for form in sorted({*PATTERN_WORDS["plain"]}, key=len, reverse=True)
    )
    + r"(?=\s*(?:,|$))"
)
_SCENERIES = ("striped", "dotted", "checkered", "gradient", "meadow", "night")
_SCENERY = re.compile(rf"\b(?:{_either(word for name in _SCENERIES for word in (name, *MEANINGS[name]))})\b")


@dataclass(frozen=True)
class Question:
    """What a prompt names; what it leaves open is not asked for.

    Attributes:
        kind: the prompt's one thing, a name in `KINDS`, or "".
        colour: its colour, a name in `COLOURS`, or "".
        background: the colour of a plain background, a name in `COLOURS`, or "".
        place: where the thing belongs, across ("left", "centre", "right") and along ("top", "centre", "bottom").
        size: "small", "large" or "".
    """

    kind: str = ""
    colour: str = ""
    background: str = ""
    place: tuple[str, str] | None = None
    size: str = ""


def question(prompt: str) -> Question:
    """What the prompt asks for, as far as it can be read off a picture.

    On stripes, dots, at night and the like no outline can be read, so nothing is asked; of several things neither is
    each one's own, so only the background is.
    """
    text = " ".join(prompt.lower().split())
    behind = _PLAIN.search(text)
    background = ""
    if behind is not None:
        background = _COLOUR_OF[_COLOUR.findall(behind[0])[-1]]
        text = text[: behind.start()] + "," + text[behind.end() :]
    if _SCENERY.search(text):
        return Question()
    kinds = [_KIND_OF[found] for found in _KIND.findall(text)]
    if len(kinds) != 1:
        return Question(background=background)
    place = _PLACE.search(text)
    text = text if place is None else text.replace(place[0], " ")
    colours, sizes = ([found[0] for found in pattern.finditer(text)] for pattern in (_COLOUR, _SIZE))
    size = _SIZE_OF[sizes[0]] if sizes else ""
    return Question(
        kinds[0],
        _COLOUR_OF[colours[0]] if len(colours) == 1 else "",
        background,
        None if place is None else _PLACE_OF[place[0]],
        size,
    )
