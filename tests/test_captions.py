"""Captions and composed images: the image shows what the caption mentions."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hawk.errors import HawkError
from hawk.pictures.contact_sheet import contact_sheet
from hawk.training.sprites.captions import (
    ASIDES,
    LOOKS,
    MAX_WORDS,
    PLAIN,
    STYLES,
    CaptionOdds,
    Telling,
    caption_for,
    is_plural,
    object_name,
    with_article,
)
from hawk.training.sprites.composition import (
    BACKGROUNDS,
    COLOUR_SYNONYMS,
    WHITE,
    ComposedImage,
    ComposeOdds,
    choose_look,
    choose_placement,
    compose,
    own_colour,
    swallows,
)
from hawk.training.sprites.records import SpriteRecord, SpriteSet

COLOURS = (
    BACKGROUNDS
    | {word: BACKGROUNDS[name] for name, words in COLOUR_SYNONYMS.items() for word in words}
    | {"white": WHITE}
)
LONG = "clock showing seven o'clock beside a rather long name"  # nine words, the most that a cleaned name may have


def record(name: str, style: str = "flat", pale: bool = False, **more: tuple[str, ...]) -> SpriteRecord:
    names = (name, *more.get("synonyms", ()))
    return SpriteRecord(name, name, names, more.get("tags", ()), style, "fake", "MIT", "train", pale)


def sprite(colour: tuple[int, int, int]) -> np.ndarray:
    """A disc with a blue dot in its left half."""
    rows, columns = np.mgrid[:128, :128]
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[np.hypot(rows - 63.5, columns - 63.5) < 60] = (*colour, 255)
    rgba[np.hypot(rows - 64, columns - 30) < 12] = (0, 30, 90, 255)
    return rgba


SPRITES = SpriteSet(
    np.stack([sprite((120, 200, 90)), sprite((200, 60, 160)), sprite((252, 252, 252)), sprite((90, 60, 60))]),
    (record("pear"), record("owl"), record("ghost", pale=True), record("left arrow")),
)


def composed(index: int, count: int) -> list[ComposedImage]:
    return [compose(SPRITES, index, np.random.default_rng((index, seed))) for seed in range(count)]


def is_pair(image: ComposedImage) -> bool:
    return sum(bool(re.search(rf"\b{r.name}\b", image.caption)) for r in SPRITES.records) == 2


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("cat", "a cat"),
        ("apple", "an apple"),
        ("hourglass", "an hourglass"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("grapes", "grapes"),
        ("scissors", "scissors"),
        ("octopus", "an octopus"),
        ("glass", "a glass"),
        ("glasses", "glasses"),
        ("cooked rice", "cooked rice"),
        ("people holding hands", "people holding hands"),
        ("man lifting weights", "a man lifting weights"),
        ("cat with heart eyes", "a cat with heart eyes"),
        ("slice of bread", "a slice of bread"),
        ("black and white fries", "black and white fries"),
        ("thumbs up", "thumbs up"),
        ("surfing", "surfing"),
        ("ring", "a ring"),
    ],
)
def test_articles_are_english(name: str, phrase: str) -> None:
    assert with_article(name) == phrase


def test_the_article_follows_the_adjective() -> None:
    assert with_article("apple", "small") == "a small apple"
    assert with_article("cat", "orange") == "an orange cat"
    assert is_plural("grapes")
    assert with_article("grapes", "small") == "small grapes"


@pytest.mark.parametrize("style", sorted(STYLES))
def test_captions_are_short_lower_case_and_tell_everything(style: str) -> None:
    telling = Telling("small", "in the bottom right corner", "light green")
    for name in ("cat", LONG):
        for seed in range(80):
            given = record(name, style, synonyms=("kitty",), tags=("pet", "house animal"))
            caption = caption_for(given, np.random.default_rng(seed), telling)
            assert len(caption.split()) <= MAX_WORDS
            assert caption == caption.lower() == caption.strip()
            assert "small" in caption
            assert "in the bottom right corner" in caption
            assert "light green" in caption
            assert "  " not in caption
            assert " ," not in caption


def test_captions_are_a_function_of_the_generator_and_vary() -> None:
    given = record("cat face", synonyms=("kitty",), tags=("pet",))
    first, again = ([caption_for(given, np.random.default_rng(s)) for s in range(200)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 40
    assert {"flat cat face", "a cat face"} <= set(first)
    assert any(re.search(r"\bcat\b(?! face)", c) for c in first)


def test_only_the_plain_style_may_go_untold() -> None:
    def told(style: str, words: str) -> float:
        captions = [caption_for(record("cat", style), np.random.default_rng(s)) for s in range(200)]
        return sum(words in caption for caption in captions) / 200

    assert 0.2 < told("flat", "flat") < 0.4
    assert told("3d", "3d") == told("noto", "noto") == 1


def test_object_names_are_mostly_the_label() -> None:
    given = record("red apple", synonyms=("apple",), tags=("fruit",))
    rng = np.random.default_rng(0)
    names = [object_name(given, rng) for _ in range(500)]
    assert 0.5 < names.count("red apple") / 500 < 0.7
    assert set(names) == {"red apple", "apple", "red apple fruit"}
    assert object_name(given, rng, CaptionOdds(label=1.0)) == "red apple"


def test_asides_come_before_the_background_and_change_nothing() -> None:
    always = CaptionOdds(aside=1.0)
    for seed in range(40):
        caption = caption_for(record("cat"), np.random.default_rng(seed), Telling(background="blue"), always)
        said = [aside for aside in ASIDES if aside in caption]
        assert said
        assert caption.index(said[0]) < caption.index("blue")


def test_composing_is_a_function_of_the_index_and_the_generator() -> None:
    for index in range(3):
        first, again = (compose(SPRITES, index, np.random.default_rng(7)) for _ in range(2))
        assert first.caption == again.caption
        assert np.array_equal(first.rgb, again.rgb)


def test_a_told_background_is_exactly_the_corner_pixels_and_an_untold_one_is_white() -> None:
    seen = set()
    for image in composed(0, 250) + composed(1, 250):
        assert image.rgb.shape == (128, 128, 3)
        assert image.rgb.dtype == np.uint8
        colours, plain = "|".join(sorted(COLOURS, key=len)[::-1]), "|".join(PLAIN)
        words = re.search(rf"(?:an? |, |on )(?:(?:{plain}) )?({colours})( background)?$", image.caption)
        told = words[1] if words else None
        assert image.background == (COLOURS[told] if told else WHITE), image.caption
        assert {tuple(image.rgb[y, x]) for y in (0, 127) for x in (0, 127)} == {image.background}
        seen.add(told)
    assert len(seen) > 10
    untold = sum(i.background == WHITE for i in composed(0, 250)) / 250
    assert 0.28 < untold < 0.48


def test_an_objects_own_colour_is_told_now_and_then_and_never_twice() -> None:
    green, two = sprite((60, 160, 70)), sprite((60, 160, 70))
    two[:, :64, :3] = (220, 40, 40)
    assert own_colour(green) == "green"
    assert own_colour(two) == ""  # half red, half green
    assert own_colour(np.zeros((128, 128, 4), np.uint8)) == ""
    rng = np.random.default_rng(0)
    looks = [choose_look(record("frog"), green, rng, ComposeOdds()) for _ in range(4000)]
    assert 0.2 < looks.count("green") / 4000 < 0.3
    assert set(looks) == {"", "green", *LOOKS}
    named = [choose_look(record("red apple"), green, rng, ComposeOdds(own_colour=1.0)) for _ in range(9)]
    assert set(named) == {""}
    caption = caption_for(record("frog"), rng, Telling(look="green", size="small"))
    assert re.search(r"small green ((flat|3d) )?frog", caption), caption


def test_every_pixel_beside_the_object_has_exactly_the_background() -> None:
    for image in composed(0, 60):
        other = np.any(image.rgb != image.background, axis=-1)
        rows, columns = np.flatnonzero(other.any(axis=1)), np.flatnonzero(other.any(axis=0))
        box = other[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if not is_pair(image):
            assert box.shape[0] == pytest.approx(box.shape[1], abs=2)  # the disc's box without a stray pixel
            assert box.mean() == pytest.approx(np.pi / 4, abs=0.04)


@pytest.mark.proofs
def test_a_told_place_is_where_the_object_is() -> None:
    words = {
        "left": 0,
        "right": 0,
        "top": 0,
        "upper": 0,
        "bottom": 0,
        "lower": 0,
        "corner": 0,
        "small": 0,
        "tiny": 0,
    }
    for image in composed(0, 1500):
        if is_pair(image):
            continue
        y, x = (axis.mean() for axis in np.nonzero(np.any(image.rgb != image.background, axis=-1)))
        covered = np.any(image.rgb != image.background, axis=-1).mean()
        told = [word for word in words if re.search(rf"\b{word}\b", image.caption)]
        for word in told:
            words[word] += 1
        assert (("left" in told), ("right" in told)) == (x < 48, x > 80), image.caption
        assert bool({"top", "upper"} & set(told)) == (y < 48), image.caption
        assert bool({"bottom", "lower"} & set(told)) == (y > 80), image.caption
        if {"small", "tiny"} & set(told):
            assert covered < 0.25
    assert min(words.values()) > 2


def test_two_objects_are_both_told_and_both_seen() -> None:
    pairs = [image for image in composed(0, 1000) if is_pair(image)]
    assert 0.01 < len(pairs) / 1000 < 0.06
    for image in pairs:
        other = np.any(image.rgb != image.background, axis=-1)
        if re.search(r" (above|over|on top and) ", image.caption):
            other = other.T
        seen = [bool(other[:, columns].any()) for columns in (slice(0, 60), slice(64, 65), slice(68, 128))]
        assert seen == [True, False, True], image.caption


def test_frames_stand_on_the_tokenizers_cells() -> None:
    """An object of one size has the same tokens at every place, because its frame lies on whole token cells."""
    odds = ComposeOdds()
    placements = {choose_placement(np.random.default_rng(s), odds) for s in range(600)}
    assert {p.scale for p in placements} == {0.5, 0.75, 1.0}
    for place in placements:
        for centre in (place.x, place.y):
            assert (128 * (centre - place.scale / 2)) % 8 == 0


def test_training_draws_everyday_things_in_the_bundled_styles() -> None:
    records = [record(name, style) for name in ("cat", "red apple", "abacus") for style in ("flat", "3d", "noto")]
    sprites = SpriteSet(np.zeros((len(records), 1, 1, 4), np.uint8), tuple(records))
    share = {(r.name, r.style): float(s) for r, s in zip(records, sprites.shares, strict=True)}
    assert sum(share.values()) == pytest.approx(1)
    assert share["cat", "flat"] == share["red apple", "flat"] > share["cat", "3d"] > 0
    assert share["cat", "noto"] == share["abacus", "flat"] == 0
    only_others = SpriteSet(np.zeros((2, 1, 1, 4), np.uint8), (record("cat", "blob"), record("yak")))
    assert only_others.shares.tolist() == [0.5, 0.5]


def test_a_pale_object_never_stands_on_a_light_background() -> None:
    assert all(sum(image.background) < 500 for image in composed(2, 100))
    plain = compose(SPRITES, 2, np.random.default_rng(0), augment=False)
    assert plain.background == BACKGROUNDS["gray"]
    assert re.search("gray|grey", plain.caption)


def test_no_background_swallows_the_object() -> None:
    green = sprite(BACKGROUNDS["green"])
    assert swallows(BACKGROUNDS["green"], green)
    assert not swallows(BACKGROUNDS["red"], green)
    one = SpriteSet(green[None], (record("leaf"),))
    assert all(compose(one, 0, np.random.default_rng(s)).background != BACKGROUNDS["green"] for s in range(150))


def test_without_augmentation_the_object_fills_the_frame_on_white() -> None:
    image = compose(SPRITES, 0, np.random.default_rng(0), augment=False)
    assert image.background == WHITE
    opaque = SPRITES.rgba[0][..., 3] == 255
    assert np.array_equal(image.rgb[opaque], SPRITES.rgba[0][opaque][:, :3])


def test_a_contact_sheet_holds_every_picture_and_refuses_a_missing_caption() -> None:
    pictures = [np.full((32, 48, 3), 10 * n, np.uint8) for n in range(5)]
    sheet = np.asarray(contact_sheet(pictures, ["a rather long caption that has to be wrapped"] * 5, columns=2))
    assert sheet.shape[1] == 2 * (48 + 8) + 8
    for n in range(1, 5):
        assert (np.all(sheet == 10 * n, axis=-1)).sum() >= 32 * 48
    with pytest.raises(HawkError, match="each with a caption"):
        contact_sheet(pictures, ["one"], columns=2)
    with pytest.raises(HawkError, match="columns is 0"):
        contact_sheet(pictures, ["x"] * 5, columns=0)
