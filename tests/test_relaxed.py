"""Relaxed acceptance, the lossy verifier: lossless at delta 0, a bounded drift otherwise, and always labelled lossy."""

from functools import partial

import pytest
import torch

from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.relaxed import Relaxation, relaxed
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.methods import METHODS
from hawk.errors import HawkError
from hawk.proofs.law import exact_law, excess
from hawk.proofs.losslessness import LAW_TOLERANCE, check_drifts, exact_joint, law_cases
from hawk.proofs.tiny import tiny_drafters, tiny_prompt, tiny_target

F64 = torch.float64
VOCAB = 6


def relaxation(delta, k=VOCAB, vocab=VOCAB):
    return Relaxation.between(torch.randn(vocab, 2, generator=torch.Generator().manual_seed(0)), k, delta)


def law(p, draws, delta):
    return exact_law(p, draws, partial(relaxed, relaxation=relaxation(delta, vocab=len(p))))


def distance(p, q):
    return float((p - q).abs().sum() / 2)


# --- the neighbourhood


def test_neighbours_are_the_nearest_tokens_by_cosine_without_the_token_itself():
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    table = Relaxation.between(vectors, k=2).neighbours
    assert table[0].tolist() == [1, 2]
    assert table[3].tolist() == [2, 1]
    assert Relaxation.between(vectors).neighbours.shape == (4, 3)  # k is 1000, so all other tokens are neighbours
    assert all(token not in row for token, row in enumerate(table.tolist()))


def test_the_table_is_the_same_when_it_is_computed_in_pieces(monkeypatch):
    vectors = torch.randn(7, 3)
    whole = Relaxation.between(vectors, k=6)
    monkeypatch.setattr("hawk.decoding.relaxed.ROWS", 2)
    assert torch.equal(Relaxation.between(vectors, k=6).neighbours, whole.neighbours)


def test_a_draft_claims_its_nearest_tokens_up_to_delta():
    p = torch.tensor([0.1, 0.25, 0.05, 0.2, 0.4], dtype=F64)
    table = torch.tensor([[2, 3, 4, 1], *[[0, 0, 0, 0]] * 4])
    claims = {delta: float(Relaxation(table, delta).claim(p, 0)) for delta in (0.0, 0.04, 0.06, 0.25, 0.7, 1.0)}
    assert claims == pytest.approx({0.0: 0.1, 0.04: 0.1, 0.06: 0.15, 0.25: 0.35, 0.7: 0.75, 1.0: 1.0})


@pytest.mark.parametrize("delta", [0.0, 0.1, 0.3])
def test_a_claim_is_at_most_delta_above_p(delta):
    p = law_cases(vocab=VOCAB)[0]
    for token in range(VOCAB):
        claimed = float(relaxation(delta).claim(p, token) - p[token])
        assert 0 <= claimed <= delta


def test_bad_settings_are_refused():
    with pytest.raises(HawkError, match="delta must be between 0"):
        relaxation(-0.1)
    with pytest.raises(HawkError, match="k must be 1 or more"):
        relaxation(0.1, k=0)


# --- its law


@pytest.mark.parametrize("name", ["one draw", "three draws, each from its own q", "q = p"])
def test_at_delta_0_it_is_lossless(name):
    p, cases = law_cases(vocab=4)
    torch.testing.assert_close(law(p, cases[name], 0.0), p, rtol=0, atol=LAW_TOLERANCE)


@pytest.mark.parametrize("delta", [0.2, 0.4])
def test_above_delta_0_it_drifts_by_no_more_than_its_bound(delta):
    p, cases = law_cases(vocab=VOCAB)
    draws = cases["three draws, each from its own q"][:2]
    most = excess(p, draws, partial(relaxed, relaxation=relaxation(delta)))
    assert 0.01 < distance(law(p, draws, delta), p) <= most + LAW_TOLERANCE
    assert excess(p, draws, partial(relaxed, relaxation=relaxation(0.0))) == 0


def test_delta_does_not_bound_the_drift():
    """Every drafted token may claim delta for itself, so drafts from a narrow q on a flat p are nearly all accepted."""
    p = torch.full((20,), 0.05, dtype=F64)
    q = torch.zeros_like(p)
    q[:4] = 0.25
    assert distance(law(p, [lambda tokens: q], 0.25), p) > 2 * 0.25


@pytest.mark.proofs
def test_end_to_end_the_images_have_another_distribution():
    """The second token of a tiny target's images is distributed as in plain AR at delta 0, and far from it at 0.5."""
    target = tiny_target(3, vocab=6, grid=Grid(1, 3), dim=16)
    prompt, params, images = tiny_prompt(target, 600, alike=True), SamplingParams(temperature=2.0), 600
    joint = exact_joint(target, prompt, target.grid, params, images)
    drafter, verifier = tiny_drafters(target)["lantern"]
    assert verifier == "relaxed"
    drifts = []
    for delta in (0.0, 0.5):
        drawn = generate(
            target,
            Request(prompt, target.grid, params, list(range(images)), verifier, relaxation=relaxation(delta)),
            drafter,
        )
        second = torch.bincount(drawn.tokens[:, 1], minlength=6) / images
        drifts.append(distance(second.double(), joint.view(6, 6, 6).sum((0, 2))))
    assert drifts[0] < 0.06
    assert drifts[1] > 0.12


# --- its label


def test_verify_calls_it_lossy_and_says_by_how_much():
    for check in check_drifts():
        assert check.passed
        assert not check.lossless
        assert check.measured.startswith("LOSSY: total variation 0.")


def test_only_lantern_is_lossy_and_is_labelled_so():
    assert [method.label for method in METHODS.values() if not method.lossless] == ["lantern (lossy)"]
