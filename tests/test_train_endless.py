"""`hawk train` on endless pictures, from a tokenizer to a drafter: kills and resumes, photographs, refused folders."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hawk.cli.app import app
from hawk.models.folder import load_model
from hawk.training.drafters import pool
from hawk.training.endless import target, tokenizer
from hawk.training.endless.tokenizer import load_tokenizer
from test_photos import write_photos

SMALL = ("--side", "64", "--steps", "2", "--batch-size", "2", "--dtype", "float32", "--save-every", "1")
SHAPE = ("--dim", "64", "--layers", "1")
RECIPE = "heads: {steps: 2, batch_size: 4, horizontal: 1, vertical: 1}"


@pytest.fixture(autouse=True)
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out pictures and windows are measured, but few of them."""
    monkeypatch.setattr(target, "CHECK", 2)
    monkeypatch.setattr(tokenizer, "CHECKED", 20)
    monkeypatch.setattr(pool, "REACHES", (1, 7))


def hawk(*words: object) -> str:
    """The standard output of a command, which must succeed."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def refusal(*words: object) -> str:
    """The line in which a command refuses what it was given."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 2, (done.output, done.exception)
    return done.stderr.splitlines()[-1]


@pytest.mark.proofs
def test_a_model_is_trained_by_three_commands(saved_model: Path, tmp_path: Path) -> None:
    """The tokenizer, the target and a drafter; the model draws as soon as its target is trained."""
    codes, run, model = tmp_path / "tokenizer", tmp_path / "target", tmp_path / "target" / "model"
    tokens = ("train", "tokenizer", "--out", codes, "--start", saved_model, *SMALL)
    assert "PSNR" in hawk(*tokens, "--levels", "4,4")
    assert (codes / "reconstructions.png").is_file()
    assert load_tokenizer(codes).codebook_size == 16
    assert "says levels=[4, 4], not [4, 3]: use it or another folder" in refusal(*tokens)
    assert "has 2 levels, not 3" in refusal(*tokens[:3], tmp_path / "other", *tokens[4:], "--levels", "4,4,4")

    fit = ("train", "target", "--out", run, "--tokenizer", codes, *SMALL)
    assert "held-out loss" in hawk(*fit, *SHAPE)
    assert json.loads((model / "config.json").read_text())["name"] == "hawk-scenes"
    assert "taught" not in hawk("generate", "a red apple", "--model", model, "--out", tmp_path / "apple.png")
    drawn = (model / "target.safetensors").read_bytes()
    shutil.rmtree(model)
    hawk("train", "model", "--run", run, "--tokenizer", codes)
    assert (model / "target.safetensors").read_bytes() == drawn
    assert "draws 16 codes, the tokenizer has 12" in refusal("train", "model", "--run", run, "--tokenizer", saved_model)
    assert "says n_layer=1, not 2: use it or another folder" in refusal(*fit, "--dim", 64, "--layers", 2)
    other = ("train", "target", "--out", tmp_path / "wide", "--tokenizer", codes, *SMALL, "--start", model)
    assert "has another shape" in refusal(*other, "--dim", 128, "--layers", 1)

    (tmp_path / "own.yaml").write_text(RECIPE)
    how = ("--recipe", tmp_path / "own.yaml", "--sources", "stale", "--dtype", "float32", "--draw-batch", 32)
    hawk("train", "drafter", "--target", model, "--out", tmp_path / "drafter", "--images", 64, *how)
    assert load_model(model, drafter=tmp_path / "drafter" / "drafter").drafting is not None
    assert not (model / "drafters").exists()


def test_a_killed_target_goes_on_and_starts_another(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = ("train", "target", "--tokenizer", saved_model, *SHAPE, *SMALL)
    hawk(*fit, "--out", tmp_path / "whole")
    calls = iter(range(1))
    real = target.training_loss

    def dies(*arguments: object) -> object:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(target, "training_loss", dies)
        assert CliRunner().invoke(app, [str(word) for word in (*fit, "--out", tmp_path / "killed")]).exit_code == 130
    hawk("train", "model", "--run", tmp_path / "killed", "--tokenizer", saved_model)  # of the first step
    hawk(*fit, "--out", tmp_path / "killed")
    whole, killed = ((tmp_path / run / "model" / "target.safetensors").read_bytes() for run in ("whole", "killed"))
    assert whole == killed
    hawk(*fit, "--out", tmp_path / "more", "--start", tmp_path / "whole" / "model", "--seed", 1, "--muon")
    assert "muon=True, not False" in refusal(*fit, "--out", tmp_path / "more", "--seed", 1)


def test_photographs_take_the_place_of_scenes(saved_model: Path, tmp_path: Path) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    write_photos(photos)
    hawk("train", "tokenizer", "--out", tmp_path / "tokenizer", "--start", saved_model, "--photos", photos, *SMALL)
    fit = ("train", "target", "--out", run, "--tokenizer", saved_model, *SHAPE, *SMALL)
    hawk(*fit, "--photos", photos)
    assert json.loads((run / "model" / "config.json").read_text())["name"] == "hawk-photos"
    assert "lacks words of these pictures" in refusal(*fit)
    drafter = ("train", "drafter", "--target", run / "model", "--out", tmp_path / "drafter")
    assert "give --prompts FILE" in refusal(*drafter)
