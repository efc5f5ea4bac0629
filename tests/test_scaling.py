"""The scaling suite: every axis is measured, growth is a slope, plots are pictures."""

import pytest
import torch
from PIL import Image

from hawk import HawkError, HawkPipeline
from hawk.cli.tables import scaling_table
from hawk.measure import scaling
from hawk.measure.scaling import Cost, draw_plots, growth, random_target, run_scaling, step_costs, weight_bytes
from hawk.models.llamagen.target import LlamaGenConfig

SMALL = LlamaGenConfig(dim=16, n_layer=1, n_head=2, multiple_of=16, vocab_size=8, caption_dim=4, caption_tokens=3)


@pytest.fixture
def result(saved_model, monkeypatch):
    monkeypatch.setattr(scaling, "NODES", (1, 3))
    monkeypatch.setattr(scaling, "WINDOWS", (1, 2))
    monkeypatch.setattr(scaling, "SIDES", (2, 4))
    monkeypatch.setattr(scaling, "BATCHES", (1, 2))
    monkeypatch.setattr(scaling, "SHAPES", {"small": SMALL, "7B": scaling.SHAPES["7B"]})
    monkeypatch.setattr(scaling, "SHAPE_NODES", (1, 2))
    monkeypatch.setattr(scaling, "PROMPT", "a red apple")
    return run_scaling(HawkPipeline.from_pretrained(saved_model, "cpu"), repeats=2)


def test_every_axis_is_measured_and_what_does_not_fit_is_said(result):
    found = [(cost.axis, cost.series, cost.at) for cost in result.costs]
    assert found == [
        ("step", "tiny", 1),
        ("step", "tiny", 3),
        ("window", "hawk", 1),
        ("window", "hawk", 2),
        *[("tokens", method, side * side) for side in (2, 4) for method in ("ar", "hawk")],
        *[("batch", method, batch) for batch in (1, 2) for method in ("ar", "hawk")],
        ("step", "small", 1),
        ("step", "small", 2),
    ]
    assert all(cost.seconds > 0 for cost in result.costs)
    assert [what.split(":")[0] for what in result.left_out] == ["7B"]
    assert set(result.exponents) == {"ar", "hawk"}
    assert scaling_table(result).row_count == len(result.costs)


def test_plots_are_pictures_of_each_axis(result, tmp_path):
    paths = draw_plots(result, tmp_path / "plots")
    assert [path.name for path in paths] == [f"scaling-{axis}.png" for axis in ("step", "window", "tokens", "batch")]
    assert all(Image.open(path).size == (720, 480) for path in paths)


def test_growth_is_the_exponent():
    assert growth([Cost("tokens", "ar", n, 3e-4 * n**1.5, "image") for n in (4, 16, 64)]) == 1.5
    with pytest.raises(HawkError, match="two sizes or more"):
        growth([Cost("tokens", "ar", 4, 1.0, "image")])


def test_a_made_up_target_has_the_shape_and_runs():
    target = random_target(SMALL, torch.device("cpu"))
    assert weight_bytes(SMALL) == 4 * target.parameter_count
    costs = step_costs(target, "x", (1, 4), 1)
    assert [cost.at for cost in costs] == [1, 4]
