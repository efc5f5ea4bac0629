"""The pictures of `hawk eval`: drawn once, kept batch by batch, and the same after any number of kills."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from fixtures.coarse_features import coarse
from hawk import HawkError, HawkPipeline, SamplingParams
from hawk.drafters.parts import drafters_mark
from hawk.evaluation import run as module
from hawk.evaluation.drawn_on import DRAWN_ON, NOT_RECORDED, machines_of, undated
from hawk.evaluation.elsewhere import Drawing, as_drawn, drawing_promises_tokens
from hawk.evaluation.prompt_sets import PromptItem, PromptSet
from hawk.evaluation.run import (
    CONTROL,
    draw_all,
    drawn_by,
    eval_job,
    eval_methods,
    image_path,
    kept_batch,
    record_path,
    seed_of,
)
from hawk.models.loading import load_on

PROMPTS = PromptSet("text", tuple(PromptItem(str(i), text) for i, text in enumerate(["a cat", "red apple", "on blue"])))


@pytest.fixture(scope="module")
def pipe(saved_model) -> HawkPipeline:
    return HawkPipeline.from_pretrained(saved_model, "cpu", "float64")


def job_of(pipe, names="hawk,medusa", prompts=PROMPTS, images=2, batch=4, params=None):
    return eval_job(pipe, eval_methods(names, pipe.model.drafting), prompts, images, batch, params)


@pytest.fixture
def drawings(monkeypatch) -> list[tuple[str, int]]:
    """The method and the number of images of every batch that is drawn."""
    seen, draw = [], module.draw_batch

    def counted(pipe, job, method, pairs):
        seen.append((method, len(pairs)))
        return draw(pipe, job, method, pairs)

    monkeypatch.setattr(module, "draw_batch", counted)
    return seen


def test_seeds_depend_on_prompt_and_image_only():
    assert seed_of("17", 2) == 5176374044678039742, "a seed never changes between versions"
    seeds = {seed_of(prompt, image, control) for prompt in "abc" for image in range(20) for control in (False, True)}
    assert len(seeds) == 120
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of("a\n1", 1) != seed_of("a", 11)


def test_plain_ar_and_the_control_are_always_drawn(pipe):
    assert eval_methods("hawk, ar,medusa,hawk", pipe.model.drafting) == ("ar", CONTROL, "hawk", "medusa")
    for nothing in ("", " ,"):
        with pytest.raises(HawkError, match="no method given: name some with commas between, of ar, medusa"):
            eval_methods(nothing, pipe.model.drafting)


def test_every_method_draws_each_image_once(pipe, tmp_path, drawings):
    job, seen = job_of(pipe), []
    draw_all(pipe, job, tmp_path, lambda *progress: seen.append(progress))
    assert drawings == [(name, size) for size in (4, 2) for name in ("ar", CONTROL, "hawk", "medusa")]
    assert seen[0] == (4, 24, "ar")
    assert seen[-1] == (24, 24, "medusa")
    plain, control, hawk, medusa = (drawn_by(job, tmp_path, name) for name in job.methods)
    assert torch.equal(plain.tokens, hawk.tokens)
    assert not torch.equal(plain.tokens, control.tokens)
    assert not torch.equal(plain.tokens, medusa.tokens)
    names = ["0000-0", "0000-1", "0001-0", "0001-1", "0002-0", "0002-1"]
    assert [path.stem for path in plain.paths] == names
    output = pipe("red apple", seed=seed_of("1", 1), method="ar")
    assert torch.equal(output.tokens[0], plain.tokens[3])
    with Image.open(image_path(tmp_path, "hawk", 1, 1)) as image:
        assert image.tobytes() == output.images[0].tobytes()
        assert (image.text["prompt"], image.text["method"]) == ("red apple", "hawk")
    assert plain.nfe.tolist() == [24.0] * 6


def test_a_rerun_draws_only_what_is_missing(pipe, tmp_path, drawings):
    job = job_of(pipe)
    draw_all(pipe, job, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    drawings.clear()
    draw_all(pipe, job, tmp_path)
    assert drawings == []
    record_path(tmp_path, "medusa", 1).unlink()
    image_path(tmp_path, "ar", 0, 1).unlink()
    record_path(tmp_path, "hawk", 1).write_bytes(b"damaged")
    draw_all(pipe, job, tmp_path)
    assert drawings == [("ar", 4), ("hawk", 2), ("medusa", 2)]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_every_machine_that_drew_is_listed_once(pipe, tmp_path, monkeypatch):
    job = job_of(pipe, "ar")
    machine = {"dtype": "float64", "device": "cpu", "processor": "one", "threads": 1}

    def drawn_by_machine(**facts):
        monkeypatch.setattr(module, "machine_facts", lambda device, dtype: {**machine, **facts})
        draw_all(pipe, job, tmp_path)
        return [(each["processor"], each["date"]) for each in machines_of(tmp_path)]

    first = [("one", "2026-01-01")]
    assert drawn_by_machine(date="2026-01-01") == first
    assert drawn_by_machine(processor="two", date="2026-01-02") == first, "nothing was left to draw"
    record_path(tmp_path, "ar", 1).unlink()
    assert drawn_by_machine(date="2026-01-03") == first, "another day is no other machine"
    record_path(tmp_path, "ar", 1).unlink()
    assert drawn_by_machine(processor="two", date="2026-01-04") == [*first, ("two", "2026-01-04")]


def test_batches_of_an_older_version_are_not_said_to_be_of_this_machine(pipe, tmp_path):
    job = job_of(pipe, "ar")
    draw_all(pipe, job, tmp_path)
    (own,) = machines_of(tmp_path)
    (tmp_path / DRAWN_ON).unlink()
    record_path(tmp_path, "ar", 1).unlink()
    draw_all(pipe, job, tmp_path)
    assert machines_of(tmp_path) == [{"dtype": "float64", "device": "cpu", "processor": NOT_RECORDED}, own]


@pytest.mark.parametrize("content", ["[", "{}", "[1]", '[{"processor": "one"}]'])
def test_a_damaged_list_of_machines_is_refused(tmp_path, content):
    (tmp_path / DRAWN_ON).write_text(content)
    with pytest.raises(HawkError, match="copy it again, or remove it") as error:
        machines_of(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("loaded", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("drawn", ["float32", "float16", "float64"])
def test_a_job_is_that_of_the_drawing_in_whatever_dtype_the_scorer_loads(saved_model, loaded, drawn):
    """The mark of drafters depends on their dtype and on whether they are packed."""
    there, here = (HawkPipeline.from_pretrained(saved_model, "cpu", dtype) for dtype in (drawn, loaded))
    job = as_drawn(here, job_of(here), Drawing("cpu", drawn))
    assert job.identity() == job_of(there).identity()
    assert drawing_promises_tokens(here, job) == drawing_promises_tokens(there, job)


def test_drafters_of_a_gpu_are_cast_and_not_packed(saved_model):
    here = HawkPipeline.from_pretrained(saved_model, "cpu", "float32")
    parts = load_on(saved_model, torch.device("cpu"), "float64", None).drafting
    for part in parts.modules:
        part.to(torch.bfloat16)
    job = as_drawn(here, job_of(here), Drawing("cuda", "bfloat16"))
    assert (job.device, job.dtype, job.drafters) == ("cuda", "bfloat16", drafters_mark(parts))
    assert job.drafters != job_of(here).drafters
    assert not drawing_promises_tokens(here, job)


@pytest.mark.proofs
def test_a_continued_run_takes_the_same_steps(pipe, tmp_path):
    """What `hawk` learnt about its drafts is kept with each batch."""
    job = job_of(pipe, "hawk", images=4, batch=1)
    draw_all(pipe, job, tmp_path)
    whole = drawn_by(job, tmp_path, "hawk").nfe
    skills = [kept_batch(job, tmp_path, "hawk", number).skill for number in range(12)]
    for number in range(5, 12):
        record_path(tmp_path, "hawk", number).unlink()
    pipe.skills.known.clear()
    draw_all(pipe, job, tmp_path)
    assert torch.equal(drawn_by(job, tmp_path, "hawk").nfe, whole)
    assert skills == [kept_batch(job, tmp_path, "hawk", number).skill for number in range(12)]


def test_more_methods_can_be_drawn_later(pipe, tmp_path, drawings):
    draw_all(pipe, job_of(pipe, "hawk"), tmp_path)
    drawings.clear()
    draw_all(pipe, job_of(pipe, "scd"), tmp_path)
    assert {method for method, _ in drawings} == {"scd"}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"images": 3}, "images of a prompt: 2 there, 3 asked for"),
        ({"params": SamplingParams(temperature=0.5)}, "temperature: 0.8 there, 0.5 asked for"),
        ({"prompts": PromptSet("text", PROMPTS.items[:2])}, "prompts: 3 there, 2 asked for"),
        ({"prompts": PromptSet("text", (*PROMPTS.items[:2], PromptItem("2", "on red")))}, "prompts' sha256: "),
    ],
)
def test_the_folder_of_another_job_is_refused(pipe, tmp_path, changes, what):
    draw_all(pipe, job_of(pipe, "ar", images=2), tmp_path)
    with pytest.raises(HawkError, match="holds pictures of another job") as error:
        draw_all(pipe, job_of(pipe, "ar", **{"images": 2, **changes}), tmp_path)
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def test_another_model_is_another_job(pipe, tmp_path):
    job = job_of(pipe, "ar")
    draw_all(pipe, job, tmp_path)
    document = json.loads((tmp_path / "job.json").read_text())
    (tmp_path / "job.json").write_text(json.dumps(document | {"fingerprint": "0" * 16}))
    with pytest.raises(HawkError, match="fingerprint: 0000000000000000 there"):
        draw_all(pipe, job, tmp_path)


def test_a_folder_with_other_files_is_refused(pipe, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(HawkError, match="holds other files: name a new folder"):
        draw_all(pipe, job_of(pipe), tmp_path)


def test_a_picture_that_is_missing_at_the_end_is_named(pipe, tmp_path):
    job = job_of(pipe, "ar")
    draw_all(pipe, job, tmp_path)
    record_path(tmp_path, "ar", 0).unlink()
    with pytest.raises(HawkError, match=r"batch-00000.safetensors is missing or damaged: run the same command again"):
        drawn_by(job, tmp_path, "ar")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")
def test_kills_at_random_moments_change_nothing(saved_model, tmp_path):
    """At most one batch is drawn again for each kill, and the report is that of a run without kills."""
    (tmp_path / "prompts.txt").write_text("a cat\nred apple\non blue\ngreen cat\n")
    words = ["--methods", "hawk,medusa", "--prompts", str(tmp_path / "prompts.txt"), "--images", "6"]
    words += ["--batch-size", "3", "-m", str(saved_model), "--device", "cpu", "--dtype", "float64"]
    words += ["--metrics", "tokens,tests,frechet,vendi", "--resamples", "20", "--threads", "1"]
    kills, driver = 5, Path(__file__).parent / "fixtures" / "killed_eval.py"
    paths = os.pathsep.join(map(str, (Path(__file__).parent, Path(module.__file__).parents[2])))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HAWK_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, str(driver), str(kills), "7", str(tmp_path), *words]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    killed = result["codes"].count(-signal.SIGKILL)
    assert killed >= 3, result
    batches = 4 * 8
    assert batches <= result["drawn"] <= batches + killed
    whole, again = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "killed"))
    assert without_time(again) == without_time(whole)
    assert pictures_in(tmp_path / "killed") == pictures_in(tmp_path / "whole")


def pictures_in(folder: Path) -> dict[Path, bytes]:
    """The files of all pictures in a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}


def without_time(document: dict) -> dict:
    """A report without what differs between two runs of one job: the command's folder, seconds, and the date."""
    environment = undated(document["environment"])
    decoding = [{key: value for key, value in row.items() if key != "seconds"} for row in document["decoding"]]
    machines = [undated(machine) for machine in document["drawn on"]]
    return {**document, "command": "", "environment": environment, "drawn on": machines, "decoding": decoding}


def test_the_stand_in_features_tell_pictures_apart():
    pictures = torch.stack((torch.zeros(3, 8, 8), torch.full((3, 8, 8), 255.0))).to(torch.uint8)
    first, second = coarse("coarse").features(pictures)
    assert not torch.equal(first, second)
