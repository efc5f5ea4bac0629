"""The fair suite: settings, shapes, kept rounds, sentences, and the command line."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hawk import HawkError, HawkPipeline
from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.stats import Stats
from hawk.drafters.methods import METHODS, build_drafter
from hawk.drafters.settings import TreeLimits
from hawk.intervals import Interval
from hawk.measure import fair, rounds
from hawk.measure.fair import EqualNodes, FairRow, run_fair, sentence_of_nodes, sentences, speedup_interval
from hawk.measure.methods import MethodRow, TimedBatch, summarise
from hawk.measure.rounds import KeptRound, read_round
from hawk.measure.shapes import Entry, Shape, authors_entries, entry_of_nodes, fair_settings, ladder
from hawk.proofs.tiny import tiny_target
from test_cli import files, hawk_command, last_json, refused

PROMPTS = ["a red apple", "a cat on blue"]
METHODS_TRIED = ["sjd"]


@pytest.fixture(scope="module")
def pipe(saved_model: Path) -> HawkPipeline:
    return HawkPipeline.from_pretrained(saved_model, "cpu", "float32")


@pytest.fixture
def one_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite with the model's default setting alone, and with little to count at equal nodes."""
    monkeypatch.setattr(
        fair, "fair_settings", lambda *given: replace(found := fair_settings(*given), settings=found.settings[:1])
    )
    monkeypatch.setattr(fair, "NODES", (32,))
    monkeypatch.setattr(fair, "EQUAL_IMAGES", 1)


# --- settings and shapes


def test_equal_settings_are_merged_and_a_top_k_above_the_vocabulary_is_left_out() -> None:
    cool = SamplingParams(temperature=0.2, cfg_scale=1.5)
    found = fair_settings(cool, 16384)
    assert [setting.params for setting in found.settings] == [
        cool,
        replace(cool, temperature=1.0),
        replace(cool, temperature=1.0, cfg_scale=3.0),
        replace(cool, temperature=1.0, top_k=1000),
    ]
    assert found.left_out == []
    small = fair_settings(SamplingParams(cfg_scale=3.0), 512)
    assert [setting.name for setting in small.settings] == [
        "the model's default; temperature 1, CFG 3",
        "temperature 1, CFG 1.5",
    ]
    assert small.left_out == [
        "temperature 1, CFG 1.5, top-k 1000 is left out: the model has 512 image tokens, so that top-k 1000 would keep "
        "all of them"
    ]


def test_rivals_are_given_their_authors_shapes_and_a_ladder() -> None:
    grid = Grid(16, 16)
    assert authors_entries(["sjd", "scd"], grid) == [Entry("sjd"), Entry("sjd", Shape(96)), Entry("scd")]
    assert [entry.label for entry in ladder("sjd", grid)] == [f"window {w}" for w in (16, 96, 32, 48, 64)]
    assert [entry.label for entry in ladder("sjd-pac", grid)] == [f"window {w}" for w in (53, 5, 21, 37)]
    assert [entry.label for entry in ladder("eagle", grid)] == ["own", *(f"{n} drafts" for n in (4, 8, 16, 32, 64))]
    assert ladder("hawk", grid) == [Entry("hawk")]
    assert [entry.label for entry in ladder("scd", Grid(4, 6))] == ["window 64", "window 16"]  # clamped to 23 and 16


@pytest.mark.parametrize("nodes", [32, 64])
def test_methods_verify_equal_nodes(nodes: int) -> None:
    target = tiny_target(0)
    for name in ("sjd", "scd", "scd-maximal", "sjd-pac", "hawk"):
        limits = TreeLimits(**entry_of_nodes(name, nodes).shape.arguments)
        drafter = build_drafter(METHODS[name], None, target, limits)
        assert drafter.max_nodes == nodes, name


# --- a run: what is drawn, kept and continued


class KilledError(Exception):
    pass


def clocked(seconds: dict[str, float]) -> Any:
    """`time_batch` whose seconds follow from the method and the window, so that runs can be compared."""
    real = rounds.time_batch

    def timed(pipe: Any, method: str, jobs: Any, settings: Any) -> TimedBatch:
        drawn = real(pipe, method, jobs, settings)
        slower = settings.get("num_draft_tokens", 0) / 1000 + settings.get("window", 16) / 10_000
        return replace(drawn, seconds=seconds.get(method, 1.0) + slower + jobs[0][1] % 7 / 1e5)

    return timed


def without_date(result: fair.FairResult) -> dict[str, Any]:
    document = json.loads(json.dumps(result.to_json()))
    del document["environment"]["date"]
    return document


