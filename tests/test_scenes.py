"""Endless captioned scenes: every picture follows from its number, and every word of a caption is known."""

import numpy as np
import pytest
import torch

from hawk.models.llamagen.target import LlamaGen
from hawk.models.tokenizers.fsq import FSQConfig, FSQTokenizer
from hawk.training.endless.codes import code_digits
from hawk.training.endless.pause import wait_while_exists
from hawk.training.endless.target import EndlessTokens, fit_target, load_averaged_target, target_shape
from hawk.training.endless.tokenizer import fit_tokenizer
from hawk.training.endless.words import write_text_encoder
from hawk.training.loop import FitConfig
from hawk.training.scenes.captions import caption, unknown_words, vocabulary
from hawk.training.scenes.colours import COLOURS
from hawk.training.scenes.data import ScenePictures
from hawk.training.scenes.kinds import KINDS
from hawk.training.scenes.plain import plain_caption, plain_question
from hawk.training.scenes.prompts import SceneCaptions
from hawk.training.scenes.scene import (
    BLOCK,
    held_out_number,
    pair_is_held_out,
    render,
    sample_scene,
    scene_rng,
    training_number,
)

TINY = FSQConfig((4, 4), (4, 4, 8), (4, 4, 8), (1, 1, 1))


def test_a_picture_follows_from_seed_and_number_alone():
    first, again, other = (sample_scene(seed, 7) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert np.array_equal(render(first), render(again))
    assert caption(first, scene_rng(3, 7, 1)) == caption(again, scene_rng(3, 7, 1))
    assert render(first).shape == (128, 128, 3)
    assert render(first, side=64).shape == (64, 64, 3)


def test_no_two_pictures_are_alike():
    pictures = [render(sample_scene(0, n), side=32).tobytes() for n in range(100)]
    assert len(set(pictures)) == 100


def test_held_out_numbers_are_never_trained_on():
    trained = [training_number(i) for i in range(10 * (BLOCK - 1))]
    held_out = [held_out_number(i) for i in range(10)]
    assert sorted(trained + held_out) == list(range(10 * BLOCK))


def test_held_out_pairs_are_never_trained_on():
    pairs = {(f.kind, f.colour) for i in range(2000) for f in sample_scene(0, training_number(i)).figures}
    assert not any(pair_is_held_out(*pair) for pair in pairs)
    share = np.mean([pair_is_held_out(kind, colour) for kind in KINDS for colour in COLOURS])
    assert 0.05 < share < 0.15
    held_out = [sample_scene(0, held_out_number(i), "held-out").figures[0] for i in range(100)]
    assert all(pair_is_held_out(f.kind, f.colour) for f in held_out)


def test_captions_use_known_words_only():
    captions = [caption(sample_scene(0, n), scene_rng(0, n, 1)) for n in range(1500)]
    assert not {word for text in captions for word in unknown_words(text)}
    words = [word for text in captions for word in text.lower().replace(",", " ").split()]
    never_said = set(vocabulary()) - set(words)
    assert len(never_said) < 20, never_said
    assert unknown_words("a zebra on a blue zebra") == ["zebra"]


def test_synonyms_share_a_vector_and_every_caption_fits(tmp_path):
    text = write_text_encoder(tmp_path, vocabulary(), ["cat"])
    kitten, cat, dog = (text.encode([word]).features for word in ("kitten", "cat", "dog"))
    assert torch.equal(kitten, cat)
    assert not torch.equal(cat, dog)
    assert text.encode([caption(sample_scene(0, n), scene_rng(0, n, 1)) for n in range(300)]).mask.any(1).all()


def test_every_word_of_a_plain_prompt_is_known():
    for number in range(12):
        scene = plain_question(number, pairs="held-out" if number % 2 else "taught")
        assert not unknown_words(plain_caption(scene))
        assert pair_is_held_out(scene.figures[0].kind, scene.figures[0].colour) == bool(number % 2)


def test_splits_are_batches_of_their_own():
    batches = [ScenePictures().batch(split, range(3)) for split in ("train", "held-out", "held-out pairs")]
    assert len({batch.rgb.tobytes() for batch in batches}) == 3
    assert all(len(batch.captions) == 3 for batch in batches)


def test_captions_do_not_wait_for_their_pictures():
    pictures = ScenePictures()
    assert tuple(pictures.captions("train", range(3))) == pictures.batch("train", range(3)).captions
    prompts = SceneCaptions()
    assert prompts.drawn(1, 2) == pictures.captions("train", range(1, 3))
    assert prompts.fingerprint == SceneCaptions().fingerprint


@pytest.mark.proofs
def test_training_runs_and_goes_on(tmp_path):
    small = FitConfig(steps=2, batch_size=2, warmup=1, dtype="float32", save_every=1, evaluate_every=2)
    pictures = ScenePictures(side=64)
    tokenizer, fitted = fit_tokenizer(pictures, tmp_path / "tokenizer", small, TINY)
    assert fitted.scalars["psnr"] > 0
    text = write_text_encoder(tmp_path / "text", vocabulary(), ["cat"])
    shape = target_shape(tokenizer, text, dim=64, layers=1, side=64)
    source = EndlessTokens(pictures, tokenizer, text)
    fit_target(source, shape, small, tmp_path / "own rows", shared_rows=False)
    _, first = fit_target(source, shape, small, tmp_path / "target")
    _, again = fit_target(source, shape, small, tmp_path / "target")
    assert first.scalars["nll held-out"] == pytest.approx(again.scalars["nll held-out"])
    target = load_averaged_target(tmp_path / "target", tokenizer)
    assert target.state_dict().keys() == LlamaGen(shape).state_dict().keys()
    assert {"nll held-out", "nll held-out pairs", "nll without captions"} <= first.scalars.keys()


def test_codes_share_rows_by_their_digits():
    digits = code_digits(FSQTokenizer(FSQConfig((4, 8), (4, 4, 8), (4, 4, 8), (1, 1, 1))))
    assert digits.shape == (32, 4 + 8 + 32)
    assert (digits.sum(1) == 3).all()
    assert torch.equal(digits[0, :4], digits[4, :4])  # codes 0 and 4 differ in their second digit
    assert not torch.equal(digits[0, 4:12], digits[4, 4:12])


def test_training_waits_while_the_file_is_there(tmp_path, monkeypatch):
    stop = tmp_path / "stop"
    stop.touch()
    waits = []
    monkeypatch.setattr("time.sleep", lambda seconds: (waits.append(seconds), stop.unlink()))
    wait_while_exists(stop)
    assert waits == [1.0]
    wait_while_exists(None)
