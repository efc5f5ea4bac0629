"""Compose training images from sprites, with a background, a size and a place that the caption mentions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hawk.training.sprites.captions import LOOKS, Telling, caption_for, pair_caption, pick
from hawk.training.sprites.records import SPRITE_SIZE, SpriteRecord, SpriteSet

WHITE = (255, 255, 255)
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (220, 45, 45),
    "orange": (245, 145, 40),
    "yellow": (250, 215, 70),
    "green": (50, 160, 80),
    "light green": (170, 225, 155),
    "blue": (45, 100, 215),
    "light blue": (155, 210, 245),
    "dark blue": (25, 40, 95),
    "purple": (130, 75, 185),
    "pink": (250, 165, 200),
    "brown": (125, 82, 50),
    "gray": (145, 145, 145),
    "black": (0, 0, 0),
    "beige": (240, 225, 195),
}
COLOUR_SYNONYMS = {
    "gray": ("gray", "grey"),
    "light blue": ("light blue", "sky blue"),
    "dark blue": ("dark blue", "navy blue"),
}
OWN_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 40),
    "yellow": (250, 205, 60),
    "green": (60, 160, 70),
    "blue": (50, 120, 220),
    "purple": (135, 80, 190),
    "pink": (245, 150, 190),
    "brown": (120, 75, 45),
    "gray": (150, 150, 155),
    "black": (35, 35, 38),
    "white": (240, 240, 240),
}
"""The names that people use for an object's colour, each with a typical value."""
DARK = ("red", "green", "blue", "dark blue", "purple", "brown", "gray", "black")


@dataclass(frozen=True)
class ComposeOdds:
    """How often a composed image shows what; "told" means that the caption mentions it.

    The backgrounds that are not white have a colour, which is always told.
    """

    white_untold: float = 0.32
    white_told: float = 0.06
    centred: float = 0.88
    pair: float = 0.04
    own_colour: float = 0.25
    look: float = 0.2


@dataclass(frozen=True)
class Placement:
    """Where an object is placed: scale and centre (x, y) of its frame as fractions of the image, and words for both.

    There are three scales only, and frames lie on the tokenizer's 8-pixel grid: an object of one scale always has the
    same tokens.
    """

    scale: float
    x: float
    y: float
    size: str = ""
    place: str = ""


@dataclass(frozen=True)
class ComposedImage:
    """An image, uint8 [128, 128, 3], its caption, and the colour that all pixels of its background have."""

    rgb: NDArray[np.uint8]
    caption: str
    background: tuple[int, int, int]


def compose(sprites: SpriteSet, index: int, rng: np.random.Generator, augment: bool = True) -> ComposedImage:
    """Compose the image and caption of a sprite; the index and the generator's state alone determine the result.

    Without `augment` the object fills the image, on white (or on gray if the object is nearly white).
    """
    record, sprite = sprites.records[index], sprites.rgba[index]
    if not augment:
        name = "gray" if record.dark_background_only else ""
        colour = BACKGROUNDS.get(name, WHITE)
        return ComposedImage(
            _on_colour([(sprite, FULL)], colour), caption_for(record, rng, Telling(background=name)), colour
        )
    odds = ComposeOdds()
    if rng.random() < odds.pair:
        partner = _partner(sprites, index, rng)
        if partner is not None:
            return _compose_pair(sprites, (index, partner), rng, odds)
    told, colour = _choose_background([(record, sprite)], rng, odds)
    placement = choose_placement(rng, odds)
    telling = Telling(placement.size, placement.place, told, choose_look(record, sprite, rng, odds))
    return ComposedImage(_on_colour([(sprite, placement)], colour), caption_for(record, rng, telling), colour)


def choose_look(record: SpriteRecord, sprite: NDArray[np.uint8], rng: np.random.Generator, odds: ComposeOdds) -> str:
    """Sometimes an adjective: the object's own colour, or a word that does not change the image; else ""."""
    draw = rng.random()
    if draw < odds.own_colour:
        colour = own_colour(sprite)
        return colour if colour and not set(record.name.split()) & set(OWN_COLOURS) else ""
    return pick(LOOKS, rng) if draw < odds.own_colour + odds.look else ""


def own_colour(sprite: NDArray[np.uint8]) -> str:
    """The name of the colour that at least 60 % of an object has; "" if there is none."""
    thinned = sprite[::4, ::4].reshape(-1, 4)
    visible = thinned[thinned[:, 3] > 127][:, :3].astype(np.int32)
    if len(visible) == 0:
        return ""
    far = np.square(visible[:, None] - np.array(list(OWN_COLOURS.values()), np.int32)).sum(-1)
    counts = np.bincount(far.argmin(1), minlength=len(OWN_COLOURS))
    best = int(counts.argmax())
    return list(OWN_COLOURS)[best] if counts[best] >= 0.6 * len(visible) else ""


FULL = Placement(1.0, 0.5, 0.5)
USUAL = Placement(0.75, 0.5, 0.5)
HALF = 0.5
NEAR, FAR = 0.25 + 1 / 16, 0.75 - 1 / 16  # one token cell of margin beside a half-size object


