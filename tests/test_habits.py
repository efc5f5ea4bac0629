"""A pipeline with the habits of diffusers: to, torch_dtype, save_pretrained, outputs, progress, copies, logs."""

import copy
import dataclasses
import io
import json
import logging
import multiprocessing.reduction
import shutil
import sys
from datetime import date

import pytest
import torch

import hawk.drafters.settings
from hawk import HawkError, HawkPipeline
from hawk.cli.info import info
from hawk.machine import machine_name
from hawk.models.folder import HEADS_FOLDER
from hawk.outputs import PipelineOutput


@pytest.fixture(scope="module")
def pipe(saved_model) -> HawkPipeline:
    return HawkPipeline.from_pretrained(saved_model, device="cpu", dtype="float64")


SMALL = {"height": 16, "width": 24}
"""A grid of 2x3 tokens, which is drawn soon."""


def one_line(error: pytest.ExceptionInfo) -> bool:
    return "\n" not in str(error.value) and len(str(error.value)) < 200


# --- places and dtypes


@pytest.mark.parametrize(
    "given", [{"torch_dtype": torch.float64}, {"dtype": torch.float64}, {"torch_dtype": "float64"}]
)
def test_torch_dtypes_are_taken_under_either_name(saved_model, given):
    assert HawkPipeline.from_pretrained(saved_model, "cpu", **given).model.target.dtype == torch.float64


