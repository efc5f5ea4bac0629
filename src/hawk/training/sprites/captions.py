"""Write captions as people type prompts: with articles, styles, places, backgrounds; lower case, at most 20 words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hawk.training.sprites.records import SpriteRecord

MAX_WORDS = 20


@dataclass(frozen=True)
class StyleWords:
    """The words that people use for a style: before the object, as a medium, after the object."""

    adjectives: tuple[str, ...]  # "3d" cat
    mediums: tuple[str, ...]  # "3d render" of a cat; cat "3d render"
    endings: tuple[str, ...]  # a cat "in 3d", or with a comma: a cat", 3d style"


@dataclass(frozen=True)
class CaptionOdds:
    """How often a caption has which words; "told" means that it mentions something.

    A caption may leave out the style `plain_style`; it names every other style.
    """

    plain_style: str = "flat"
    plain_style_told: float = 0.3
    label: float = 0.6
    synonym: float = 0.32  # the remaining names are made with tags
    bare: float = 0.4  # "cat" rather than "a cat"
    aside: float = 0.06


@dataclass(frozen=True)
class Telling:
    """What a caption must mention besides the object; it does not mention an empty string."""

    size: str = ""  # "small"
    place: str = ""  # "on the left"
    background: str = ""  # "blue"
    look: str = ""  # "green", "cute"

    @property
    def adjectives(self) -> str:
        """The adjectives before the object's name."""
        return f"{self.size} {self.look}".strip()


STYLES: dict[str, StyleWords] = {
    "noto": StyleWords(("noto",), ("noto emoji",), (", noto style", "in noto style")),
    "blob": StyleWords(("blob", "noto blob"), ("blob emoji",), (", blob style", "in blob emoji style")),
    "flat": StyleWords(
        ("flat",),
        ("flat emoji", "flat illustration", "flat icon"),
        (", flat style", "in flat style", ", flat design"),
    ),
    "gradient": StyleWords(
        ("gradient", "glossy"), ("gradient emoji", "gradient icon"), (", gradient style", "in gradient style")
    ),
    "3d": StyleWords(
        ("3d",),
        ("3d render", "3d emoji", "3d icon", "3d model"),
        ("in 3d", ", 3d", ", 3d style", "in 3d style", ", 3d render"),
    ),
    "twemoji": StyleWords(("twemoji",), ("twemoji",), (", twemoji style", "in twemoji style", ", twemoji")),
    "emojione": StyleWords(("emojione",), ("emojione emoji",), (", emojione style", "in emojione style")),
    "firefox": StyleWords(("firefox",), ("firefox emoji",), (", firefox style", "in firefox style")),
    "line": StyleWords(
        ("line", "outlined"),
        ("line icon", "line drawing", "outline icon"),
        (", line style", "in line style", ", outlined"),
    ),
    "icon": StyleWords(("simple",), ("flat color icon", "simple icon", "app icon"), (", icon style", ", simple icon")),
    "clip art": StyleWords(
        ("clip art", "clipart"),
        ("clip art", "clipart", "clip art drawing"),
        (", clip art", "in clip art style", ", clipart"),
    ),
}
LOOKS = (
    "cute", "nice", "beautiful", "pretty", "lovely", "shiny", "cool", "funny", "fresh", "modern", "classic", "friendly",
    "perfect", "good", "adorable", "amazing", "ancient", "charming", "clever", "colorful", "delicious", "detailed",
    "elegant", "famous", "fancy", "fantastic", "fluffy", "gentle", "gorgeous", "great", "jolly",
    "lucky", "magic", "metal", "my", "new", "our", "plastic", "playful", "proud", "quiet", "ripe", "rustic", "silly",
    "simple", "smart", "soft", "strange", "strong", "sweet", "tasty", "toy", "vintage", "warm", "wild", "wise",
    "wonderful", "young",
)  # fmt: skip
PLAIN = ("plain", "solid", "soft", "vivid", "clean", "simple")
"""Adjectives that people add and that do not change the image: `LOOKS` of objects, `PLAIN` of backgrounds."""

UNTOLD_MEDIUMS = (
    "emoji", "icon", "picture", "image", "drawing", "illustration", "cartoon", "sticker", "graphic", "design", "symbol",
)  # fmt: skip
ASIDES = (
    "high quality", "centered", "digital art", "vector", "cartoon", "beautiful", "for kids", "minimal", "isolated",
    "best quality", "with details", "colorful", "funny", "for you", "of course", "in summer", "at home", "please",
)  # fmt: skip
"""Phrases that people add to a prompt and that do not change the image."""

