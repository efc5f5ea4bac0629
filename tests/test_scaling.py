"""The scaling suite: every axis is measured, the growth is the fitted exponent, and every axis gets a plot."""

import pytest
import torch
from PIL import Image

from hawk import HawkError, HawkPipeline
from hawk.cli.tables import scaling_table
from hawk.measure.scaling import (
    SHAPES,
    Cost,
    ScalingSweep,
    costs_by_nodes,
    draw_plots,
    growth,
    made_up_target,
    run_scaling,
    weight_bytes,
)
from hawk.models.llamagen.target import LlamaGenConfig

SMALL = LlamaGenConfig(dim=16, n_layer=1, n_head=2, multiple_of=16, vocab_size=8, caption_dim=4, caption_tokens=3)


SWEEP = ScalingSweep(
    nodes=(1, 3),
    windows=(1, 2),
    sides=(2, 4),
    batches=(1, 2),
    shapes={"small": SMALL, "7B": SHAPES["7B"]},
    shape_nodes=(1, 2),
    prompt="a red apple",
)


@pytest.fixture
def result(saved_model):
    return run_scaling(HawkPipeline.from_pretrained(saved_model, "cpu"), SWEEP, repeats=2)


def test_every_axis_is_measured_and_shapes_that_do_not_fit_are_reported(result):
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


def test_each_axis_gets_a_plot(result, tmp_path):
    paths = draw_plots(result, tmp_path / "plots")
    assert [path.name for path in paths] == [f"scaling-{axis}.png" for axis in ("step", "window", "tokens", "batch")]
    assert all(Image.open(path).size == (720, 480) for path in paths)


def test_growth_is_the_exponent():
    assert growth([Cost("tokens", "ar", n, 3e-4 * n**1.5, "image") for n in (4, 16, 64)]) == 1.5
    with pytest.raises(HawkError, match="two sizes or more"):
        growth([Cost("tokens", "ar", 4, 1.0, "image")])


def test_a_made_up_target_has_the_shape_and_runs():
    target = made_up_target(SMALL, torch.device("cpu"))
    assert weight_bytes(SMALL) == 4 * target.parameter_count
    costs = costs_by_nodes(target, "x", (1, 4), 1)
    assert [cost.at for cost in costs] == [1, 4]


def test_the_weights_of_a_made_up_target_are_random():
    """A GPU takes less power, and so less time, for a product of constants than for one of random numbers."""
    target = made_up_target(SMALL, torch.device("cpu"))
    assert target.tok_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert target.tok_embeddings.weight.unique().numel() > 100
    assert target.norm.weight.unique().tolist() == [1.0]


def test_a_made_up_target_is_in_bfloat16_where_it_is_not_on_a_cpu():
    target = made_up_target(SMALL, torch.device("meta"))
    assert {parameter.dtype for parameter in target.parameters()} == {torch.bfloat16}
    assert target.weight_dtype == torch.bfloat16
