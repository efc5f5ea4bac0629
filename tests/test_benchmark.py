"""The method suites: plain AR comes first, methods take turns, and medians and ratios are computed as documented."""

import dataclasses
import io
import json
import subprocess
import sys

import pytest
import torch

from hawk import HawkError, HawkPipeline
from hawk.cli.tables import bench_table
from hawk.decoding.stats import Stats
from hawk.drafters.feature import FeatureConfig, FeatureDrafter
from hawk.drafters.heads import DraftHeads, HeadsConfig
from hawk.drafters.methods import METHODS
from hawk.drafters.parts import DraftParts
from hawk.drafters.settings import FusedSettings
from hawk.drafters.spatial import SpatialConfig, SpatialDrafter
from hawk.machine import cpu_model
from hawk.measure import methods as module
from hawk.measure.methods import (
    TimedBatch,
    acceptance_by_depth,
    bench_methods,
    bench_prompts,
    run_benchmark,
    summarise,
)
from hawk.measure.prompts import BENCH_PROMPTS
from hawk.proofs.suite import identical_images
from hawk.training.texts import PromptFile


@pytest.fixture(scope="module")
def pipe(saved_model) -> HawkPipeline:
    return HawkPipeline.from_pretrained(saved_model, "cpu", "float64")


PROMPTS = ["a red apple", "a cat on blue"]


def test_rows_of_a_real_run(pipe):
    seen = []
    names = ["hawk", "medusa", "hawk"]
    result = run_benchmark(pipe, names, PROMPTS, seeds=2, on_progress=lambda *progress: seen.append(progress))
    assert [row.method for row in result.rows] == ["ar", "hawk", "medusa"]
    plain, hawk, medusa = result.rows
    assert (plain.nfe, plain.accept_length, plain.speedup_vs_ar, plain.identical_to_ar) == (24, 1, 1, 1)
    assert hawk.identical_to_ar == 1
    assert medusa.identical_to_ar < 1
    for row in (hawk, medusa):
        assert row.images == 4
        assert row.nfe * row.accept_length == pytest.approx(24)
        assert 0 < row.acceptance_rate[0] < 1
        assert row.speedup_vs_ar == pytest.approx(plain.seconds_per_image / row.seconds_per_image)
    assert [done for done, _, _ in seen] == list(range(1, 13))
    assert seen[0][2] != seen[3][2], "each method goes first in its turn"


def test_the_document_is_json_and_names_everything_that_the_figures_depend_on(pipe):
    document = json.loads(json.dumps(run_benchmark(pipe, [], PROMPTS[:1], overrides={"guidance_scale": 1.5}).to_json()))
    wanted = {"method", "nfe", "accept_length", "seconds_per_image", "speedup_vs_ar", "identical_to_ar"}
    assert wanted <= document["rows"][0].keys()
    environment = document["environment"]
    assert {"seed", "dtype", "device", "processor", "threads", "versions", "date", "settings"} <= environment.keys()
    assert environment["versions"].keys() == {"python", "torch", "hawk"}
    assert environment["settings"]["cfg_scale"] == 1.5
    assert environment["settings"]["temperature"] == 0.8


@pytest.mark.proofs
def test_batches_draw_the_same_images(pipe):
    single, batched = (run_benchmark(pipe, ["hawk"], PROMPTS, seeds=2, batch=batch).rows[1] for batch in (1, 3))
    assert batched.identical_to_ar == single.identical_to_ar == 1
    assert batched.images == 4
    assert batched.accepted_by_source == single.accepted_by_source


def timed(seconds: float, nfe: int, tokens: list[int], images: int = 1) -> TimedBatch:
    stats = Stats(images=images, nfe=nfe, committed=4 * images, nodes=2 * nfe)
    return TimedBatch(seconds, stats, torch.tensor([tokens] * images))


def test_summary_takes_medians_and_shares():
    plain = [timed(seconds, 4, [0, 1, 2, 3]) for seconds in (1.0, 2.0, 9.0)]
    ours = [timed(0.5, 2, [0, 1, 2, 3]), timed(1.0, 1, [0, 1, 2, 9]), timed(4.0, 3, [0, 1, 2, 3])]
    row = summarise("hawk", ours, plain)
    assert row.seconds_per_image == 1.0
    assert row.speedup_vs_ar == 2.0
    assert row.nfe == 2.0
    assert row.accept_length == 2.0
    assert row.identical_to_ar == pytest.approx(2 / 3)
    assert row.ms_per_forward == pytest.approx(1000)
    assert row.nodes_per_forward == 2.0


def test_a_batch_counts_for_each_of_its_images():
    row = summarise("hawk", [timed(1.0, 2, [0] * 4, images=3), timed(1.0, 4, [0] * 4)], [timed(1.0, 4, [0] * 4)] * 2)
    assert row.images == 4
    assert row.nfe == pytest.approx((3 * 2 + 4) / 4)
    assert row.accept_length == pytest.approx(16 / 10)


def test_acceptance_is_pooled_over_batches_before_dividing():
    first = Stats(verified_by_depth=[10, 5, 2, 1], accepted_by_depth=[5, 1, 0, 0])
    second = Stats(verified_by_depth=[30], accepted_by_depth=[27])
    assert acceptance_by_depth([first, second]) == [32 / 40, 1 / 5, 0.0]
    assert acceptance_by_depth([Stats()]) == []