def test_equal_dtypes_are_taken_and_different_ones_refused(saved_model):
    both = {"dtype": "float64", "torch_dtype": torch.float64}
    assert HawkPipeline.from_pretrained(saved_model, torch.device("cpu"), **both).dtype == "float64"
    with pytest.raises(HawkError, match="dtype is float32 and torch_dtype is float16: give one of them"):
        HawkPipeline.from_pretrained(saved_model, dtype="float32", torch_dtype=torch.float16)
    with pytest.raises(HawkError, match="unknown dtype 'int8'"):
        HawkPipeline.from_pretrained(saved_model, torch_dtype=torch.int8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_pipeline_moves_to_what_a_fresh_one_has(saved_model, dtype):
    moved = HawkPipeline.from_pretrained(saved_model, "cpu", "float64")
    moved("a cat", seed=3, **SMALL)
    assert moved.to(torch.device("cpu"), dtype) is moved
    assert (moved.dtype, moved.model.target.dtype) == (str(dtype).removeprefix("torch."), torch.float32)
    assert next(moved.model.tokenizer.parameters()).dtype == torch.float32
    fresh = HawkPipeline.from_pretrained(saved_model, "cpu", dtype)
    assert moved.model.target.packed_in == fresh.model.target.packed_in == dtype
    assert torch.equal(moved("a cat", seed=3, **SMALL).tokens, fresh("a cat", seed=3, **SMALL).tokens)


def test_a_move_to_the_same_place_changes_nothing(pipe):
    model = pipe.model
    assert pipe.to("cpu").to(torch.float64).to("cpu", torch.float64).to(device="cpu", dtype=torch.float64) is pipe
    assert pipe.model is model


def test_what_cannot_be_moved_is_refused_in_one_line(saved_model):
    packed = HawkPipeline.from_pretrained(saved_model, "cpu", "float32")
    cases = {
        torch.float64: r"packed for this CPU .* load it with from_pretrained\(..., device='cpu', dtype='float64'\)",
        torch.int8: "unknown dtype 'int8'",
        "cuda:99": "not there",
        "nowhere": "unknown device",
    }
    for place, message in cases.items():
        with pytest.raises(HawkError, match=message) as caught:
            packed.to(place)
        assert one_line(caught)
    assert packed("a cat", seed=1, **SMALL).tokens.shape == (1, 6)


# --- saving and copying


def test_a_saved_pipeline_draws_the_same(saved_model, tmp_path, pipe):
    pipe.save_pretrained(tmp_path / "saved")
    again = HawkPipeline.from_pretrained(tmp_path / "saved", "cpu", "float64")
    assert torch.equal(again("a cat", seed=3, **SMALL).tokens, pipe("a cat", seed=3, **SMALL).tokens)
    with pytest.raises(HawkError, match="is there already"):
        pipe.save_pretrained(tmp_path / "saved")


def test_a_drafter_of_another_folder_is_saved_with_the_model(saved_model, tmp_path):
    model, drafter = tmp_path / "model", tmp_path / "drafter"
    shutil.copytree(saved_model, model)
    shutil.move(model / HEADS_FOLDER, drafter)
    HawkPipeline.from_pretrained(model, "cpu", drafter=drafter).save_pretrained(tmp_path / "saved")
    assert HawkPipeline.from_pretrained(tmp_path / "saved", "cpu").model.drafting is not None


def test_a_transformers_checkpoint_is_saved_with_its_pixel_decoder(tmp_path):
    from fixtures.tiny_transformers import save, tiny

    pipe = HawkPipeline.from_pretrained(save(tiny("chameleon"), tmp_path / "chameleon"), "cpu", "float32")
    pipe.save_pretrained(tmp_path / "saved")
    again = HawkPipeline.from_pretrained(tmp_path / "saved", "cpu", "float32")
    assert again.model.fingerprint == pipe.model.fingerprint
    assert again.model.family.decoder is not None
    with pytest.raises(HawkError, match=r"cannot be changed in place: load it with .*dtype='bfloat16'") as caught:
        pipe.to(torch.bfloat16)
    assert one_line(caught)


def test_copies_and_pickles_are_loaded_again(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled = bytes(multiprocessing.reduction.ForkingPickler.dumps(pipe))
    assert len(pickled) < 1000
    for again in (copy.deepcopy(pipe), multiprocessing.reduction.ForkingPickler.loads(pickled)):
        assert (again.dtype, again.device, again.engine) == (pipe.dtype, pipe.device, pipe.engine)
        assert again.model is not pipe.model
        assert torch.equal(again("a cat", seed=3, **SMALL).tokens, pipe("a cat", seed=3, **SMALL).tokens)
    assert copy.copy(pipe).model is pipe.model


def test_a_pipeline_around_a_callers_model_says_why_not(pipe):
    around = HawkPipeline(pipe.model, pipe.device, pipe.dtype, borrowed=pipe.model.target)
    with pytest.raises(HawkError, match=r"cannot be pickled or copied: .* hawk\.accelerate again") as caught:
        copy.deepcopy(around)
    assert one_line(caught)
    with pytest.raises(HawkError, match="cannot be saved: call save_pretrained of the model"):
        around.save_pretrained("anywhere")
    with pytest.raises(HawkError, match="the model is the caller's: move the model itself"):
        around.to(torch.float32)


def test_the_repr_is_one_short_line(pipe):
    assert repr(pipe) == "HawkPipeline(tiny, cpu, float64, eager)"


# --- a drafter that overflows

OVERFLOWS = {
    "heads in bfloat16": ("hawk-paper", "bfloat16", 3e38, "horizontal, vertical-1", "train the drafter again"),
    "heads, greedily": ("hawk", "float64", 1e308, "horizontal, vertical-1", "train the drafter again"),
    "feature drafter": ("eagle", "float64", 1e308, "feature", "train the drafter again"),
}


@pytest.mark.parametrize("case", OVERFLOWS)
def test_a_drafter_that_overflows_is_warned_of_once_and_changes_no_image(case, saved_model, caplog):
    method, dtype, large, sources, advice = OVERFLOWS[case]
    pipe = HawkPipeline.from_pretrained(saved_model, "cpu", dtype)
    parts, greedy = pipe.model.drafting, {"temperature": 0.0, **SMALL}
    plain = pipe("a cat", seed=3, method="ar", **greedy).tokens
    for block in (parts.heads.horizontal[0], parts.heads.vertical[0]):
        block.bias.fill_(large)
    if method == "eagle":  # some CPUs lay out weights of bfloat16 in another way
        parts.feature.last.weight.fill_(large)
    with caplog.at_level(logging.WARNING, logger="hawk"):
        drawn = [pipe("a cat", seed=3, method=method, **greedy).tokens for _ in range(2)]
    expected = f"the drafter ({sources}) gives numbers that are not finite in {dtype}: its drafts are random there"
    assert [record.getMessage().startswith(expected) for record in caplog.records] == [True]
    assert caplog.records[0].getMessage().endswith(advice)
    assert "\n" not in caplog.text.strip()
    if dtype == "float64":  # plain AR's logits in float16 do not have the bits of a tree's
        assert all(torch.equal(tokens, plain) for tokens in drawn)


# --- the file of step costs


def test_a_warm_pipeline_reads_the_file_of_step_costs_once(saved_model, monkeypatch):
    reads, read = [], hawk.drafters.settings.kept_costs
    monkeypatch.setattr(hawk.drafters.settings, "kept_costs", lambda: reads.append(1) or read())
    monkeypatch.setattr(hawk.drafters.settings, "step_seconds", lambda target, widths, *_: dict.fromkeys(widths, 1e-3))
    monkeypatch.setattr(hawk.drafters.settings, "DRIFT", 1e12)  # no step drifts that far
    pipe = HawkPipeline.from_pretrained(saved_model, "cpu", "float64")
    pipe.model = dataclasses.replace(pipe.model, drafting=None)  # a window, whose steps are timed
    for _ in range(3):
        pipe("a cat", seed=3, guidance_scale=2.0)
    assert len(reads) == 1


# --- outputs


def test_an_output_is_read_as_in_diffusers(pipe):
    output = pipe("a cat", seed=3, **SMALL)
    assert output["images"] is output.images is output[0] is output.to_tuple()[0]
    assert list(output)[:3] == ["images", "stats", "seeds"]
    assert dict(output)["seeds"] == [3]
    assert "images" in output
    assert "lossless" not in output
    assert len(output.to_tuple()) == len(output)
    with pytest.raises(KeyError):
        output["nothing"]


def test_no_negative_prompt_may_be_none(pipe):
    prompts, seeds = ["a cat"] * 2, [4, 4]
    expected = pipe(prompts, negative_prompt=["blue", ""], seed=seeds, **SMALL)
    assert torch.equal(pipe(prompts, negative_prompt=["blue", None], seed=seeds, **SMALL).tokens, expected.tokens)


@pytest.mark.parametrize("kind", [HawkError, KeyboardInterrupt, KeyError])
def test_an_error_in_a_later_batch_carries_the_finished_images(pipe, kind):
    def fail(pipe, step, committed, state):
        if committed > 6 + 2:
            raise kind("in the second image")

    with pytest.raises(kind, match="in the second image") as caught:
        pipe("a cat", seed=3, num_images_per_prompt=3, **SMALL, callback_on_step_end=fail)
    finished = caught.value.finished
    assert isinstance(finished, PipelineOutput)
    assert torch.equal(finished.tokens, pipe("a cat", seed=3, **SMALL).tokens)


# --- what is shown


def test_progress_is_a_bar_of_tokens(pipe, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    pipe("a cat", seed=3, num_images_per_prompt=2, **SMALL)
    assert terminal.getvalue() == ""
    pipe("a cat", seed=3, num_images_per_prompt=2, **SMALL, progress=True)
    assert "12/12" in terminal.getvalue()


def test_modules_log_and_install_no_handler(saved_model, caplog):
    assert not logging.getLogger("hawk").handlers
    with caplog.at_level(logging.DEBUG, logger="hawk"):
        HawkPipeline.from_pretrained(saved_model, "cpu", "float64")("a cat", seed=1, **SMALL)
    assert {record.name for record in caplog.records} == {"hawk.pipeline"}
    assert caplog.messages[0] == "loaded tiny on cpu in float64, engine eager"


# --- costs


def test_steps_are_timed_again_once_when_they_drift(saved_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HAWK_CACHE", str(tmp_path))
    model = tmp_path / "model"
    shutil.copytree(saved_model, model)
    shutil.rmtree(model / HEADS_FOLDER)
    pipe, measured = HawkPipeline.from_pretrained(model, "cpu", "float64"), []

    def step_seconds(target, widths, repeats, engine):
        measured.append(widths)
        return dict.fromkeys(widths, 1e6 / 24 if len(measured) == 1 else 1e-9)

    monkeypatch.setattr("hawk.drafters.settings.step_seconds", step_seconds)
    pipe("a cat", seed=1)  # times steps, and is the first
    assert (len(measured), pipe.priced.fused.measured_on) == (1, machine_name(pipe.device, torch.float64))
    with pipe.timed():
        pipe("a cat", seed=1)
    pipe("a cat", seed=1, guidance_scale=1.0)  # not as the timed steps
    assert len(measured) == 1
    for _ in range(2):  # the kept seconds are far too long: the steps are timed again, and only once
        pipe("a cat", seed=1)
    assert len(measured) == 2


def test_hawk_info_tells_the_window_and_measures_it(saved_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HAWK_CACHE", str(tmp_path))
    model = tmp_path / "model"
    shutil.copytree(saved_model, model)
    shutil.rmtree(model / HEADS_FOLDER)
    costs = iter([1.0, 5.0])
    monkeypatch.setattr(
        "hawk.drafters.settings.step_seconds", lambda target, widths, n, engine: dict.fromkeys(widths, next(costs))
    )

    def window(**options):
        info(str(model), device="cpu", as_json=True, **options)
        return json.loads(capsys.readouterr().out.splitlines()[-1])["window"]

    assert "hawk info --measure" in window()
    known = {"reach": 63, "steps timed": date.today().isoformat(), "days ago": 0}
    assert window(measure=True) == window() == window(measure=True) == known
    assert next(costs, None) is None
