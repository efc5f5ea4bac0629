"""Lanes: images that join and leave at any step have the tokens that they have when they are drawn alone."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from hawk.decoding import recording
from hawk.decoding.canvas import RECOVERED
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.lane import Lane
from hawk.decoding.pacing import Rung
from hawk.decoding.recorded_lane import RecordedLane
from hawk.decoding.recording import Recordings
from hawk.decoding.tree import Window
from hawk.engine import DrawingEngine
from hawk.errors import HawkError
from hawk.proofs.lanes import LADDER, PROMPTS, Album, Scheduled, check_schedules

PACED = Window(5, ladder=LADDER)


@pytest.fixture(scope="module")
def album() -> Album:
    return Album.tiny()


@pytest.fixture(scope="module")
def target(album):
    return album.target


@pytest.fixture(scope="module")
def request_for(album):
    return lambda prompt, setting, seed: album.request(Scheduled(0, prompt, setting, seed))


@pytest.mark.parametrize(("first", "schedules"), [(0, 2), pytest.param(2, 6, marks=pytest.mark.proofs)])
def test_images_that_join_and_leave_have_the_tokens_that_they_have_alone(first, schedules):
    (check,) = check_schedules(first, schedules)
    assert check.passed, check.measured


@pytest.mark.proofs
def test_two_hundred_random_schedules():
    (check,) = check_schedules(1000, 200)
    assert check.passed, check.measured


@pytest.fixture
def replayed(monkeypatch):
    """Recordings whose steps are repeated as they are: CUDA is not needed to tell whether places are mixed up."""
    monkeypatch.setattr(recording, "captured", lambda call, device, pool: call)
    return Recordings("graph")


@pytest.mark.parametrize(("first", "schedules"), [(0, 4), pytest.param(4, 200, marks=pytest.mark.proofs)])
def test_images_that_join_and_leave_replayed_steps_have_the_tokens_that_they_have_alone(first, schedules, replayed):
    (check,) = check_schedules(first, schedules, replayed)
    assert check.passed, check.measured


def test_replayed_lanes_lend_recordings_of_one_two_and_four_places(target, request_for, replayed):
    lane: RecordedLane[int] = RecordedLane(target, target.grid, Window(5), 4, replayed)
    for number, places in enumerate((1, 2, 4, 4)):
        lane.join(number, request_for(number, 1, number))
        assert len(lane._state.committed) == places
        lane.step()
    with pytest.raises(HawkError, match="has room for 0"):
        lane.join(4, request_for(0, 1, 0))
    outcomes = {}
    while lane.keys:
        outcomes |= {left.key: left.outcome for left in lane.step()}
    lane.join(9, request_for(0, 1, 0))
    assert len(lane._state.committed) == 1  # four places are too many for one image
    lane.close()
    assert sorted(len(kept.state.committed) for kept in replayed.kept.values()) == [1, 2, 4]
    for number, drawn in outcomes.items():
        expected = generate(target, request_for(number, 1, number), Window(5))
        assert torch.equal(drawn.tokens, expected.tokens)
        assert torch.equal(drawn.origins, expected.origins)
        assert drawn.stats.nfe == expected.stats.nfe


def test_a_place_without_an_image_waits_as_long_as_it_must(target, request_for, replayed):
    """More steps than an image has tokens, at places without one, write nowhere."""
    lane: RecordedLane[int] = RecordedLane(target, target.grid, Window(0), 2, replayed)
    for number in range(4):
        lane.join(number, request_for(0, 1, number))
        while lane.keys:
            (*_, left) = [*lane.step(), None]
    assert left is None
    assert int(lane._state.steps.max()) <= target.grid.size


def test_the_forwards_of_an_image_are_those_of_its_steps_however_late_the_host_hears(target, request_for, replayed):
    expected = generate(target, request_for(0, 1, 0), Window(5)).stats
    for lane in (
        Lane(target, target.grid, Window(5), 2),
        RecordedLane(target, target.grid, Window(5), 2, replayed),
    ):
        lane.join(0, request_for(0, 1, 0))
        outcomes = []
        while lane.keys:
            outcomes += lane.step()
        (left,) = outcomes
        forwards = left.outcome.forwards
        assert (len(forwards), forwards[0], forwards[-1]) == (expected.nfe, 1, target.grid.size)
        assert list(forwards) == sorted(set(forwards))


def test_what_a_replayed_lane_tells_is_committed(target, request_for, replayed):
    lane: RecordedLane[int] = RecordedLane(target, target.grid, Window(5), 2, replayed)
    plain = {number: generate(target, request_for(number, 1, number), Window(0)).tokens[0] for number in (0, 1)}
    told = []

    def note(progress):
        for row, key in enumerate(progress.keys):
            count = progress.canvas.committed[row]
            assert torch.equal(progress.canvas.tokens[row, :count], plain[key][:count])
            told.append((key, count))

    lane.join(0, request_for(0, 1, 0))
    lane.step(note)
    lane.join(1, request_for(1, 1, 1))
    while lane.keys:
        lane.step(note)
    for key in plain:
        counts = [count for each, count in told if each == key]
        assert counts == sorted(counts)
        assert counts[-1] == target.grid.size


WIDE = Window(40, ladder=(Rung(0, 1.0, 1.0), Rung(1, 1.1, 1.9), Rung(40, 5.0, 20.0)), paced=False)
"""A window whose steps reach far for up to four places, and one draft far for eight."""


class Flat:
    """A target whose states depend on no token: each guess is right, as long as the noise is the position's own."""

    def __init__(self, target) -> None:
        self.target = target

    def __getattr__(self, name):
        return getattr(self.target, name)

    def forward_nodes(self, *nodes):
        return torch.full_like(self.target.forward_nodes(*nodes), 0.1)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_images_that_move_to_another_window_keep_their_tokens(steps, target, request_for, replayed):
    """In steps that the host has not heard of, a wide window may commit more tokens than a narrow one holds noise."""
    assert [WIDE.for_images(places).reach for places in (1, 2, 4, 8)] == [40, 40, 40, 1]
    flat, grid = Flat(target), Grid(16, 16)
    requests = [replace(request_for(0, 1, number), grid=grid) for number in range(6)]
    lane: RecordedLane[int] = RecordedLane(flat, grid, WIDE, 8, replayed)
    for number in range(4):
        lane.join(number, requests[number])
    for _ in range(steps):
        assert not lane.step()
    lane.join(4, requests[4])  # eight places, a narrow window
    assert not lane.step()
    for number in range(1, 5):
        lane.leave(number)
    lane.join(5, requests[5])  # two places, a wide window, whose further drafts the narrow one has not entered
    state = lane._state
    ahead = state.committed[:, None] + torch.arange(WIDE.reach)
    assert (state.origins.gather(1, ahead) != RECOVERED).all()
    outcomes = {}
    while lane.keys:
        outcomes |= {left.key: left.outcome for left in lane.step()}
    for number, drawn in outcomes.items():
        assert torch.equal(drawn.tokens, generate(flat, requests[number], Window(0)).tokens)
        assert drawn.stats.committed <= drawn.stats.nfe + sum(drawn.stats.accepted_by_source.values())


