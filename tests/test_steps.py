"""The steps suite: every window's step is timed in its parts, images are compared, the floor is the weights' bytes."""

import pytest

from hawk import HawkPipeline
from hawk.cli.tables import steps_table
from hawk.measure import scaling, steps
from hawk.measure.steps import StepCost, accept_length, run_steps
from hawk.models.llamagen.target import LlamaGenConfig

SMALL = LlamaGenConfig(dim=16, n_layer=1, n_head=2, multiple_of=16, vocab_size=8, caption_dim=4, caption_tokens=3)


@pytest.fixture
def pipe(saved_model, monkeypatch):
    monkeypatch.setattr(steps, "REACHES", (0, 3))
    monkeypatch.setattr(steps, "BENCH_PROMPTS", ("a red apple", "a cat"))
    monkeypatch.setattr(steps, "COPIED", 1 << 10)
    monkeypatch.setattr(steps, "SIDES", (4,))
    monkeypatch.setattr(steps, "SHAPES", {"small": SMALL, "7B": scaling.SHAPES["7B"]})
    return HawkPipeline.from_pretrained(saved_model, "cpu")


def test_every_step_is_timed_and_what_does_not_fit_is_said(pipe):
    told = []
    result = run_steps(pipe, ("small", "7B"), images=2, repeats=3, on_progress=told.append)
    assert [(cost.target, cost.grid, cost.nodes) for cost in result.costs] == [
        ("tiny", (4, 6), 1),
        ("tiny", (4, 6), 4),
        ("small", (4, 4), 1),
        ("small", (4, 4), 64),
    ]
    assert all(min(cost.step, cost.forward, cost.noise, cost.floor, cost.draft) > 0 for cost in result.costs)
    assert [what.split(":")[0] for what in result.left_out] == ["7B"]
    assert told == ["2 images", "tiny", "small, 4x4"]
    assert steps_table(result).row_count == len(result.costs)
    document = result.to_json()
    assert [each["over_forward"] for each in document["costs"]] == [cost.over_forward for cost in result.costs]
    plain, drafted = result.costs[:2]
    assert plain.committed == 1
    assert 1 <= drafted.committed <= 4


def test_shares_are_of_the_whole_step():
    cost = StepCost("x", (4, 4), 8, step=9.0, forward=8.0, draft=0.5, noise=1.0, floor=4.0, committed=2.0)
    assert cost.over_forward == 10 / 8
    assert cost.drafting == 0.5 / 10


def test_the_images_are_plain_ars(pipe):
    result = run_steps(pipe, (), images=2, repeats=1)
    assert (result.identical, result.identical_in_shape, result.images) == (2, 2, 2)
    assert accept_length([steps.drawn_by(pipe, steps.Window(0), 0)]) == 1
