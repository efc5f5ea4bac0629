"""Lanes: images that join and leave at any step have the tokens that they have when they are drawn alone."""

import random
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from hawk.decoding.canvas import RECOVERED
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.lane import Lane
from hawk.decoding.pacing import Rung
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.stats import Generation
from hawk.decoding.tree import Window
from hawk.decoding.trees import NoDrafter
from hawk.errors import HawkError
from hawk.proofs.tiny import tiny_prompt, tiny_target

SETTINGS = (
    SamplingParams(),
    SamplingParams(cfg_scale=3.0),
    SamplingParams(temperature=0.7, top_k=5, top_p=0.9, cfg_scale=2.0),
    SamplingParams(temperature=0.0, cfg_scale=2.0),
    SamplingParams(temperature=1.4, top_k=3),
    SamplingParams(temperature=0.0),
    SamplingParams(top_p=0.6, cfg_scale=1.5),
)
PROMPTS, SEEDS = 4, 3
PACED = Window(5, ladder=(Rung(0, 1.0, 1.0), Rung(2, 1.4, 1.8), Rung(5, 1.9, 2.4)))


@dataclass(frozen=True)
class Drawn:
    """What a test draws: one of the prompts, one of the settings, and a seed."""

    prompt: int
    setting: int
    seed: int


@pytest.fixture(scope="module")
def target():
    return tiny_target(0)


@pytest.fixture(scope="module")
def request_for(target):
    prompts = tiny_prompt(target, PROMPTS)

    def made(drawn: Drawn) -> Request:
        return Request(
            prompts.rows(slice(drawn.prompt, drawn.prompt + 1)), target.grid, SETTINGS[drawn.setting], [drawn.seed]
        )

    return made


@pytest.fixture(scope="module")
def alone(target, request_for):
    """The tokens of plain AR, drawn alone."""
    return cache(lambda drawn: generate(target, request_for(drawn), NoDrafter()).tokens[0].tolist())


def scheduled(target, request_for, window: Window, places: int, images: int, seed: int):
    """Draw random images in a random order of joining, stepping and leaving; yields each finished one."""
    chance = random.Random(seed)
    waiting = [
        (number, Drawn(chance.randrange(PROMPTS), chance.randrange(len(SETTINGS)), chance.randrange(SEEDS)))
        for number in range(images)
    ]
    lane: Lane[tuple[int, Drawn]] = Lane(target, target.grid, window, places)
    dropped = 0
    while waiting or lane.seats:
        while waiting and lane.free and (not lane.seats or chance.random() < 0.4):
            key = waiting.pop()
            lane.join(key, request_for(key[1]))
        if lane.seats and chance.random() < 0.03:
            lane.leave(chance.choice(lane.keys))
            dropped += 1
        if lane.seats:
            yield from lane.step()
    assert lane.free == places


@pytest.mark.parametrize(
    "window", [Window(5), Window(0), PACED, Window(3, above=False)], ids=["5", "0", "paced", "scd"]
)
def test_images_that_join_and_leave_have_the_tokens_that_they_have_alone(target, request_for, alone, window):
    finished = 0
    for seed in range(3):
        for left in scheduled(target, request_for, window, places=4, images=14, seed=seed):
            assert isinstance(left.outcome, Generation)
            assert left.outcome.tokens.tolist() == [alone(left.key[1])], left.key
            finished += 1
    assert finished > 30


@pytest.mark.proofs
@pytest.mark.parametrize("seed", range(200))
def test_two_hundred_random_schedules(target, request_for, alone, seed):
    window = (Window(5), PACED, Window(0), Window(30))[seed % 4]
    for left in scheduled(target, request_for, window, places=1 + seed % 5, images=8, seed=1000 + seed):
        assert isinstance(left.outcome, Generation)
        assert left.outcome.tokens.tolist() == [alone(left.key[1])], left.key


def test_the_counts_of_an_image_are_its_own(target, request_for):
    lane: Lane[str] = Lane(target, target.grid, Window(5), 2)
    lane.join("first", request_for(Drawn(0, 0, 0)))
    lane.step()
    lane.step()
    lane.join("second", request_for(Drawn(1, 1, 1)))
    outcomes = {}
    while lane.seats:
        outcomes |= {left.key: left.outcome for left in lane.step()}
    for drawn in outcomes.values():
        assert (drawn.stats.images, drawn.stats.committed) == (1, target.grid.size)
        assert drawn.stats.nfe <= 1 + lane.steps
        accepted = int((drawn.origins != RECOVERED).sum())
        assert accepted == sum(drawn.stats.accepted_by_source.values())


def test_an_image_drawn_alone_in_a_lane_has_the_counts_of_its_own_drawing(target, request_for):
    for window in (Window(5), PACED):
        request = request_for(Drawn(2, 2, 1))
        lane: Lane[int] = Lane(target, target.grid, window, 3)
        lane.join(0, request)
        ended = []
        while lane.seats:
            ended += lane.step()
        drawn, expected = ended[0].outcome, generate(target, request, window)
        assert drawn.stats == expected.stats
        assert torch.equal(drawn.origins, expected.origins)


def test_a_longer_prompt_makes_the_lane_larger(target, request_for, alone, monkeypatch):
    from hawk.decoding import cache as caches

    monkeypatch.setattr(caches, "PROMPT_BLOCK", 1)
    monkeypatch.setattr(caches, "KEY_BLOCK", 1)
    lane: Lane[Drawn] = Lane(target, target.grid, Window(5), 4)
    capacities = []
    for prompt in range(PROMPTS):
        lane.join(Drawn(prompt, 1, 0), request_for(Drawn(prompt, 1, 0)))
        lane.step()
        capacities.append(lane.state.cache.capacity)
    assert capacities == sorted(capacities)
    assert capacities[0] < capacities[-1]
    while lane.seats:
        for left in lane.step():
            assert left.outcome.tokens.tolist() == [alone(left.key)]


def test_an_image_whose_logits_are_not_finite_leaves_alone(target, request_for, alone):
    class Broken:
        """The target, with a NaN in the states of one image's rows from some step on."""

        def __init__(self) -> None:
            self.after = 4

        def __getattr__(self, name):
            return getattr(target, name)

        def forward_nodes(self, tokens, *rest):
            hidden = target.forward_nodes(tokens, *rest)
            self.after -= 1
            return hidden.index_fill(0, torch.tensor([0]), torch.nan) if not self.after else hidden

    lane: Lane[Drawn] = Lane(Broken(), target.grid, Window(3), 3)
    keys = [Drawn(prompt, 0, prompt % SEEDS) for prompt in range(3)]
    for key in keys:
        lane.join(key, request_for(key))
    outcomes = {}
    while lane.seats:
        outcomes |= {left.key: left.outcome for left in lane.step()}
    assert isinstance(outcomes[keys[0]], HawkError)
    assert "not finite" in str(outcomes[keys[0]])
    for key in keys[1:]:
        assert outcomes[key].tokens.tolist() == [alone(key)]


def test_a_lane_refuses_what_it_cannot_hold(target, request_for):
    lane: Lane[int] = Lane(target, target.grid, Window(2), 1)
    request = request_for(Drawn(0, 0, 0))
    with pytest.raises(HawkError, match="4x6 tokens takes one such image at a time"):
        lane.join(0, replace(request, grid=Grid(2, 2)))
    lane.join(0, request)
    with pytest.raises(HawkError, match="has room for 0"):
        lane.join(1, request)