@pytest.mark.parametrize("replays", [False, True])
def test_nothing_is_kept_of_a_cancelled_image(replays, target, request_for, replayed):
    engine: DrawingEngine[int] = DrawingEngine(target, 2, replayed if replays else None)
    for number in range(2):
        engine.submit([number], request_for(0, 1, number), Window(0))
    engine.step()
    assert engine.cancel(1)
    assert not engine.cancel(1)
    (shared,) = engine.lanes.values()
    assert list(shared.seconds) == shared.lane.keys == [0]


@pytest.mark.parametrize("replays", [False, True])
def test_an_engine_goes_on_after_memory_ended_in_a_prompt(replays, target, request_for, replayed, monkeypatch):
    engine: DrawingEngine[int] = DrawingEngine(target, 2, replayed if replays else None)
    engine.submit([0], request_for(0, 1, 0), Window(5))
    with monkeypatch.context() as patch:
        patch.setattr(type(target), "prefill", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
        with pytest.raises(HawkError, match="memory is too small"):
            engine.step()
    assert not engine.busy
    engine.submit([1], request_for(1, 1, 1), Window(5))
    ended = []
    while engine.busy:
        ended += engine.step()
    assert torch.equal(ended[0].generation.tokens, generate(target, request_for(1, 1, 1), Window(0)).tokens)


def test_the_counts_of_an_image_are_its_own(target, request_for):
    lane: Lane[str] = Lane(target, target.grid, Window(5), 2)
    lane.join("first", request_for(0, 0, 0))
    lane.step()
    lane.step()
    lane.join("second", request_for(1, 1, 1))
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
        request = request_for(2, 2, 1)
        lane: Lane[int] = Lane(target, target.grid, window, 3)
        lane.join(0, request)
        ended = []
        while lane.seats:
            ended += lane.step()
        drawn, expected = ended[0].outcome, generate(target, request, window)
        assert drawn.stats == expected.stats
        assert torch.equal(drawn.origins, expected.origins)


def test_a_longer_prompt_makes_the_lane_larger(target, album, monkeypatch):
    from hawk.decoding import cache as caches

    monkeypatch.setattr(caches, "PROMPT_BLOCK", 1)
    monkeypatch.setattr(caches, "KEY_BLOCK", 1)
    lane: Lane[Scheduled] = Lane(target, target.grid, Window(5), 4)
    capacities = []
    for prompt in range(PROMPTS):
        image = Scheduled(prompt, prompt, 1, 0)
        lane.join(image, album.request(image))
        lane.step()
        capacities.append(lane.state.cache.capacity)
    assert capacities == sorted(capacities)
    assert capacities[0] < capacities[-1]
    while lane.seats:
        for left in lane.step():
            assert left.outcome.tokens[0].tolist() == album.plain(left.key)


@pytest.mark.parametrize("replays", [False, True])
def test_an_image_whose_logits_are_not_finite_leaves_alone(replays, target, album, replayed):
    class Broken:
        """The target, with a NaN in the states of one image's rows from some step on."""

        def __init__(self) -> None:
            self.after = 4 + 6 * replays  # each of the three recordings runs a step before its capture

        def __getattr__(self, name):
            return getattr(target, name)

        def forward_nodes(self, tokens, *rest):
            hidden = target.forward_nodes(tokens, *rest)
            self.after -= 1
            return hidden.index_fill(0, torch.tensor([0]), torch.nan) if not self.after else hidden

    lane = (
        RecordedLane(Broken(), target.grid, Window(3), 3, replayed)
        if replays
        else Lane(Broken(), target.grid, Window(3), 3)
    )
    keys = [Scheduled(prompt, prompt, 0, prompt) for prompt in range(3)]
    for key in keys:
        lane.join(key, album.request(key))
    outcomes = {}
    while lane.keys:
        outcomes |= {left.key: left.outcome for left in lane.step()}
    assert isinstance(outcomes[keys[0]], HawkError)
    assert "not finite" in str(outcomes[keys[0]])
    for key in keys[1:]:
        assert outcomes[key].tokens[0].tolist() == album.plain(key)


def test_a_lane_refuses_what_it_cannot_hold(target, request_for):
    lane: Lane[int] = Lane(target, target.grid, Window(2), 1)
    request = request_for(0, 0, 0)
    with pytest.raises(HawkError, match="4x6 tokens takes one such image at a time"):
        lane.join(0, replace(request, grid=Grid(2, 2)))
    lane.join(0, request)
    with pytest.raises(HawkError, match="has room for 0"):
        lane.join(1, request)


def test_a_lane_has_memory_for_about_as_many_images_as_join(target, request_for):
    lane: Lane[int] = Lane(target, target.grid, Window(2), 1000)
    for number, places in enumerate((1, 2, 4, 4, 8)):
        lane.join(number, request_for(0, 1, number))
        assert len(lane.state.tokens) == number + 1
        assert len(lane._store.tokens) == places