@pytest.mark.proofs
def test_a_run_that_was_killed_ends_as_one_that_was_not(
    pipe: HawkPipeline, tmp_path: Path, one_setting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "time_batch", clocked({"ar": 2.0, "hawk": 0.5}))
    seen: list[tuple[int, int, str]] = []
    whole = run_fair(pipe, METHODS_TRIED, PROMPTS, tmp_path / "whole", 1, (1, 2), lambda *told: seen.append(told))
    assert seen[-1][0] == seen[-1][1], "the bar ends at its total"

    timed = rounds.time_batch
    for kill in (0, 9):
        left = [kill]

        def dying(*args: Any, left: list[int] = left) -> TimedBatch:
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            return timed(*args)

        monkeypatch.setattr(rounds, "time_batch", dying)
        before = len(list(tmp_path.glob("killed/**/*.json")))
        with pytest.raises(KilledError):
            run_fair(pipe, METHODS_TRIED, PROMPTS, tmp_path / "killed", 1, (1, 2))
        assert len(list(tmp_path.glob("killed/**/*.json"))) >= before + kill // 2  # a round may be drawn twice
    monkeypatch.setattr(rounds, "time_batch", timed)
    next(tmp_path.glob("killed/*/batch-1/search/0000-sjd.json")).write_text("{")  # damaged: drawn again
    resumed = run_fair(pipe, METHODS_TRIED, PROMPTS, tmp_path / "killed", 1, (1, 2))
    assert without_date(resumed) == without_date(whole)

    monkeypatch.setattr(rounds, "time_batch", lambda *_: pytest.fail("a finished round was drawn again"))
    again = run_fair(pipe, METHODS_TRIED, PROMPTS, tmp_path / "whole", 1, (1, 2))
    assert without_date(again) == without_date(whole)


@pytest.mark.proofs
def test_the_rows_of_a_run(pipe: HawkPipeline, tmp_path: Path, one_setting: None) -> None:
    result = run_fair(pipe, ["sjd", "medusa"], PROMPTS, tmp_path, 1, (1,))
    for row in result.rows:
        assert row.setting == "the model's default"
        assert row.row.images == 2
        assert row.row.nfe * row.row.accept_length == pytest.approx(24)
        if row.row.method in ("ar", "hawk"):
            assert row.row.identical_to_ar == 1
        assert row.speedup is not None
        assert row.speedup.value == pytest.approx(row.row.speedup_vs_ar)
        assert row.speedup.low <= row.speedup.value <= row.speedup.high
    assert [row.row.method for row in result.rows][:3] == ["ar", "sjd", "sjd"]
    assert result.rows[0].chosen == result.rows[-1].chosen == "authors"
    for method in ("sjd", "medusa"):
        assert sum("best" in row.chosen for row in result.rows if row.row.method == method) == 1
    assert [each.nodes for each in result.equal_nodes] == [32]
    assert result.equal_nodes[0].nfe.keys() == {"sjd", "medusa", "hawk"}
    assert len(result.summary) == 2 + 1
    paths = fair.draw_plots(result, tmp_path / "plots")
    assert [path.name for path in paths] == ["fair.png"]


@pytest.mark.proofs
def test_the_search_sees_no_image_of_the_table(pipe: HawkPipeline, tmp_path: Path, one_setting: None) -> None:
    run_fair(pipe, ["sjd"], PROMPTS, tmp_path, 1, (1,))
    drawn = {"search": set[str](), "table": set[str]()}
    for stage, tokens in drawn.items():
        for path in tmp_path.glob(f"*/batch-1/{stage}/*.json"):
            if stage == "search" or not path.name.startswith("0000"):  # round 0 of the table is a warm-up
                tokens.add(str(json.loads(path.read_text())["tokens"]))
    assert drawn["search"]
    assert not drawn["search"] & drawn["table"]


