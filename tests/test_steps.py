"""The steps suite: the parts of a step are timed at every window, and images are compared with plain AR's."""

from dataclasses import replace

import pytest
import torch

from hawk import HawkPipeline
from hawk.cli.tables import steps_table
from hawk.decoding.grid import Grid
from hawk.decoding.planning import MidImage
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.measure.scaling import SHAPES, made_up_target
from hawk.measure.steps import StepCost, StepsSweep, accept_length, drawn_by, made_up_request, run_steps
from hawk.models.llamagen.target import LlamaGenConfig

SMALL = LlamaGenConfig(dim=16, n_layer=1, n_head=2, multiple_of=16, vocab_size=8, caption_dim=4, caption_tokens=3)


SWEEP = StepsSweep(
    reaches=(0, 3),
    shapes={"small": SMALL, "7B": SHAPES["7B"]},
    sides=(4,),
    shape_reaches=(0, 5),
    shape_images=(1, 3),
    prompts=("a red apple", "a cat"),
    copied=1 << 10,
)


@pytest.fixture
def pipe(saved_model):
    return HawkPipeline.from_pretrained(saved_model, "cpu")


def test_every_step_is_timed_and_shapes_that_do_not_fit_are_reported(pipe):
    told = []
    result = run_steps(pipe, SWEEP, images=2, repeats=3, on_progress=told.append)
    assert [(cost.target, cost.grid, cost.nodes) for cost in result.costs] == [
        ("tiny", (4, 6), 1),
        ("tiny", (4, 6), 4),
        *[("small", (4, 4), nodes) for _ in (1, 3) for nodes in (1, 6)],
    ]
    assert [cost.images for cost in result.costs] == [1, 1, 1, 1, 3, 3]
    assert all(min(cost.step, cost.forward, cost.noise, cost.floor, cost.draft) > 0 for cost in result.costs)
    assert [what.split(":")[0] for what in result.left_out] == ["7B"]
    assert told == ["2 images", "tiny", "small, 4x4, 1 image", "small, 4x4, 3 images"]
    table = steps_table(result)
    assert table.row_count == len(result.costs)
    assert list(next(column for column in table.columns if column.header == "images").cells) == list("111133")
    document = result.to_json()
    assert [each["over_forward"] for each in document["costs"]] == [cost.over_forward for cost in result.costs]
    plain, drafted = result.costs[:2]
    assert plain.committed == 1
    assert 1 <= drafted.committed <= 4


def test_shares_are_of_the_whole_step():
    cost = StepCost("x", (4, 4), 1, 8, step=9.0, forward=8.0, draft=0.5, noise=1.0, floor=4.0, committed=2.0)
    assert cost.over_forward == 10 / 8
    assert cost.drafting == 0.5 / 10


def test_large_shapes_are_timed_at_all_windows_and_batches_on_a_gpu():
    on_gpu, on_cpu = StepsSweep.on(torch.device("cuda")), StepsSweep.on(torch.device("cpu"))
    assert list(on_gpu.shapes) == ["775M", "7B"]
    assert on_gpu.shape_reaches == (0, 7, 15, 31, 63, 127)
    assert on_gpu.shape_images == (1, 4)
    assert not on_cpu.shapes


def test_a_step_is_timed_with_every_image_in_the_middle():
    target, grid = made_up_target(SMALL, torch.device("cpu")), Grid(4, 4)
    request = made_up_request(target, grid, SamplingParams(cfg_scale=2.0), 3)
    start = MidImage.behind(target, request, 5, "eager")
    start.seconds(lambda: None)
    assert start.state.committed.tolist() == [8, 8, 8]
    assert start.state.cache.lengths == [3 + 8 - 1] * 6


def test_windows_draw_the_images_of_plain_ar(pipe):
    result = run_steps(pipe, replace(SWEEP, shapes={}), images=2, repeats=1)
    assert (result.identical, result.identical_in_shape, result.images) == (2, 2, 2)
    assert accept_length([drawn_by(pipe, Window(0), "a cat", 0)]) == 1