def test_every_method_warms_up_and_the_order_rotates(pipe, monkeypatch):
    order = []

    def note(pipe, method, jobs, settings):
        order.append((method, jobs[0]))
        return timed(1.0, 4, [0, 1, 2, 3])

    monkeypatch.setattr(module, "time_batch", note)
    run_benchmark(pipe, ["medusa"], PROMPTS)
    warm, turns = order[:2], order[2:]
    assert {method for method, _ in warm} == {"ar", "medusa"}
    first, second = (PROMPTS[0], 0), (PROMPTS[1], 0)
    assert turns == [("ar", first), ("medusa", first), ("medusa", second), ("ar", second)]


@pytest.mark.parametrize(
    ("methods", "prompts", "seeds", "message"),
    [
        (["eagel"], PROMPTS, 1, "unknown method 'eagel'"),
        (["hawk"], ["a cat", ""], 1, "no word in it"),
        (["hawk"], PROMPTS, 0, "must be 1 or more"),
    ],
)
def test_bad_input_fails_before_anything_is_drawn(pipe, monkeypatch, methods, prompts, seeds, message):
    monkeypatch.setattr(module, "time_batch", lambda *_: pytest.fail("drew"))
    with pytest.raises(HawkError, match=message):
        run_benchmark(pipe, methods, prompts, seeds)


def test_prompts_are_a_number_or_a_file(tmp_path):
    assert bench_prompts("3") == list(BENCH_PROMPTS[:3])
    assert len(set(BENCH_PROMPTS)) == 32
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  a dog  \n")
    assert bench_prompts(str(path)) == ["a cat", "a dog"]
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    cases = {"0": "32 built-in", "33": "32 built-in", "-1": "no file", str(tmp_path): "no file"}
    cases |= {str(tmp_path / "empty.txt"): "no prompt", str(tmp_path / "binary.txt"): "not UTF-8"}
    for wanted, message in cases.items():
        with pytest.raises(HawkError, match=message):
            bench_prompts(wanted)


def test_a_prompt_file_is_read_alike_by_bench_and_by_train(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff# mine\n\na cat  \n# no\nein Äpfel #1\n", encoding="utf-8")
    assert bench_prompts(str(path)) == list(PromptFile.read(path).lines) == ["a cat", "ein Äpfel #1"]
    path.write_text("# nothing\n")
    for read in (lambda: bench_prompts(str(path)), lambda: PromptFile.read(path)):
        with pytest.raises(HawkError, match="holds no prompt: write one a line"):
            read()


def test_identical_images_counts_those_with_plain_ars_tokens(pipe):
    assert identical_images(pipe, PROMPTS) == 2

    class Unlike(HawkPipeline):
        """A pipeline whose method hawk draws one token of the last image wrongly."""

        def __call__(self, prompt, seed, method):
            output = super().__call__(prompt, seed=seed, method=method)
            if method == "hawk" and seed == 1:
                output.tokens[0, 0] += 1
            return output

    assert identical_images(Unlike(pipe.model, pipe.device, pipe.dtype), PROMPTS) == 1


def test_the_table_marks_what_each_method_keeps_of_plain_ar(pipe):
    from rich.console import Console

    result = run_benchmark(pipe, ["medusa", "hawk", "lantern"], PROMPTS[:1])
    assert [row.lossless for row in result.rows] == [True, True, True, False]
    halved = dataclasses.replace(result.rows[2], identical_to_ar=0.5)
    result = dataclasses.replace(result, rows=[*result.rows[:2], halved, result.rows[3]])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(bench_table(result))
    lines = {line.split()[0]: line for line in console.export_text().splitlines() if line.strip()}
    assert "dist." in lines["medusa"]
    assert "50%" in lines["hawk"]
    assert "lantern (lossy)" in lines["lantern"]
    assert "LOSSY" in lines["lantern"]
    assert all(len(line) <= 80 for line in lines.values())


def test_cpu_model_reads_the_systems_name(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert cpu_model(path) == "Some CPU @ 2 GHz"
    assert cpu_model(tmp_path / "none")


@pytest.mark.slow
def test_importing_hawk_is_quick():
    """It takes less than 0.3 s in a fresh process; the best of five runs counts, because the machine may be busy."""
    code = "import time; t = time.perf_counter(); import hawk; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    assert min(float(run.stdout) for run in runs) < 0.3


def test_suites_name_what_a_model_can_run_and_named_methods_come_first():
    heads = DraftParts(FusedSettings.unfitted(), DraftHeads(HeadsConfig(8)))
    feature, spatial = FeatureDrafter(FeatureConfig(8, heads=2)), SpatialDrafter(SpatialConfig(8, width=16, heads=2))
    everything = dataclasses.replace(heads, feature=feature, spatial=spatial)
    assert bench_methods("peers", None, everything) == (list(METHODS), {})
    missing = {"hawk-spatial": "spatial", "eagle": "feature", "eagle-topk": "feature", "lantern": "feature"}
    assert bench_methods("peers", None, heads) == ([name for name in METHODS if name not in missing], missing)
    assert bench_methods("peers", None, None)[0] == ["ar", "sjd", "scd", "scd-maximal", "sjd-pac", "hawk"]
    assert bench_methods("paper", None, heads)[0] == ["ar", "medusa", "hawk-vertical", "hawk-paper", "hawk"]
    assert bench_methods("peers", " scd, hawk,", None) == (["scd", "hawk"], {})
    with pytest.raises(HawkError, match="unknown suite 'all': choose one of paper, peers"):
        bench_methods("all", None, heads)
    with pytest.raises(HawkError, match="unknown method 'eagel'"):
        bench_methods("peers", "eagel", heads)
