"""The suite of large targets, on tiny shapes: every series draws the same tokens, given drafts are right as asked."""

import json
import sys
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import GenerationMixin
from typer.testing import CliRunner

from hawk.cli.app import app
from hawk.decoding.grid import Grid
from hawk.measure import targets
from hawk.measure.published import chameleon_cut, janus_pro, llamagen_xl
from hawk.measure.targets import TargetsSweep, best_window, chance_of, given_drafts, run_targets

TINY = {"layers": 1, "width": 128, "codes": 64}
SWEEP = TargetsSweep(
    {
        "LlamaGen": partial(llamagen_xl, **TINY),
        "Janus": partial(janus_pro, **TINY),
        "Chameleon": partial(chameleon_cut, **TINY),
    },
    Grid(2, 8),
    accept_lengths=(1.5, 6.0),
    rounds=1,
)


@pytest.fixture(scope="module")
def result():
    return run_targets(SWEEP)


def test_every_series_draws_the_tokens_of_plain_ar(result):
    assert len(result.series) == 3 * (3 + 2)
    for one in result.series:
        assert one.identical is (None if one.series == "transformers" else True)
        assert one.seconds_per_token > 0
    assert {one.speedup_vs_ar for one in result.series if one.series == "ar"} == {1.0}
    assert {one.speedup_vs_transformers for one in result.series if one.series == "transformers"} == {1.0}


def test_better_drafts_need_fewer_forwards(result):
    for name in SWEEP.targets:
        lengths = {one.given: one.accept_length for one in result.series if one.target == name and one.given}
        assert 1 < lengths[1.5] < lengths[6.0]


def test_the_sizes_are_those_of_the_drawing_layers(result):
    by_name = {facts.target: facts.weight_bytes for facts in result.targets}
    layer = 4 * 128 * 128 + 3 * 128 * 352 + 2 * 128  # attention, SwiGLU and two norms
    janus = layer + 128 + 2 * 64 * 128  # final norm, image embeddings and the output layer, at least
    assert 2 * janus < by_name["Janus"] < 4 * janus  # float16


@pytest.mark.proofs
def test_each_target_is_handed_over_when_it_is_measured():
    measured = []

    def second(grid: Grid, dtype: torch.dtype):
        assert [one.targets[0].target for one in measured] == ["first"]
        return janus_pro(grid, dtype, **TINY)

    sweep = replace(SWEEP, targets={"first": partial(janus_pro, **TINY), "second": second}, accept_lengths=())
    result = run_targets(sweep, on_target=measured.append)
    assert [one for part in measured for one in part.series] == result.series
    assert [one.targets for one in measured] == [[facts] for facts in result.targets]


@pytest.mark.parametrize(("make", "side"), [(llamagen_xl, 24), (janus_pro, 24), (chameleon_cut, 32)])
def test_steps_are_timed_in_the_middle_of_an_image_of_the_published_size(make, side):
    assert make(Grid(2, 8), torch.float32, **TINY).target.grid == Grid(side, side)


def test_janus_draws_where_transformers_cannot_make_its_cache(monkeypatch):
    def fails(*given, **named):
        raise TypeError("_prepare_static_cache() missing 1 required positional argument")

    monkeypatch.setattr(GenerationMixin, "_prepare_static_cache", fails)
    assert len(janus_pro(Grid(2, 8), torch.float32, **TINY).generate(16, 0)) == 16


@pytest.mark.parametrize("chance", [0.0, 0.4, 1.0])
def test_a_given_draft_is_right_with_its_chance(chance):
    truth = torch.arange(2000) % 7
    drafts = given_drafts(truth, 7, chance, torch.Generator().manual_seed(0))
    assert (drafts == truth).float().mean().item() == pytest.approx(chance, abs=0.04)
    assert drafts.min() >= 0
    assert drafts.max() < 7


@pytest.mark.proofs
def test_a_target_is_freed_before_the_next_is_made():
    kept = []

    def make(grid: Grid, dtype: torch.dtype):
        assert all(old() is None for old in kept)
        made = janus_pro(grid, dtype, **TINY)
        kept.append(weakref.ref(made.target))
        return made

    run_targets(replace(SWEEP, targets={"first": make, "second": make}, accept_lengths=()))
    assert len(kept) == 2


def test_the_window_follows_from_the_accept_length_and_the_costs():
    free = {1: 1.0, 4: 1.0, 16: 1.0}
    dear = {1: 1.0, 4: 4.0, 16: 16.0}
    assert best_window(4.2, free).reach == 15
    assert best_window(4.2, dear).reach == 0
    assert best_window(4.2, {1: 1.0, 4: 1.1, 16: 3.0}).reach == 3
    assert chance_of(4.0) == 0.75


def test_the_command_prints_tables_and_a_line_of_json(result, monkeypatch, tmp_path):
    monkeypatch.setattr(targets, "run_targets", lambda sweep, on_progress, on_target: on_target(result) or result)
    ran = CliRunner().invoke(app, ["bench", "--suite", "targets", "--plots", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout.splitlines()[-1])
    assert {row["series"] for row in document["series"]} == {"transformers", "ar", "hawk"}
    assert document["environment"]["settings"]["grid"] == [2, 8]
    assert (tmp_path / "targets.png").stat().st_size > 10_000
    assert "Janus" in ran.stdout
    assert "ms a step by its nodes" in ran.stdout


def test_without_transformers_the_suite_says_how_to_get_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "hawk.measure.targets")
    monkeypatch.delitem(sys.modules, "hawk.measure.published")
    monkeypatch.setitem(sys.modules, "transformers", None)
    ran = CliRunner().invoke(app, ["bench", "--suite", "targets"])
    assert ran.exit_code == 2
    assert "compares with transformers: run pip install" in ran.output


@pytest.mark.parametrize(
    ("suite", "option"),
    [
        ("targets", ["--prompts", "3"]),
        ("targets", ["--model", "bundled"]),
        ("steps", ["--plots", "x"]),
        ("scaling", ["--temperature", "1"]),
        ("paper", ["--plots", "x"]),
    ],
)
def test_an_option_that_a_suite_would_ignore_is_refused(suite, option):
    ran = CliRunner().invoke(app, ["bench", "--suite", suite, *option])
    assert ran.exit_code != 0
    assert f"{option[0]} means nothing for the suite {suite}" in ran.output