def test_the_folder_of_another_job_is_refused(pipe: HawkPipeline, tmp_path: Path) -> None:
    rounds.open_rounds(pipe, PROMPTS, 1, tmp_path / "run")
    rounds.open_rounds(pipe, PROMPTS, 1, tmp_path / "run")
    with pytest.raises(HawkError, match=r"holds measurements of another job \(seeds: 1 there, 2 asked for\)"):
        rounds.open_rounds(pipe, PROMPTS, 2, tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(HawkError, match="holds other files: name a new folder for --out"):
        rounds.open_rounds(pipe, PROMPTS, 1, tmp_path / "mine")
    with pytest.raises(HawkError, match="give one or two sizes, all 1 or more"):
        run_fair(pipe, [], PROMPTS, tmp_path / "new", 1, (1, 2, 3))


def test_a_round_survives_its_file_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    stats = Stats(2, 5, 48, 60, [3, 2], [2, 1], {"stale": 4}, frozenset({"horizontal"}), 0.5)
    kept = KeptRound(TimedBatch(1.5, stats, torch.tensor([[1, 2], [3, 4]])), 0.25)
    path = tmp_path / "0001-ar.json"
    path.write_text(json.dumps(kept.to_json()))
    found = read_round(path)
    assert found is not None
    assert (found.batch.stats, found.batch.seconds, found.skill) == (stats, 1.5, 0.25)
    assert torch.equal(found.batch.tokens, kept.batch.tokens)
    for text in ("", "{", "[]", "{}", json.dumps(kept.to_json() | {"stats": 3})):
        path.write_text(text)
        assert read_round(path) is None


# --- figures and sentences


def timed(seconds: float, nfe: int = 4) -> TimedBatch:
    return TimedBatch(seconds, Stats(images=1, nfe=nfe, committed=4, nodes=nfe), torch.zeros(1, 4, dtype=torch.long))


def test_the_speedup_is_that_of_the_row_with_an_interval_over_the_same_images() -> None:
    plain, ours = [timed(float(i)) for i in range(2, 10)], [timed(i / 2) for i in range(2, 10)]
    found = speedup_interval(ours, plain)
    assert found is not None
    assert (found.value, found.low, found.high) == (2, 2, 2)  # every image is drawn twice as fast
    assert found.value == summarise("scd", ours, plain).speedup_vs_ar
    assert speedup_interval(ours[:1], plain[:1]) is None


def row(method: str, nfe: float, seconds: float, span: tuple[float, float] | None = None) -> FairRow:
    figures = asdict(summarise(method, [timed(1.0)], [timed(1.0)])) | {"nfe": float(nfe), "seconds_per_image": seconds}
    interval = None if span is None else Interval(sum(span) / 2, *span)
    return FairRow("warm", 8, "window 9" if method == "scd" else "", "best", interval, MethodRow(**figures))


def test_sentences_say_whether_hawk_is_first_and_count_no_lossy_method() -> None:
    lossy, plain = row("lantern", 1, 0.01), row("ar", 16, 4.0)
    first = sentences([plain, row("scd", 8, 2.0, (1.8, 2.2)), row("hawk", 4, 1.5, (2.3, 2.6)), lossy])
    assert first == [
        "warm, batch 8: hawk is first in forwards an image (hawk 4.0, the best other lossless method, scd (window 9), "
        "8.0).",
        "warm, batch 8: hawk is first in seconds an image (hawk 1.50, the best other lossless method, scd (window 9), "
        "2.00).",
    ]
    behind = sentences([plain, row("scd", 8, 1.4, (1.8, 2.4)), row("hawk", 9, 1.5, (2.3, 2.6)), lossy])
    assert "hawk is not first in forwards an image (hawk 9.0" in behind[0]
    assert "hawk is not first in seconds an image (hawk 1.50" in behind[1]
    assert behind[1].endswith(" The intervals of scd overlap that of hawk.")
    assert "rival" not in sentences([row("ar", 16, 1.0), row("hawk", 4, 1.5)])[0]


def test_sentences_of_equal_nodes() -> None:
    fewer = EqualNodes("warm", 32, 20.0, "scd", 30.0, {})
    assert sentence_of_nodes(fewer) == (
        "warm, 32 nodes a step: hawk needs 1.50x fewer than the best rival (20.0 forwards an image, scd 30.0)."
    )
    assert "hawk needs 2.00x more than" in sentence_of_nodes(replace(fewer, hawk=60.0))


# --- the command line


@pytest.mark.proofs
def test_the_command_measures_keeps_and_writes(saved_model: Path, empty_folder: Path, one_setting: None) -> None:
    Path("mine.txt").write_text("a cat\na red apple\n")
    call = ("bench", "--suite", "fair", "--methods", "sjd", "--prompts", "mine.txt", "--batch", "2", "--out", "run")
    call += ("-m", saved_model, "--json-out", "fair.json", "--plots", "plots", "--threads", torch.get_num_threads())
    done = hawk_command(*call)
    document = last_json(done)
    assert json.loads(Path("fair.json").read_text()) == document
    assert done.stderr.startswith("round 1 of ")  # no bar is drawn where stderr is no terminal
    assert {"rows", "equal_nodes", "summary", "left_out", "environment"} == document.keys()
    assert document["environment"]["settings"] == {"prompts": 2, "seeds": 1, "batches": [2]}
    text = " ".join(done.stdout.split())
    assert "the model's default, 2 images at a time" in text
    assert "top-k 1000 is left out" in text
    assert "hawk is" in text
    assert "plots/fair.png" in files(empty_folder)
    kept = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*.json")}
    last_json(hawk_command(*call))
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*.json")} == kept


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--suite", "fair"), "the suite fair takes an hour and needs --out"),
        (("--suite", "fair", "--out", "run", "--temperature", "1"), "--temperature means nothing for the suite fair"),
        (("--suite", "fair", "--out", "run", "--window", "9"), "--window means nothing for the suite fair"),
        (("--suite", "fair", "--out", "run", "--batch", "1,2,3"), "--batch takes one or two whole numbers"),
        (("--suite", "fair", "--out", "run", "--batch", "0"), "from 1 to 100000, not '0'"),
        (("--suite", "fair", "--out", "run", "--methods", "eagel"), "unknown method 'eagel'"),
        (("--suite", "peers", "--out", "run"), "--out means nothing for the suite peers"),
        (("--suite", "steps", "--out", "run"), "--out means nothing for the suite steps"),
        (("--suite", "peers", "--batch", "1,8"), "--batch takes a whole number"),
    ],
)
def test_bad_calls(saved_model: Path, empty_folder: Path, words: tuple[str, ...], message: str) -> None:
    assert message in refused("bench", "-m", saved_model, *words)
    assert files(empty_folder) == []
