"""What a stranger would type for a scene: plain words in many orders, each with a visible meaning.

Attributes are left out at random, so that a model learns to choose them itself. A usual colour of a thing is left out
more often than another colour: "a tree" mostly is green.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from hawk.training.scenes.backgrounds import DIRECTIONS, Background
from hawk.training.scenes.colours import COLOURS, SYNONYMS
from hawk.training.scenes.kinds import KINDS
from hawk.training.scenes.scene import Figure, Scene
from hawk.training.scenes.worn import HATS

SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "tiny", "little"),
    "medium": ("",),
    "large": ("large", "big", "big", "huge"),
}
MOODS: dict[str, tuple[str, ...]] = {
    "happy": ("happy", "happy", "smiling"),
    "sad": ("sad", "sad", "unhappy"),
    "surprised": ("surprised", "shocked"),
    "sleepy": ("sleepy", "sleeping"),
}
PLACES: dict[tuple[str, str], tuple[str, ...]] = {
    ("left", "top"): ("in the top left corner", "top left", "at the upper left"),
    ("centre", "top"): ("at the top", "at the top"),
    ("right", "top"): ("in the top right corner", "top right", "at the upper right"),
    ("left", "centre"): ("on the left", "on the left side", "at the left"),
    ("centre", "centre"): ("in the middle", "in the center"),
    ("right", "centre"): ("on the right", "on the right side", "at the right"),
    ("left", "bottom"): ("in the bottom left corner", "bottom left", "at the lower left"),
    ("centre", "bottom"): ("at the bottom", "at the bottom"),
    ("right", "bottom"): ("in the bottom right corner", "bottom right", "at the lower right"),
}
PATTERN_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("on a {c} background", "on a {c} background", "on {c}", "on plain {c}", "in front of a {c} wall"),
    "gradient": ("on a {c} gradient", "on a {c} gradient background", "on a shaded {c} background"),
    "stripes": (
        "on a {c} striped background",
        "on {c} stripes",
        "with {c} stripes behind",
        "on a striped {c} background",
    ),
    "dots": ("on a {c} dotted background", "on {c} dots", "on a {c} background with dots", "on {c} polka dots"),
    "checks": ("on a {c} checkered background", "on {c} checks", "on a checkered {c} background"),
    "night": ("at night", "in the night sky", "under the stars", "in a starry night", "in space"),
    "meadow": ("on a meadow", "in a meadow", "on the grass", "on a green hill", "outdoors"),
}
UNCOLOURED: dict[str, tuple[str, ...]] = {
    "plain": ("on a plain background",),
    "gradient": ("on a gradient",),
    "stripes": ("on stripes", "on a striped background"),
    "dots": ("on polka dots", "on a dotted background"),
    "checks": ("on checks", "on a checkered background"),
}
BESIDE = ("{a} and {b}", "{a} and {b}", "{a} with {b}", "{a} next to {b}", "{a} beside {b}", "{a}, {b}")
SIDES = (
    "{a} left of {b}",
    "{b} right of {a}",
    "{a} on the left and {b} on the right",
    "{a} on the left, {b} on the right",
)
STACKED = (
    "{a} above {b}",
    "{a} over {b}",
    "{a} on top of {b}",
    "{a} at the top and {b} at the bottom",
    "{b} below {a}",
    "{b} under {a}",
)
"""How a caption joins two figures: `a` is the left or the upper one."""
WEARING = ("with a {hat}", "wearing a {hat}", "with a {hat} on")
SMALL_WORDS = ("a", "an", "the", "tilted")
MEANINGS: dict[str, tuple[str, ...]] = {
    "middle": ("center", "centre", "centered"),
    "top": ("upper",),
    "bottom": ("lower",),
    "striped": ("stripes",),
    "dotted": ("dots", "polka"),
    "checkered": ("checks", "checked"),
    "gradient": ("shaded",),
    "meadow": ("grass", "hill", "outdoors", "field"),
    "night": ("sky", "stars", "starry", "space"),
    "above": ("over",),
    "below": ("under", "underneath"),
    "next": ("beside",),
    "with": ("wearing",),
}
"""Words that share one meaning here, beside the names of colours, kinds, sizes and moods."""
_WORD = re.compile(r"[a-z0-9]+")


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of the scene."""
    figures = _figures(scene, rng)
    behind = _background(scene.background, rng)
    if not behind:
        return figures
    if rng.random() < 0.12:
        return f"{behind}, {figures}" if rng.random() < 0.5 else f"{behind} {figures}"
    return f"{figures}, {behind}" if rng.random() < 0.1 else f"{figures} {behind}"


