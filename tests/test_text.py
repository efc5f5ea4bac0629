"""The bundled text encoder with a hand-made vocabulary: the features of captions, and the prompts it refuses."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hawk.errors import HawkError
from hawk.models.llamagen.words import StaticTextEncoder, TextEncoder

WORDS = ["apple", "blue", "cat", "fly", "butter", "on", "red", "tea", "pot", "up", "x"]
D, CONTEXT, TOKENS, POSITION = 3, 2, 7, 4
SETTINGS = {"tokens": TOKENS, "context": CONTEXT, "position_channels": POSITION, "fill": False, "longest": TOKENS}


def vector(word: str) -> Tensor:
    """The hand-made vector of a word: its number in the list, ten times this number, and one."""
    number = WORDS.index(word) + 1
    return torch.tensor([number, 10.0 * number, 1.0])


@pytest.fixture
def encoder() -> StaticTextEncoder:
    vectors = torch.stack([vector(word) for word in WORDS])
    return StaticTextEncoder({word: i for i, word in enumerate(WORDS)}, vectors, **SETTINGS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same vocabulary in files: int8 vectors, and a scale for each word."""
    (tmp_path / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
    vectors = torch.stack([torch.tensor([i + 1, 10 * (i + 1), 1], dtype=torch.int8) for i in range(len(WORDS))])
    save_file({"vectors": vectors, "scales": torch.ones(len(WORDS)).half()}, tmp_path / "words.safetensors")
    (tmp_path / "text.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    return tmp_path


def window(features: Tensor) -> Tensor:
    """The word vectors around each word, `[n, 2 * CONTEXT + 1, D]`."""
    return features[:, : D * (2 * CONTEXT + 1)].unflatten(-1, (-1, D))


def own(encoder: StaticTextEncoder, word: str) -> Tensor:
    """The vector at the middle of the window of a one-word prompt."""
    return window(encoder.encode([word]).features[0, -1:])[0, CONTEXT]


def test_captions_stand_at_the_right_end_and_the_rest_is_zero_and_masked(encoder: StaticTextEncoder) -> None:
    encoded = encoder.encode(["red apple", "cat", "red blue cat on red apple up"])
    assert encoded.features.shape == (3, TOKENS, encoder.width)
    assert encoded.mask.sum(1).tolist() == [2, 1, 7]
    assert (encoded.mask.int().diff(dim=1) >= 0).all()
    assert not encoded.features[~encoded.mask].any()
    assert encoded.features[encoded.mask].any(-1).all()


def test_a_window_holds_the_neighbours_in_reading_order(encoder: StaticTextEncoder) -> None:
    words = ["red", "cat", "on", "blue", "tea"]
    windows = window(encoder.encode([" ".join(words)]).features[0, -len(words) :])
    for word in range(len(words)):
        for offset in range(-CONTEXT, CONTEXT + 1):
            neighbour = word + offset
            expected = vector(words[neighbour]) if 0 <= neighbour < len(words) else torch.zeros(D)
            assert torch.equal(windows[word, CONTEXT + offset], expected)


def test_every_word_carries_the_mean_of_the_caption(encoder: StaticTextEncoder) -> None:
    words = ["red", "cat", "on"]
    features = encoder.encode([" ".join(words)]).features[0, -3:]
    mean = torch.stack([vector(word) for word in words]).mean(0)
    after_window = D * (2 * CONTEXT + 1)
    torch.testing.assert_close(features[:, after_window : after_window + D], mean.expand(3, -1))
    assert encoder.width == after_window + D + POSITION


def test_the_position_code_differs_between_positions_and_not_between_words(
    encoder: StaticTextEncoder,
) -> None:
    codes = encoder.encode(["red blue cat on red apple up"]).features[0, :, -POSITION:]
    others = encoder.encode(["cat cat tea pot fly x up"]).features[0, :, -POSITION:]
    assert torch.equal(codes, others)
    distances = torch.cdist(codes, codes)
    assert (distances + torch.eye(TOKENS) > 0.05).all()
    short = encoder.encode(["tea pot"]).features[0, -2:, -POSITION:]
    assert torch.equal(short, codes[:2])  # positions count from the caption's first word


def test_articles_case_and_punctuation_do_not_matter_word_order_does(encoder: StaticTextEncoder) -> None:
    plain, dressed, turned = encoder.encode(
        ["red apple on cat", "A red, APPLE... on the cat!", "cat on red apple"]
    ).features
    assert torch.equal(plain, dressed)
    assert not torch.equal(plain, turned)


def test_fill_repeats_the_caption_until_the_prefix_is_full(encoder: StaticTextEncoder) -> None:
    filling = replace(encoder, fill=True)
    once = encoder.encode(["red cat up"]).features[0, -3:]
    encoded = filling.encode(["red cat up"])
    assert encoded.mask.all()
    assert torch.equal(encoded.features[0], torch.cat((once[-1:], once, once)))  # 7 tokens: the last repeat is whole
    whole = ["red blue cat on red apple up"]
    assert torch.equal(filling.encode(whole).features, encoder.encode(whole).features)


# --- words without a vector ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        ("butterfly", ["butter", "fly"]),
        ("teapots", ["tea", "pot"]),  # the single letter s is skipped
        ("redapplecat", ["red", "apple", "cat"]),
        ("zzcatzz", ["cat"]),
        ("upzz", []),  # a piece of two letters is too short in a long word
        ("upx", ["up"]),  # and long enough in a short word
    ],
)
def test_an_unknown_word_is_the_mean_of_its_longest_known_pieces(
    encoder: StaticTextEncoder, word: str, pieces: list[str]
) -> None:
    expected = torch.stack([vector(piece) for piece in pieces]).mean(0) if pieces else torch.zeros(D)
    torch.testing.assert_close(own(encoder, word), expected)


