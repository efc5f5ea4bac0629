"""Training: the loop resumes exactly; the tokenizer, the target and a model folder's drafter are trained on discs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fixtures.discs import disc_job
from fixtures.tiny_training import GRID, prompts, tiny_target
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.settings import HEAD_SOURCES
from hawk.errors import HawkError
from hawk.models.folder import HEADS_FOLDER, load_model, save_model
from hawk.models.llamagen.target import LlamaGen, LlamaGenConfig
from hawk.models.llamagen.words import StaticTextEncoder
from hawk.models.tokenizers.fsq import FSQConfig, FSQTokenizer
from hawk.training.ahead import Ahead
from hawk.training.drafters.recipe import KindRecipe
from hawk.training.drafters.run import FrozenModel, Plan, train_drafter
from hawk.training.loop import FitConfig, fit, learning_rate, load_averaged, optimizers_of
from hawk.training.sprites.data import write_shards
from hawk.training.sprites.records import SpriteRecord, SpriteSet
from hawk.training.sprites.target import Dropouts, TeacherForced, seen_tokens, step_batch, train_target
from hawk.training.sprites.texts import SpriteCaptions
from hawk.training.sprites.tokenizer import flat_cell_share, reconstruction_loss

CONFIG = FitConfig(steps=12, batch_size=4, lr=1e-2, warmup=2, dtype="float32", save_every=5, evaluate_every=6)

NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="Muon came with PyTorch 2.9")


class Noisy(nn.Module):
    """A regression with dropout, so that a resume must also repeat the random masks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.layers(x).squeeze(-1) - x.sum(-1)).square().mean()


def noisy_loss(module: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"loss": module(torch.randn(4, 3, generator=generator))}


class KilledError(Exception):
    pass


@pytest.mark.parametrize("muon", [False, pytest.param(True, marks=NEEDS_MUON)])
def test_a_killed_run_resumes_with_the_same_curve(tmp_path: Path, muon: bool) -> None:
    config = replace(CONFIG, muon=muon)
    torch.manual_seed(0)
    whole = Noisy()
    other = Noisy()
    other.load_state_dict(whole.state_dict())
    expected = fit(whole, noisy_loss, config, tmp_path / "whole")

    def dies_at_seven(module: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        if step == 7:
            raise KilledError
        return noisy_loss(module, step, generator)

    with pytest.raises(KilledError):
        fit(other, dies_at_seven, config, tmp_path / "killed")
    resumed = fit(Noisy(), noisy_loss, config, tmp_path / "killed")
    assert all(torch.equal(resumed.averaged[name], value) for name, value in expected.averaged.items())
    assert resumed.scalars["loss"] == expected.scalars["loss"]


def test_a_run_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    fit(Noisy(), noisy_loss, CONFIG, tmp_path)
    with pytest.raises(HawkError, match=r"lr=0\.01, not 0\.5"):
        fit(Noisy(), noisy_loss, replace(CONFIG, lr=0.5), tmp_path)
    with pytest.raises(HawkError, match="no training state"):
        load_averaged(tmp_path / "nowhere.pt")


@NEEDS_MUON
def test_muon_is_for_the_matrices_of_layers_alone() -> None:
    assert [type(o).__name__ for o in optimizers_of(tiny_target(), CONFIG)] == ["AdamW"]
    target = tiny_target()
    muon, adamw = optimizers_of(target, replace(CONFIG, muon=True))
    matrices = {id(p) for group in muon.param_groups for p in group["params"]}
    assert matrices == {id(p) for p in target.layers.parameters() if p.ndim == 2}
    others = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert matrices | others == {id(p) for p in target.parameters()}
    assert not matrices & others


def test_the_learning_rate_warms_up_and_decays() -> None:
    config = FitConfig(steps=100, batch_size=1, lr=1.0, warmup=10)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(config.final_lr_fraction, abs=2e-3)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_gradients_reach_the_tokenizers_first_layer() -> None:
    torch.manual_seed(0)
    small = FSQConfig(encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8), decoder_depths=(1, 1, 1))
    tokenizer = FSQTokenizer(small)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    reconstruction_loss(tokenizer(images), images)["loss"].backward()
    entry = [p for n, p in tokenizer.named_parameters() if n.startswith("encoder.1.")]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in entry)
    assert flat_cell_share(tokenizer) == 1.0


def test_batches_depend_on_the_step_alone_and_not_on_the_workers() -> None:
    rgba = np.zeros((2, 128, 128, 4), np.uint8)
    rgba[:, 40:80, 40:90] = (200, 30, 30, 255)
    records = [SpriteRecord(name, name, (name,), (), "flat", "fake", "MIT", "train") for name in ("cat", "dog")]
    make = partial(step_batch, SpriteSet(rgba, tuple(records)), 3, 4, 0)
    here, ahead = (Ahead(make, steps=9, workers=n) for n in (0, 2))
    for step in (5, 6, 7):
        one, other = here.at(step), ahead.at(step)
        assert one.captions == other.captions
        assert np.array_equal(one.rgb, other.rgb)
    assert here.at(6).captions != here.at(7).captions or not np.array_equal(here.at(6).rgb, here.at(7).rgb)


def test_context_is_hidden_from_some_images_wholly_and_from_some_in_part() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = seen_tokens(torch.Size((2000, 64)), Dropouts(blind=0.3, hazy=0.2), generator).float().mean(1)
    assert (seen == 0).float().mean() == pytest.approx(0.3, abs=0.04)
    assert (seen == 1).float().mean() == pytest.approx(0.5, abs=0.04)
    assert ((seen > 0.2) & (seen < 0.8)).any()
    assert bool(seen_tokens(torch.Size((9, 5)), Dropouts(blind=0.0, hazy=0.0), generator).all())


