"""Training: the loop resumes exactly; gradients, hidden context, null captions; a drafter that grows part by part."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fixtures.tiny_training import GRID, prompts, tiny_target
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.parts import DraftParts
from hawk.drafters.settings import HEAD_SOURCES
from hawk.errors import HawkError
from hawk.models.folder import load_model, save_model
from hawk.models.llamagen.target import LlamaGen, LlamaGenConfig
from hawk.models.tokenizers.fsq import FSQConfig, FSQTokenizer
from hawk.training.ahead import Ahead
from hawk.training.drafters.recipe import KindRecipe
from hawk.training.drafters.run import FrozenModel, Plan, train_drafter
from hawk.training.endless.teacher_forcing import Dropouts, TeacherForced, seen_tokens
from hawk.training.endless.tokenizer import flat_cell_share, reconstruction_loss, training_pixels
from hawk.training.endless.words import write_text_encoder
from hawk.training.loop import FitConfig, fit, learning_rate, load_averaged, optimizers_of
from hawk.training.scenes.captions import vocabulary
from hawk.training.scenes.data import ScenePictures
from hawk.training.scenes.prompts import SceneCaptions

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
    config = replace(CONFIG, batch_size=2)
    make = partial(training_pixels, ScenePictures(side=64), config, slice(0, 2), False)
    here, ahead = (Ahead(make, steps=9, workers=n) for n in (0, 2))
    for step in (5, 6, 7):
        assert torch.equal(here.at(step), ahead.at(step))
    assert not torch.equal(here.at(6), here.at(7))


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


@pytest.mark.proofs
def test_a_drafter_is_trained_part_by_part(tmp_path: Path) -> None:
    """`hawk train drafter` three times: heads with a spatial drafter, then a feature drafter, then new heads."""
    folder, out = tmp_path / "model", tmp_path / "run"
    encoder = write_text_encoder(tmp_path / "text", vocabulary(), ["cat"])
    tokenizer = FSQTokenizer(FSQConfig((4, 3), (4, 8, 8), (8, 8, 8), (1, 1, 1)))
    shape = LlamaGenConfig(
        dim=16, n_layer=1, n_head=2, multiple_of=16, vocab_size=12, caption_dim=encoder.width, caption_tokens=24,
        height=GRID.height, width=GRID.width,
    )  # fmt: skip
    target = LlamaGen(shape)
    target.initialize(0.3)
    nn.init.normal_(target.output.weight, std=0.4)
    save_model(folder, "tiny", target, tokenizer, tmp_path / "text")
    how = KindRecipe(replace(CONFIG, steps=4, batch_size=4), {})

    def train(*kinds: str, sources: tuple[str, ...] | None = None) -> DraftParts:
        frozen = FrozenModel.load(folder, torch.device("cpu"), "float32")
        plan = Plan(dict.fromkeys(kinds, how), 16, SamplingParams(), GRID, sources, draw_batch=2)
        train_drafter(frozen, SceneCaptions(), plan, out)
        parts = load_model(folder, drafter=out / "drafter").drafting
        assert parts is not None
        return parts

    for kinds in (("heads", "spatial"), ("feature",)):
        parts = train(*kinds)
        assert parts.spatial is not None
        assert (parts.feature is not None) == ("feature" in kinds)
        assert parts.fused.sources in (("stale",), (*HEAD_SOURCES, "spatial", "stale"))  # the faster of the two pools
        assert parts.fused.measured_on
    assert json.loads((out / "drafter" / "report.json").read_text())["images"] == 16
    parts = train("heads", sources=("horizontal", "stale"))
    assert parts.fused.sources == ("horizontal", "stale")
    assert parts.spatial is None
    assert not (out / "drafter" / "spatial.safetensors").exists()
    shutil.rmtree(out / "drafter")
    with pytest.raises(HawkError, match="there are none in"):
        train("feature")