UNCOUNTABLE = frozenset(
    {"rice", "bread", "bacon", "cheese", "butter", "salt", "milk", "honey", "water", "fire", "rain",
     "snow", "fog", "soap", "money", "music", "hair", "ice", "mate", "spaghetti", "sushi", "broccoli",
     "garlic", "ginger", "tofu", "corn", "popcorn", "toast", "beer", "wine", "coffee", "tea", "juice",
     "luggage", "furniture", "lasagna", "paprika", "salami", "clothing", "mail", "sand", "grass", "wood",
     "oil", "gold", "bamboo", "seaweed", "ramen", "meat", "food", "pasta", "santa", "halloween",
     "christmas", "soccer", "golf", "cricket", "rugby", "saturn", "jupiter", "mars", "venus", "japan",
     "dna", "lemonade", "sunshine", "chess", "paper", "curry", "africa", "australia", "ink", "paint",
     "pudding", "shaved-ice", "flan"}
)  # fmt: skip
NO_ARTICLE = frozenset(
    {"thumbs up", "thumbs down", "mount fuji", "santa claus", "mrs claus", "mx claus", "tokyo tower",
     "father christmas", "statue of liberty", "raised hands", "see no evil", "hear no evil", "speak no evil",
     "table tennis", "night with stars", "money with wings", "meat on bone", "corn on the cob",
     "hundred points", "eiffel tower"}
)  # fmt: skip
SINGULAR_S = frozenset(
    {"lens", "news", "series", "species", "atlas", "christmas", "gas", "mars", "tennis", "canvas",
     "iris", "rhinoceros", "mantis", "fleur-de-lis"}
)  # fmt: skip
PLURALS = frozenset(
    {"people", "men", "women", "teeth", "feet", "children", "mice", "fries", "geese", "two"}
)  # fmt: skip
SINGULAR_START = frozenset(
    {"person", "man", "woman", "boy", "girl", "child", "baby", "face", "leaf", "woman's", "man's"}
)  # fmt: skip
GERUND_NOUNS = frozenset(
    {"ring", "king", "wing", "painting", "building", "seedling", "dumpling", "earring", "wedding"}
)  # fmt: skip
TWO_COLOURS = re.compile(r"^\w+ and (white|yellow|pink) (?=\w)")
HEAD_END = re.compile(
    r" (with|of|in|on|at|and|for|behind|without|over|under|to|from"
    r"|wearing|holding|showing|getting|feeding|pointing|playing|riding|taking|opening) "
)
COLOUR_START = re.compile(
    r"^(red|orange|yellow|green|blue|purple|pink|brown|black|white|gr[ae]y) "
    r"(?=apple|cat|bird|book|car|mushroom|envelope|flag|flower|telephone|rose|hat|pin|balloon|wine glass)"
)
ANIMAL_FACES = frozenset(
    {"cat", "dog", "monkey", "horse", "cow", "pig", "tiger", "rabbit", "mouse", "dragon", "fox", "bear",
     "panda", "koala", "hamster", "wolf", "frog", "lion", "polar bear", "unicorn", "chicken", "bird"}
)  # fmt: skip


def _head(name: str) -> list[str]:
    """The words up to the head noun: "a black and white bag of nuts" -> ["bag"]."""
    return HEAD_END.split(TWO_COLOURS.sub("", name))[0].split()


def is_plural(name: str) -> bool:
    """Whether the head noun of a name is plural, so that it takes no "a": "grapes", "people holding hands"."""
    words = _head(name)
    if words[0] in PLURALS or words[0] in SINGULAR_START:
        return words[0] in PLURALS
    head = words[-1]
    if head in PLURALS:
        return True
    return head.endswith("s") and not head.endswith(("ss", "us", "'s")) and head not in SINGULAR_S


def is_uncountable(name: str) -> bool:
    """Whether a singular name takes no "a": "bread", "cooked rice", "surfing"."""
    words = _head(name)
    gerund = len(words) == 1 and words[0].endswith("ing") and words[0] not in GERUND_NOUNS
    return gerund or name in NO_ARTICLE or (words[-1] in UNCOUNTABLE and words[0] not in SINGULAR_START)


def indefinite(words: str) -> str:
    """The article, "a" or "an", that fits the sound of the first word."""
    if re.match(r"(uni|ufo|usb|use|util|ukul|eu|ewe|one\b|one-|once)", words):
        return "a"
    return "an" if re.match(r"([aeiou]|hour|heir|honest|x-ray|xray|sos\b|suv\b|lcd\b)", words) else "a"


def with_article(name: str, adjective: str = "") -> str:
    """The name as a noun phrase: "a cat", "an apple", "grapes", "a small cat"."""
    words = f"{adjective} {name}".strip()
    if is_plural(name) or is_uncountable(name):
        return words
    return f"{indefinite(words)} {words}"


def short_forms(record: SpriteRecord) -> tuple[str, ...]:
    """Shorter names than the label: "cat face" -> "cat"; "red apple" -> "apple"."""
    short = record.name.removesuffix(" face")
    if short not in ANIMAL_FACES:
        short = record.name  # a "cat face" may be called "cat", but a "grinning face" is not called "grinning"
    without_colour = COLOUR_START.sub("", short)
    return tuple(name for name in dict.fromkeys((short, without_colour)) if name not in record.names)


