"""The reach of each step: it follows the acceptance of drafts, costs little where drafts fail, and changes no token."""

import json
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.pacing import Pace, Rung, chance_of, in_batch, mean_tokens
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.decoding.trees import NoDrafter
from hawk.drafters.acceptance import Skills, acceptance_file
from hawk.drafters.methods import TOKENS_AT
from hawk.pipeline import HawkPipeline
from hawk.proofs.losslessness import EXACT_SETTINGS
from hawk.proofs.tiny import tiny_prompt, tiny_target

MILLISECONDS = (12.1, 13.8, 15.8, 20.0, 22.6, 24.9, 26.2, 27.1, 29.8, 31.7, 33.8, 42.1, 55.1)
"""Steps of 1, 2, 4, ... 64 nodes of the bundled model on two CPU cores."""
LADDER = tuple(
    Rung(reach, step, tokens) for step, (reach, tokens) in zip(MILLISECONDS, {0: 1.0, **TOKENS_AT}.items(), strict=True)
)
COST = np.interp(range(65), [rung.reach for rung in LADDER], MILLISECONDS)
SIZE, WIDTH = 576, 24


def seconds(pace: Pace, accepted: Callable[[float], float], seed: int = 0) -> float:
    """Seconds of an image whose draft at a share of the image is accepted with the chance `accepted(share)`."""
    draw, committed, total = random.Random(seed), 1, 0.0
    while committed < SIZE:
        left = SIZE - committed
        reach = min(pace.reach, left)
        kept = 0
        while kept < reach and draw.random() < accepted((committed + kept) / SIZE):
            kept += 1
        count = min(kept + 1, left)
        total += COST[reach]
        if left > reach:
            pace.learn(reach, [count])
        committed += count
    return total


def paced(accepted: Callable[[float], float], skill: float = 0.0) -> float:
    return sum(seconds(Pace(63, WIDTH, LADDER, skill), accepted, seed) for seed in range(8)) / 8


def fixed(accepted: Callable[[float], float], reach: int) -> float:
    return sum(seconds(Pace(reach, WIDTH), accepted, seed) for seed in range(8)) / 8


def test_where_every_draft_fails_an_image_takes_hardly_longer_than_plain_ar():
    assert paced(lambda share: 0.0) < 1.05 * fixed(lambda share: 0.0, 0)


def test_where_every_draft_is_right_the_widest_window_is_taken():
    pace = Pace(63, WIDTH, LADDER)
    seconds(pace, lambda share: 1.0)
    assert pace.reach >= 47
    assert paced(lambda share: 1.0) < 1.2 * fixed(lambda share: 1.0, 63)


@pytest.mark.parametrize("first", [0.9, 0.02])
def test_an_image_of_two_halves_is_drawn_faster_than_by_any_fixed_window(first):
    def accepted(share: float) -> float:
        return first if share < 0.5 else 0.92 - first

    assert paced(accepted) < min(fixed(accepted, rung.reach) for rung in LADDER)


def test_the_skill_of_earlier_images_saves_the_learning():
    taught = Pace(63, WIDTH, LADDER)
    seconds(taught, lambda share: 0.0)
    again = Pace(63, WIDTH, LADDER, taught.image.skill)
    assert Pace(63, WIDTH, LADDER).reach > 0
    assert again.reach == 0


def test_a_plain_image_probes_whether_drafts_are_accepted_again():
    pace, reaches = Pace(63, WIDTH, LADDER, -10.0), []
    for _ in range(200):
        reaches.append(pace.reach)
        pace.learn(pace.reach, [1])
    assert 0.8 < reaches.count(0) / len(reaches) < 1
    rests = [len(run) for run in "".join("p" if reach else "." for reach in reaches).split("p") if run]
    assert rests[0] == WIDTH / 2
    assert max(rests[:-1]) == WIDTH  # failed probes are repeated more and more rarely


def test_without_a_ladder_every_step_has_the_same_reach():
    pace = Pace(5, WIDTH)
    for count in (1, 1, 1, 6, 6):
        pace.learn(5, [count])
        assert pace.reach == 5


def test_a_step_of_a_batch_costs_what_its_nodes_cost():
    nodes, together = [rung.reach + 1 for rung in LADDER], in_batch(LADDER, 4)
    assert [rung.seconds for rung in in_batch(LADDER, 1)] == list(MILLISECONDS)
    assert [rung.reach for rung in together] == [rung.reach for rung in LADDER]
    by_nodes = dict(zip(nodes, MILLISECONDS, strict=True))
    for rung in together:
        if 4 * (rung.reach + 1) in by_nodes:
            assert rung.seconds == pytest.approx(by_nodes[4 * (rung.reach + 1)])
    slope = (by_nodes[64] - by_nodes[32]) / 32  # beyond what was timed
    assert together[-1].seconds == pytest.approx(by_nodes[64] + slope * 3 * 64)