def test_the_longest_piece_wins_over_its_beginning() -> None:
    words = ["pine", "pineapple", "apple", "pin"]
    vectors = torch.eye(4)
    encoder = StaticTextEncoder({word: i for i, word in enumerate(words)}, vectors, tokens=2, context=0)
    assert encoder.encode(["pineapples"]).features[0, -1, :4].tolist() == [0, 1, 0, 0]


def test_a_known_word_is_never_split(encoder: StaticTextEncoder) -> None:
    for word in WORDS:
        assert torch.equal(own(encoder, word), vector(word))


# --- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", "   ", "!?...", "the a an", "猫"])
def test_a_prompt_without_a_word_is_refused(encoder: StaticTextEncoder, prompt: str) -> None:
    with pytest.raises(HawkError, match="has no word in it") as caught:
        encoder.encode(["red apple", prompt])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fill", [True, False])
def test_an_over_long_prompt_is_refused_with_the_number_that_fits(encoder: StaticTextEncoder, fill: bool) -> None:
    shorter = replace(encoder, fill=fill, longest=5)
    shorter.encode(["red " * 5])
    with pytest.raises(HawkError, match="6 words, at most 5 fit"):
        shorter.encode(["red " * 6])
    longer = replace(encoder, fill=fill, longest=20)  # the prefix is the limit: a word is never cut off
    with pytest.raises(HawkError, match="8 words, at most 7 fit"):
        longer.encode(["red " * 8])


# --- files ---------------------------------------------------------------------------------------------------


def test_files_give_the_same_encoder(encoder: StaticTextEncoder, folder: Path) -> None:
    loaded = StaticTextEncoder.load(folder)
    prompts = ["a red apple", "butterfly on the teapot"]
    assert torch.equal(loaded.encode(prompts).features, encoder.encode(prompts).features)
    assert isinstance(loaded, TextEncoder)


def test_each_word_has_its_own_scale(folder: Path) -> None:
    vectors = torch.full((len(WORDS), D), 64, dtype=torch.int8)
    scales = torch.arange(1, len(WORDS) + 1) / 64
    save_file({"vectors": vectors, "scales": scales.half()}, folder / "words.safetensors")
    loaded = StaticTextEncoder.load(folder)
    assert own(loaded, "apple").tolist() == [1.0] * D
    assert own(loaded, "cat").tolist() == [3.0] * D


def test_the_same_prompt_gives_the_same_features_alone_and_in_a_batch(folder: Path) -> None:
    first, second = StaticTextEncoder.load(folder), StaticTextEncoder.load(folder)
    batch = first.encode(["red apple", "butterfly on blue teapot", "red apple"])
    alone = second.encode(["red apple"])
    for row in (0, 2):
        assert torch.equal(batch.features[row], alone.features[0])
        assert torch.equal(batch.mask[row], alone.mask[0])


@pytest.mark.parametrize("missing", ["words.txt", "words.safetensors", "text.json"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(HawkError, match=f"lacks .*{missing}"):
        StaticTextEncoder.load(folder)


@pytest.mark.parametrize("words", [WORDS[:-1], [*WORDS, "dog"]])
def test_words_that_do_not_match_the_vectors_are_refused(folder: Path, words: list[str]) -> None:
    (folder / "words.txt").write_text("\n".join(words), encoding="utf-8")
    with pytest.raises(HawkError, match=f"has {len(words)} words but .* {len(WORDS)} vectors"):
        StaticTextEncoder.load(folder)


def test_a_hint_names_the_words_that_were_never_taught(encoder: StaticTextEncoder) -> None:
    taught = replace(encoder, examples=("apple", "cat"))
    assert taught.hint(["the red zebra", "a zebra on a unicorn"]) == (
        "not taught: zebra, unicorn; the model knows, among others: apple, cat (`hawk info` lists all)"
    )
    assert taught.hint(["a red apple"]) is None
    assert encoder.hint(["a zebra"]) is None, "word vectors in place of a taught vocabulary: nothing is known"
    assert taught.facts()["knows"] == "apple, cat"


def test_a_word_of_many_letters_takes_no_long_time(encoder: StaticTextEncoder) -> None:
    began = time.process_time()
    features = encoder.encode(["butterfly" * 20_000]).features
    assert time.process_time() - began < 2
    assert torch.allclose(window(features[0, -1:])[0, CONTEXT], (vector("butter") + vector("fly")) / 2)