def choose_placement(rng: np.random.Generator, odds: ComposeOdds) -> Placement:
    """Mostly the middle, without words for it; else another size, a side or a corner, with words for them."""
    if rng.random() < odds.centred:
        return USUAL
    kind = rng.random()
    if kind < 0.1:
        return Placement(1.0, 0.5, 0.5, size=pick(("large", "big"), rng))
    if kind < 0.4:
        return Placement(HALF, 0.5, 0.5, size=pick(("small", "small", "tiny", "little"), rng))
    size = "small" if rng.random() < 0.4 else ""
    if kind < 0.8:
        x, y, words = [
            (NEAR, 0.5, ("on the left", "on the left side", "to the left")),
            (FAR, 0.5, ("on the right", "on the right side", "to the right")),
            (0.5, NEAR, ("at the top", "in the upper half")),
            (0.5, FAR, ("at the bottom", "in the lower half")),
        ][int(rng.integers(4))]
        return Placement(HALF, x, y, size, pick(words, rng))
    right, bottom = rng.integers(2), rng.integers(2)
    corner = f"{('top', 'bottom')[bottom]} {('left', 'right')[right]}"
    place = pick((f"in the {corner} corner", f"in the {corner}"), rng)
    return Placement(HALF, (NEAR, FAR)[right], (NEAR, FAR)[bottom], size, place)


def _partner(sprites: SpriteSet, index: int, rng: np.random.Generator) -> int | None:
    """Another sprite of the same style for a scene of two; None if the two names are the same or too long."""
    first = sprites.records[index]
    peers = sprites.by_style[first.style]
    odds = sprites.shares[peers]
    second = int(rng.choice(peers, p=odds / odds.sum()) if odds.any() else rng.choice(peers))
    if len(first.name.split()) > 3 or len(sprites.records[second].name.split()) > 3:
        return None
    return None if sprites.records[second].name == first.name else second


def _compose_pair(
    sprites: SpriteSet, pair: tuple[int, int], rng: np.random.Generator, odds: ComposeOdds
) -> ComposedImage:
    records = [sprites.records[i] for i in pair]
    objects = [sprites.rgba[i] for i in pair]
    told, colour = _choose_background(list(zip(records, objects, strict=True)), rng, odds)
    if rng.random() < 0.75:
        spots = (Placement(HALF, 0.25, 0.5), Placement(HALF, 0.75, 0.5))
        joints = [("and", ""), ("and", ""), ("next to", ""), ("on the left and", "on the right")][int(rng.integers(4))]
    else:
        spots = (Placement(HALF, 0.5, 0.25), Placement(HALF, 0.5, 0.75))
        joints = [("above", ""), ("on top and", "below"), ("over", "")][int(rng.integers(3))]
    caption = pair_caption(records, joints, told, rng)
    return ComposedImage(_on_colour(list(zip(objects, spots, strict=True)), colour), caption, colour)


def _choose_background(
    objects: list[tuple[SpriteRecord, NDArray[np.uint8]]], rng: np.random.Generator, odds: ComposeOdds
) -> tuple[str, tuple[int, int, int]]:
    """(words, colour); the words are "" for a white background that the caption does not mention.

    A colour that swallows an object is chosen only if every colour does.
    """
    draw = rng.random()
    pale = any(record.dark_background_only for record, _ in objects)
    if draw < odds.white_untold + odds.white_told and not pale:
        return ("" if draw < odds.white_untold else "white"), WHITE
    names = DARK if pale else tuple(BACKGROUNDS)
    order = [names[i] for i in rng.permutation(len(names))]
    safe = [name for name in order if not any(swallows(BACKGROUNDS[name], sprite) for _, sprite in objects)]
    name = (safe or order)[0]
    return pick(COLOUR_SYNONYMS.get(name, (name,)), rng), BACKGROUNDS[name]


def swallows(colour: tuple[int, int, int], sprite: NDArray[np.uint8]) -> bool:
    """Whether more than a third of the object's pixels are so near to the background colour that its shape is lost."""
    thinned = sprite[::4, ::4].reshape(-1, 4)
    visible = thinned[thinned[:, 3] > 127][:, :3].astype(np.int32)
    if len(visible) == 0:
        return False
    near = np.square(visible - np.array(colour, np.int32)).sum(axis=1) < 60**2
    return float(near.mean()) > 0.33


def _on_colour(objects: list[tuple[NDArray[np.uint8], Placement]], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Draw objects over a constant colour; pixels that no object touches have exactly that colour."""
    canvas = np.empty((SPRITE_SIZE, SPRITE_SIZE, 3), np.uint16)
    canvas[:] = colour
    for sprite, placement in objects:
        side = round(SPRITE_SIZE * placement.scale)
        image = Image.fromarray(np.ascontiguousarray(sprite)).convert("RGBa")  # premultiplied alpha avoids dark fringes
        if side != SPRITE_SIZE:
            image = image.resize((side, side), Image.Resampling.HAMMING)
        layer = np.asarray(image).astype(np.uint16)
        left, top = (
            min(max(round(SPRITE_SIZE * centre - side / 2), 0), SPRITE_SIZE - side)
            for centre in (placement.x, placement.y)
        )
        under = canvas[top : top + side, left : left + side]
        alpha = layer[..., 3:]
        under[:] = np.minimum(layer[..., :3] + (under * (255 - alpha) + 127) // 255, 255)
    return canvas.astype(np.uint8)