def vocabulary() -> dict[str, str]:
    """Every word that captions use, and the word whose meaning it shares (itself, or the first of its synonyms)."""
    groups = [(name, *SYNONYMS.get(name, ())) for name in COLOURS]
    groups += [kind.names for kind in KINDS.values()]
    groups += [*SIZES.values(), *MOODS.values(), *((word, *others) for word, others in MEANINGS.items())]
    shared = {word: own for names in groups for own, word in _aligned(names)}
    forms = (*PLACES.values(), *PATTERN_WORDS.values(), *UNCOLOURED.values(), BESIDE, SIDES, STACKED, WEARING)
    texts = [text.format(a="", b="", c="", hat="") for group in forms for text in group]
    texts += [*DIRECTIONS, *HATS, *SMALL_WORDS]
    for word in (word for text in texts for word in _WORD.findall(text)):
        shared.setdefault(word, word)
    return dict(sorted(shared.items()))


def unknown_words(prompt: str) -> list[str]:
    """Words of a prompt that no caption uses, in their order, each once."""
    known = vocabulary()
    return list(dict.fromkeys(word for word in _WORD.findall(prompt.lower()) if word not in known))


def _figures(scene: Scene, rng: np.random.Generator) -> str:
    phrases = [_figure(figure, rng) for figure in scene.figures]
    if scene.layout == "one":
        figure = scene.figures[0]
        centred = (figure.across, figure.along) == ("centre", "centre")
        if rng.random() < (0.1 if centred else 0.85):
            place = _one(PLACES[figure.across, figure.along], rng)
            return f"{place} {phrases[0]}" if rng.random() < 0.1 else f"{phrases[0]} {place}"
        return phrases[0]
    forms = STACKED if scene.layout == "column" else SIDES if rng.random() < 0.4 else BESIDE
    return _one(forms, rng).format(a=phrases[0], b=phrases[1])


def _figure(figure: Figure, rng: np.random.Generator) -> str:
    """One figure: an article, adjectives in some order, its name, and what it wears."""
    kind = KINDS[figure.kind]
    colour = "" if rng.random() < (0.4 if figure.colour in kind.usual else 0.07) else _colour(figure.colour, rng)
    size = "" if rng.random() < 0.15 else _one(SIZES[figure.size], rng)
    mood = _one(MOODS[figure.face], rng) if figure.face and rng.random() < 0.85 else ""
    lean = "tilted" if figure.tilted and rng.random() < 0.85 else ""
    adjectives = [size, mood, lean, colour]
    if rng.random() < 0.2:
        rng.shuffle(adjectives)
    name = kind.name if rng.random() < 0.75 else _one(kind.names, rng)
    words = " ".join(word for word in (*adjectives, name) if word)
    article = "" if rng.random() < 0.25 or name.endswith("ies") else "the " if rng.random() < 0.05 else _article(words)
    hat = f" {_one(WEARING, rng).format(hat=figure.hat)}" if figure.hat and rng.random() < 0.9 else ""
    return f"{article}{words}{hat}"


def _background(background: Background, rng: np.random.Generator) -> str:
    if rng.random() < 0.08:
        return ""
    if background.colour is None:
        return _one(PATTERN_WORDS[background.pattern], rng)
    if rng.random() < 0.06:
        return _one(UNCOLOURED[background.pattern], rng)
    text = _one(PATTERN_WORDS[background.pattern], rng).format(c=_colour(background.colour, rng))
    text = text.replace("a orange", "an orange")
    directed = background.pattern == "stripes" and "stripes" in text and rng.random() < 0.3
    return text.replace("stripes", f"{background.direction} stripes") if directed else text


def _colour(name: str, rng: np.random.Generator) -> str:
    others = SYNONYMS.get(name)
    return _one(others, rng) if others and rng.random() < 0.1 else name


def _article(words: str) -> str:
    return "an " if words[0] in "aeiou" else "a "


def _one(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _aligned(names: Sequence[str]) -> list[tuple[str, str]]:
    """(shared word, word) for names of one thing; in a name of several words each word stands for itself."""
    single = [name for name in names if name and " " not in name]
    several = [word for name in names if " " in name for word in name.split()]
    return [(single[0], word) for word in single] + [(word, word) for word in several]