def object_name(record: SpriteRecord, rng: np.random.Generator, odds: CaptionOdds | None = None) -> str:
    """A random name of the object: mostly its label, else a short form, a synonym, or the label with a tag."""
    odds = odds or CaptionOdds()
    draw = rng.random()
    others = short_forms(record) + record.names[1:]
    if draw < odds.label or (draw < odds.label + odds.synonym and not others) or not (record.tags or others):
        return record.name
    if draw < odds.label + odds.synonym or not record.tags:
        return pick(others, rng)
    tag = pick(record.tags, rng)
    if tag in record.name.split() or len(tag.split()) > 2:
        return record.name
    if record.name.endswith(" face"):
        return f"{tag} face"
    return f"{record.name} {tag}" if len(record.name.split()) < 3 else record.name


def caption_for(
    record: SpriteRecord,
    rng: np.random.Generator,
    telling: Telling | None = None,
    odds: CaptionOdds | None = None,
) -> str:
    """A caption for one object, in lower case, with at most `MAX_WORDS` words."""
    telling, odds = telling or Telling(), odds or CaptionOdds()
    name = object_name(record, rng, odds)
    if len(name.split()) > 6:
        name = record.name
    core = _styled(name, record.style, rng, telling, odds)
    if rng.random() < odds.aside:
        core += f", {pick(ASIDES, rng)}" if rng.random() < 0.6 else f" {pick(ASIDES, rng)}"
    plain = with_article(record.name, telling.adjectives) + (f" {telling.place}" if telling.place else "")
    plain += f" on {telling.background}" if telling.background else ""
    return within_limit(core + background_phrase(telling.background, rng), fallback=plain)


def tells_style(style: str, rng: np.random.Generator, odds: CaptionOdds) -> bool:
    """Whether a caption names its style (drawn at random for the plain style)."""
    return style != odds.plain_style or rng.random() < odds.plain_style_told


def _styled(name: str, style_name: str, rng: np.random.Generator, telling: Telling, odds: CaptionOdds) -> str:
    style = STYLES[style_name]
    bare = rng.random() < odds.bare
    phrase = f"{telling.adjectives} {name}".strip() if bare else with_article(name, telling.adjectives)
    place = f" {telling.place}" if telling.place else ""
    if not tells_style(style_name, rng, odds):
        if rng.random() < 0.75:
            return phrase + place
        medium = pick(UNTOLD_MEDIUMS, rng)
        if bare:
            return f"{phrase} {medium}{place}"
        return f"{pick((indefinite(medium) + ' ', ''), rng)}{medium} of {phrase}{place}"
    form = rng.integers(4)
    if form == 0:
        adjective = f"{telling.adjectives} {pick(style.adjectives, rng)}".strip()
        return (f"{adjective} {name}" if bare else with_article(name, adjective)) + place
    if form == 1:
        medium = pick(style.mediums, rng)
        if bare:
            return f"{phrase} {medium}{place}"
        return f"{pick((indefinite(medium) + ' ', ''), rng)}{medium} of {phrase}{place}"
    return join_ending(phrase + place, pick(style.endings, rng))


def pair_caption(
    records: Sequence[SpriteRecord], joints: Sequence[str], background: str, rng: np.random.Generator
) -> str:
    """A caption for a scene of two objects; `joints` are the words between the objects and after the second one."""
    first, second = (with_article(record.name) for record in records)
    scene = f"{first} {joints[0]} {second}" + (f" {joints[1]}" if joints[1] else "")
    style = STYLES[records[0].style]
    if tells_style(records[0].style, rng, CaptionOdds()):
        told = (
            join_ending(scene, pick(style.endings, rng))
            if rng.random() < 0.7
            else f"{pick(style.mediums, rng)} of {scene}"
        )
        scene = told if len(told.split()) <= MAX_WORDS - 3 else scene  # leave room for a background
    return within_limit(
        scene + background_phrase(background, rng),
        fallback=scene + (f" on {background}" if background else ""),
    )


def background_phrase(colour: str, rng: np.random.Generator) -> str:
    """The words for a background, such as " on a blue background"; "" for a background without a name."""
    if not colour:
        return ""
    colour = f"{pick(PLAIN, rng)} {colour}" if rng.random() < 0.15 else colour
    article = indefinite(colour)
    form = rng.random()
    if form < 0.55:
        return f" on {article} {colour} background"
    if form < 0.75:
        return f" with {article} {colour} background"
    return f", {colour} background" if form < 0.92 else f" on {colour}"


def join_ending(phrase: str, ending: str) -> str:
    """Append a style ending to an object: ", 3d style" without a space, "in 3d" with one."""
    return phrase + ending if ending.startswith(",") else f"{phrase} {ending}"


def within_limit(caption: str, fallback: str) -> str:
    """The caption, or the fallback if the caption has more than `MAX_WORDS` words."""
    return caption if len(caption.split()) <= MAX_WORDS else fallback


def pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    """One of the choices, each equally likely."""
    return choices[int(rng.integers(len(choices)))]