def test_speculation_narrows_as_the_batch_grows_and_switches_itself_off():
    reaches = [Pace(63, WIDTH, in_batch(LADDER, images)).reach for images in (1, 4, 16, 32)]
    assert reaches[0] > reaches[1] > reaches[2] >= reaches[3]
    poor = [Pace(63, WIDTH, in_batch(LADDER, images), -1.5) for images in (1, 32)]
    assert poor[0].reach > 0
    assert poor[1].reach == 0


def test_a_window_that_is_not_paced_has_the_reach_that_is_best_for_the_batch():
    window = Window(17, ladder=LADDER, paced=False)
    alone, together = window.for_images(1), window.for_images(16)
    assert alone.ladder == together.ladder == ()
    assert alone.reach > together.reach
    rungs = in_batch(LADDER, 16)
    assert together.reach == max(rungs, key=lambda rung: rung.tokens / rung.seconds).reach
    assert Window(5).for_images(16) == Window(5)


def test_a_rung_explains_its_own_tokens():
    for rung in LADDER[1:]:
        assert rung.tokens_at(0.0) == pytest.approx(rung.tokens, abs=0.01)
        assert rung.tokens_at(-12.0) == pytest.approx(1, abs=0.02)
        assert rung.tokens_at(12.0) > 0.95 * (rung.reach + 1)
    assert chance_of(mean_tokens(0.7, 5), 5) == pytest.approx(0.7)


@pytest.mark.parametrize("params", EXACT_SETTINGS)
def test_the_tokens_are_plain_ars(params):
    """Three images of one batch have frontiers of their own; the ladder is climbed up and down."""
    target, seeds = tiny_target(0), [1, 2, 3]
    request = Request(tiny_prompt(target, 3), target.grid, params, seeds)
    rungs = tuple(Rung(reach, 1 + 0.02 * reach, 1.0 + 0.3 * reach) for reach in (0, 1, 3, 5))
    plain = generate(target, request, NoDrafter())
    told = []
    drawn = generate(target, request, Window(5, ladder=rungs), lambda canvas, stats: told.append(stats.nfe))
    assert torch.equal(drawn.tokens, plain.tokens)
    assert told == list(range(2, drawn.stats.nfe + 1))
    assert drawn.stats.committed == 3 * target.grid.size
    assert sum(drawn.stats.accepted_by_depth) == int((drawn.origins >= 0).sum())
    assert drawn.stats.skill is not None


def test_reaches_that_change_are_counted_as_they_were():
    target = tiny_target(0, grid=Grid(4, 12), dim=16)
    request = Request(tiny_prompt(target, 1), target.grid, SamplingParams(), [1])
    rungs = (Rung(0, 1.0, 1.0), Rung(1, 1.1, 1.8), Rung(7, 2.0, 5.0))
    fronts = [1]
    window = Window(7, ladder=rungs, skill=-12.0)  # the image begins plainly
    stats = generate(target, request, window, lambda canvas, _: fronts.append(canvas.committed[0])).stats
    wide = generate(target, request, Window(7)).stats
    assert fronts[:7] == [1, 2, 3, 4, 5, 6, 7]
    assert wide.nfe < stats.nfe < 48
    assert stats.nodes < wide.nodes
    assert stats.nodes == 1 + len(fronts) - 1 + sum(stats.verified_by_depth)


def test_estimates_are_kept_by_model_and_parameters(monkeypatch, tmp_path, saved_model):
    monkeypatch.setenv("HAWK_CACHE", str(tmp_path))
    pipe = HawkPipeline.from_pretrained(saved_model, "cpu", "float64")
    ladder = tuple(Rung(reach, 1 + 0.1 * reach, 1.0 + reach) for reach in (0, 1, 3, 7))
    monkeypatch.setattr(pipe, "drafter_for", lambda *args: Window(7, ladder=ladder))
    plain = pipe("a cat", seed=1, method="ar")
    drawn = pipe("a cat", seed=1, method="hawk", temperature=3.0)
    assert not torch.equal(plain.tokens, drawn.tokens)
    skill = pipe.skills.of(drawn_params := SamplingParams(temperature=3.0, cfg_scale=2.0))
    assert skill < -0.25
    assert Skills(pipe.model.fingerprint).of(drawn_params) == pytest.approx(skill, abs=0.01)
    assert Skills("another model").of(drawn_params) == 0
    assert Skills(pipe.model.fingerprint).of(SamplingParams()) == 0


@pytest.mark.parametrize("content", ["", "[]", '{"m": 5}', '{"m": {"temperature 1, top-k 0, top-p 1, cfg 1": "x"}}'])
def test_a_damaged_file_of_estimates_teaches_nothing(content, monkeypatch, tmp_path):
    monkeypatch.setenv("HAWK_CACHE", str(tmp_path))
    acceptance_file().write_text(content)
    assert Skills("m").of(SamplingParams()) == 0.0


def test_an_estimate_that_cannot_be_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HAWK_CACHE", str(tmp_path))
    for value in ("NaN", "1e9", "-1e400", "true", "null"):
        key = "temperature 1, top-k 0, top-p 1, cfg 1"
        acceptance_file().write_text(f'{{"m": {{{json.dumps(key)}: {value}}}}}')
        assert Skills("m").of(SamplingParams()) == 0.0