def test_teacher_forcing_uses_the_null_caption_where_it_is_dropped() -> None:
    target = tiny_target()
    module = TeacherForced(target, GRID)
    prompt = prompts(0, 3)
    tokens = torch.randint(24, (3, GRID.size), generator=torch.Generator().manual_seed(0))
    dropped = torch.tensor([True, True, True])
    null = module(tokens, prompt.features, prompt.mask, dropped)
    other = module(tokens, prompt.features * 3 + 1, prompt.mask, dropped)
    assert torch.equal(null, other)
    assert not torch.equal(null, module(tokens, prompt.features, prompt.mask, ~dropped))


def test_a_target_is_trained_from_sprites_to_a_lower_loss(tmp_path: Path) -> None:
    """Everything that `hawk train target` does, on pictures of discs: data, tokens, captions, dropouts, loss."""
    names = [f"thing {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] * 2
    (tmp_path / "data").mkdir()
    write_shards(tmp_path / "data", [disc_job(name, i) for i, name in enumerate(names)], {}, workers=0)
    torch.manual_seed(0)
    tokenizer = FSQTokenizer(FSQConfig((8, 8), (8, 8, 8), (8, 8, 8), (1, 1, 1)))
    words = ["thing", *"abcdefghijklmnopqrstuvwxyz"]
    text = StaticTextEncoder({word: i for i, word in enumerate(words)}, torch.randn(len(words), 4), tokens=24)
    shape = LlamaGenConfig(
        dim=32, n_layer=1, n_head=2, multiple_of=16, vocab_size=tokenizer.codebook_size, caption_dim=text.width,
        caption_tokens=24, height=16, width=16,
    )  # fmt: skip
    config = FitConfig(steps=8, batch_size=4, lr=3e-3, warmup=1, ema=0.0, evaluate_every=4)
    target, fitted = train_target(tmp_path / "data", tokenizer.eval(), text, shape, config, tmp_path / "run")
    with pytest.raises(HawkError, match="the model to start from has another shape"):
        train_target(
            tmp_path / "data", tokenizer, text, shape, config, tmp_path / "other", start=tiny_target().state_dict()
        )
    assert not target.training
    assert {"loss", "nll", "nll_null"} <= fitted.scalars.keys()
    assert fitted.scalars["nll"] < np.log(tokenizer.codebook_size)


@pytest.mark.proofs
def test_a_drafter_is_trained_into_a_model_folder_part_by_part(tmp_path: Path) -> None:
    """`hawk train drafter` three times: heads with a spatial drafter, then a feature drafter, then new heads."""
    data, folder, text = tmp_path / "data", tmp_path / "model", tmp_path / "text"
    data.mkdir()
    text.mkdir()
    names = [f"thing {letter}" for letter in "abcdefghij"]
    write_shards(data, [disc_job(name, i) for i, name in enumerate(names)], {}, workers=0)
    (text / "words.txt").write_text("\n".join(["thing", *"abcdefghij"]))
    (text / "text.json").write_text(json.dumps({"tokens": 24, "context": 1, "position_channels": 4}))
    vectors = torch.randint(-127, 127, (11, 4), dtype=torch.int8)
    save_file({"vectors": vectors, "scales": torch.full((11,), 1 / 127).half()}, text / "words.safetensors")
    encoder = StaticTextEncoder.load(text)
    tokenizer = FSQTokenizer(FSQConfig((4, 3), (4, 8, 8), (8, 8, 8), (1, 1, 1)))
    shape = LlamaGenConfig(
        dim=16, n_layer=1, n_head=2, multiple_of=16, vocab_size=12, caption_dim=encoder.width, caption_tokens=24,
        height=GRID.height, width=GRID.width,
    )  # fmt: skip
    target = LlamaGen(shape)
    target.initialize(0.3)
    nn.init.normal_(target.output.weight, std=0.4)
    save_model(folder, "tiny", target, tokenizer, text)
    how = KindRecipe(replace(CONFIG, steps=4, batch_size=4), {})
    drafter_folder = folder / HEADS_FOLDER

    def train(*kinds: str, run: str = "run", sources: tuple[str, ...] | None = None) -> None:
        frozen = FrozenModel.load(folder, torch.device("cpu"), "float32")
        plan = Plan(dict.fromkeys(kinds, how), 16, SamplingParams(), GRID, sources, draw_batch=2)
        train_drafter(frozen, SpriteCaptions.read(data), plan, tmp_path / run, drafter_folder)

    for kinds in (("heads", "spatial"), ("feature",)):
        train(*kinds)
        parts = load_model(folder).drafting
        assert parts is not None
        assert parts.spatial is not None
        assert (parts.feature is not None) == ("feature" in kinds)
        assert parts.fused.sources in (("stale",), (*HEAD_SOURCES, "spatial", "stale"))  # the faster of the two pools
        assert parts.fused.measured_on
    assert json.loads((drafter_folder / "report.json").read_text())["images"] == 16
    train("heads", sources=("horizontal", "stale"))
    parts = load_model(folder).drafting
    assert parts is not None
    assert parts.fused.sources == ("horizontal", "stale")
    assert parts.spatial is None
    assert not (drafter_folder / "spatial.safetensors").exists()
    shutil.rmtree(drafter_folder)
    with pytest.raises(HawkError, match="there are none in"):
        train("feature", run="other")
