"""The cost model of a step, and the simulation of many GPUs, against cases whose answers are known."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hawk.errors import HawkError
from hawk.measure.fleet import (
    Drawing,
    MeasuredStep,
    StepModel,
    cost_of,
    dollars_per_million,
    fit_steps,
    shapes_of,
)
from hawk.measure.fleet_queue import Fleet, Load, gpus_at_limit, simulate, wait_of

ROOT = Path(__file__).parents[1]
GPU = json.loads((ROOT / "benchmarks" / "gpu.json").read_text())
PLACES = [(nodes, images) for images in (1, 4) for nodes in (1, 8, 16, 32, 64, 128)]


def steps_of(model: StepModel) -> list[MeasuredStep]:
    return [MeasuredStep(nodes, images, model.seconds(nodes, images)) for nodes, images in PLACES]


@pytest.mark.parametrize(
    "model",
    [
        StepModel(read=4.9e-3, overhead=3e-3, window=5e-4, image=2e-4, row=5e-5),
        StepModel(read=5e-4, overhead=2.7e-3, window=0.0, image=0.0, row=1e-5),
        StepModel(read=1e-5, overhead=0.0, window=1e-4, image=3e-4, row=1e-6),
    ],
)
def test_a_model_is_found_again_from_its_own_steps(model: StepModel) -> None:
    fitted = fit_steps(steps_of(model), model.read)
    assert fitted.worst < 1e-3
    for nodes, images in ((24, 2), (48, 8)):
        assert fitted.model.seconds(nodes, images) == pytest.approx(model.seconds(nodes, images), rel=2e-3)


def test_a_step_is_never_below_reading_and_arithmetic() -> None:
    model = StepModel(read=2.0, overhead=0.0, window=0.0, image=0.0, row=1.0)
    assert model.seconds(1, 1) == pytest.approx(math.sqrt(5))
    assert model.seconds(100, 10) == pytest.approx(1000, rel=1e-5)
    assert all(model.seconds(n, i) >= max(2.0, n * i) for n, i in PLACES)


def test_the_measured_steps_of_a_gpu_are_fitted_within_a_tenth() -> None:
    shapes = shapes_of(GPU)
    assert [shape.name for shape in shapes] == ["bundled, 16x16", "775M, 24x24", "7B, 24x24"]
    assert [len(shape.steps) for shape in shapes] == [12, 12, 12]
    for shape in shapes:
        fitted = fit_steps(shape.steps, shape.read)
        assert fitted.residual <= fitted.worst < fitted.left_out < 0.1, shape.name
        parts = fitted.model
        assert min(parts.overhead, parts.window, parts.image, parts.row) >= 0


def test_both_documents_of_steps_are_read_and_others_refused() -> None:
    costs = [
        {
            "target": "t",
            "grid": [4, 6],
            "images": i,
            "nodes": n,
            "step": 0.1 * n,
            "noise": 0.5,
            "floor": 0.05,
            "draft": 0,
        }
        for n, i in PLACES
    ]
    (shape,) = shapes_of({"costs": [*costs, {**costs[0], "target": "too few"}]})
    assert (shape.name, shape.tokens, shape.read) == ("t, 4x6", 24, 0.05)
    assert shape.steps[0] == MeasuredStep(1, 1, pytest.approx(0.6))
    with pytest.raises(HawkError, match="no measured steps"):
        shapes_of({"rounds": []})
    with pytest.raises(HawkError, match="measure more steps than that"):
        fit_steps(shape.steps[:3], 0.05)


def test_cost_follows_from_step_forwards_and_price() -> None:
    model = StepModel(read=0.0, overhead=0.01, window=0.0, image=0.0, row=0.0)
    cost = cost_of(model, 600, Drawing(nodes=32, accept_length=4.0, images=5), price=3.6, beside=0.1)
    assert (cost.step, cost.forwards) == (0.01, 150.0)
    assert cost.seconds == pytest.approx(2.0)
    assert cost.images_per_second == pytest.approx(2.5)
    assert cost.dollars_per_million == pytest.approx(400.0)
    assert dollars_per_million(1.0, 3600.0) == pytest.approx(1e6)
    assert cost_of(model, 3, Drawing(8, 9.0, 1), 1.0).forwards == 1.0


def test_the_bench_prints_a_table_and_ends_with_json(capsys, monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    fleet = __import__("fleet")
    words = ["fleet.py", "--price", "2", "--accept", "32:4", "--requests", "200", "--gpus", "2", "20"]
    monkeypatch.setattr(sys, "argv", words)
    fleet.main()
    lines = capsys.readouterr().out.splitlines()
    document = json.loads(lines[-1])
    assert document["price"] == 2
    assert {row["drawing"]["accept_length"] for row in document["costs"]} == {1.0, 4.0}
    assert {row["gpus"] for row in document["fleets"]} == {2, 20}
    assert sum(line.startswith("| 7B, 24x24 ") for line in lines) >= 4
    for wrong in (["--price", "0"], ["--price", "nan"], ["--price", "1", "--accept", "x"], []):
        monkeypatch.setattr(sys, "argv", ["fleet.py", *wrong])
        with pytest.raises(SystemExit) as ended:
            fleet.main()
        assert ended.value.code == 2


# --- the simulation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("servers", "share"), [(1, 0.5), (3, 0.8), (12, 0.9)])
def test_waiting_is_that_of_an_m_m_c_queue(servers: int, share: float) -> None:
    load = Load(requests=60_000, rate=servers * share, exponential=True)
    waited = simulate(Fleet(servers, 1, image_seconds=1.0), load, seed=1).waited
    assert waited == pytest.approx(wait_of(servers * share, 1.0, servers), rel=0.12)


def test_erlangs_formula() -> None:
    assert wait_of(0.5, 1.0, 1) == pytest.approx(1.0)  # M/M/1: rho / (1 - rho) seconds
    assert wait_of(1.0, 1.0, 2) == pytest.approx(1 / 3)
    assert wait_of(2.0, 1.0, 2) == math.inf


FAILING = Fleet(
    gpus=8, places=3, image_seconds=2.0, dispatches=50.0, store=1e6, image_bytes=1e3, model_bytes=1e5, mtbf=20.0,
    restart=5.0,
)  # fmt: skip
MIX = Load(requests=2000, rate=4.0, images=((1, 0.5), (4, 0.5)))


@pytest.mark.parametrize("cold", [False, True])
def test_every_request_is_drawn_once_whatever_fails(cold: bool) -> None:
    outcome = simulate(replace(FAILING, cold=cold), MIX, seed=2)
    assert outcome.completed == MIX.requests
    assert outcome.images == pytest.approx(2.5 * MIX.requests, rel=0.05)
    assert outcome.failures > 20
    assert outcome.retried > 20
    assert 0 < outcome.down < 0.5
    assert all(0 < busy <= 1 for busy in outcome.busy.values())
    assert 2.0 <= outcome.median <= outcome.slowest
    assert outcome == simulate(replace(FAILING, cold=cold), MIX, seed=2)
    assert outcome != simulate(replace(FAILING, cold=cold), MIX, seed=3)


def test_no_part_is_busy_for_more_than_all_the_time() -> None:
    outcome = simulate(replace(FAILING, store=2e4), MIX, seed=2)  # a model takes five seconds to read
    assert 0.9 < outcome.busy["reads"] <= 1


def test_failures_and_a_cold_start_only_cost() -> None:
    whole = simulate(replace(FAILING, mtbf=math.inf), MIX, seed=2)
    assert (whole.failures, whole.retried, whole.down) == (0, 0, 0.0)
    assert simulate(FAILING, MIX, seed=2).waited > whole.waited
    cold = replace(FAILING, mtbf=math.inf, cold=True, model_bytes=1e7)  # ten seconds a model, one after another
    assert simulate(cold, Load(requests=3, rate=math.inf)).seconds == pytest.approx(12.0, abs=0.1)
    assert simulate(cold, Load(requests=300, rate=math.inf)).seconds > 12 + 2 * 300 / 24


@pytest.mark.parametrize(
    ("change", "limit"),
    [({}, "GPUs"), ({"dispatches": 5.0}, "head"), ({"store": 4e3}, "writes")],
)
def test_the_limit_is_what_cannot_keep_up(change: dict[str, float], limit: str) -> None:
    """All requests at once: the slowest part is busy all the time, and sets the images of a second."""
    fleet = replace(FAILING, mtbf=math.inf, **change)
    outcome = simulate(fleet, Load(requests=3000, rate=math.inf))
    assert outcome.limit == limit
    assert outcome.busy[limit] > 0.95
    possible = {"GPUs": fleet.images_per_second, "head": fleet.dispatches, "writes": fleet.store / fleet.image_bytes}
    assert outcome.images_per_second == pytest.approx(min(possible.values()), rel=0.05)


def test_the_number_of_gpus_at_which_a_limit_is_met() -> None:
    limits = gpus_at_limit(FAILING, MIX)
    assert limits["head"] == pytest.approx(50 / (1.5 / 2.5))
    assert limits["writes"] == pytest.approx(1e6 / 1500)
    assert limits["reads"] == pytest.approx(1e6 / (1e5 / 20))
    assert gpus_at_limit(Fleet(1, 1, 1.0), MIX) == dict.fromkeys(("head", "reads", "writes"), math.inf)
