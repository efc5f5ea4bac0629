"""Faults that released decoders had, as mutants of Hawk: a proof that `hawk verify` runs must fail for each of them.

docs/lossless.md explains the faults. Its table is what `scripts/lossless_faults.py` prints.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from hawk.decoding import trees, verify, window
from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.verify import Verdict, draft_distribution, residual_distribution, sample, uniform
from hawk.drafters import jacobi
from hawk.proofs.drawing_law import drawing_cases
from hawk.proofs.enumeration import Choices, Chosen, law_of, total_variation
from hawk.proofs.law import drawn_tree, exact_law
from hawk.proofs.losslessness import LAW_TOLERANCE, Check, check_all, check_drawing_law, check_law, law_cases
from hawk.proofs.suite import proofs
from hawk.proofs.tiny import tiny_drafters, tiny_prompt, tiny_target
from mutant import Mutant, failed

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Replaced:
    """A function `owner.name` of Hawk with another one in its place, and the proofs that must each fail for it."""

    owner: object
    name: str
    function: Callable
    proofs: tuple[Callable[[], list[Check]], ...]

    def install(self, monkeypatch) -> None:
        """Put the other function in its place."""
        monkeypatch.setattr(self.owner, self.name, self.function)


# --- the proofs, each on the smallest case that shows the fault


def images_of(name: str) -> list[Check]:
    """The exact law of the images of one drafter."""
    return [check_drawing_law(name, drawing_cases()[name])]


def siblings_law() -> list[Check]:
    """The exact law of residual verification of siblings that are drawn without replacement."""
    p, cases = law_cases()
    name = "three draws from one q without replacement"
    return [check_law(name, p, cases[name])]


def same_tokens(name: str) -> list[Check]:
    """Under coupled verification one drafter is seed-exact, and plain AR follows its definition."""
    target = tiny_target(0, grid=Grid(3, 4), dim=16)
    drafters = {name: (tiny_drafters(target)[name][0], "coupled")}
    return check_all(target, tiny_prompt(target, 2), target.grid, drafters, [SamplingParams()], [1, 2])


one_draft = partial(images_of, "one draft a step")
trees_of_two_sources = partial(images_of, "trees of two sources")
drafts_that_live = partial(images_of, "drafts that live for several steps")
two_candidates = partial(images_of, "the same, two candidates at the frontier")
plain_windows = partial(same_tokens, "ar")
drafts_from_the_second_row = partial(same_tokens, "hawk-vertical")


# --- the faults


def longest_path(tree, row, scores, generator, claim):
    """The verdict of a verifier that tries all siblings and commits the longest path of accepted drafts."""

    def below(node: int) -> tuple[list[int], torch.Tensor]:
        """The longest path from a node, and the distribution of the token after it."""
        p, accepted = scores[node].exp(), []
        for draw in tree.draws(row, node):
            q, token = draft_distribution(tree, row, draw, p), int(tree.tokens[row, draw.node])
            left = residual_distribution(p, q)
            if left is None or uniform(generator) * q[token] < claim(p, token):
                accepted.append(below(draw.node))
            else:
                p = left
        path, after = max(accepted, key=lambda found: len(found[0]), default=([], p))
        return [node, *path], after

    path, after = below(0)
    return Verdict(path, sample(after, generator))


def draw_past_an_untried_sibling(token, q, p, generator):
    """A coupled draw that, after a rejection, also subtracts the distribution of a sibling that was not tried."""
    left = residual_distribution(p, q)
    if left is None or uniform(generator) * q[token] < p[token]:
        return token
    sibling = q.index_fill(0, torch.tensor(token), 0.0)
    further = residual_distribution(left, sibling / sibling.sum())
    return sample(left if further is None else further, generator)


KEEPS_ALL = "tree.draws(row, path[-1]) == [] and len(path) > 1"

FAULTS = {
    "the old q is kept for a draft that was accepted but not committed": Mutant(
        jacobi.JacobiTree,
        "observe",
        "fresh.q.append(p)",
        "fresh.q.append(live.q[offset] if fresh.tokens[-1] == live.tokens[offset] else p)",
        (drafts_that_live,),
    ),
    "the longest accepted path is committed, not that of the first accepted sibling": Replaced(
        verify, "walk", longest_path, (trees_of_two_sources,)
    ),
    "siblings are drawn from what remains of q, but p only loses the rejected token": Mutant(
        verify,
        "walk",
        "p = left",
        "p = p.index_fill(0, torch.tensor(token), 0.0) / (1 - p[token])",
        (siblings_law, one_draft),
    ),
    "deeper drafts are redrawn from the residual of a sibling that was not tried": Replaced(
        jacobi, "coupled_draw", draw_past_an_untried_sibling, (two_candidates,)
    ),
    "a step without drafts takes the noise of the step before, in trees": Mutant(
        trees,
        "step",
        "positions + 1)",
        "positions + (tree.nodes > 1 or isinstance(drafter, NoDrafter)))",
        (drafts_from_the_second_row,),
    ),
    "a step without drafts takes the noise of the step before, in windows": Mutant(
        window, "advance", "at(positions + 1)", "at(positions + (reach > 0))", (plain_windows,)
    ),
    "the token after a whole window of accepted drafts is uniform": Mutant(
        verify,
        "walk",
        "sample(p, generator)",
        f"sample(torch.ones_like(p) if {KEEPS_ALL} else p, generator)",
        (one_draft, drafts_that_live),
    ),
}

PROOFS = list(dict.fromkeys(proof for fault in FAULTS.values() for proof in fault.proofs))


@pytest.mark.parametrize("proof", PROOFS)
def test_proofs_pass_without_a_fault(proof):
    assert failed(proof) == []


@pytest.mark.parametrize("name", FAULTS)
def test_proofs_fail_for_a_fault(name, monkeypatch):
    fault = FAULTS[name]
    fault.install(monkeypatch)
    for proof in fault.proofs:
        assert failed(proof), f"{proof} passed in spite of: {name}"


def test_verify_runs_the_law_of_the_images():
    assert "check_drawing_laws" in [getattr(proof, "__name__", "") for proof in proofs()]


# --- the enumeration of all draws


def test_every_outcome_has_its_probability():
    def program(choices: Choices) -> tuple[int, ...]:
        first = choices.draw([1.0, 0.0, 3.0])
        return (first, choices.draw([0.5, 0.5])) if first else (first,)

    assert law_of(program) == {(0,): 0.25, (2, 0): 0.375, (2, 1): 0.375}
    assert total_variation({0: 0.5, 1: 0.5}, {0: 0.25, 2: 0.75}) == 0.75


def test_enumerated_and_bisected_laws_agree():
    p, cases = law_cases()
    draws = cases["three draws, each from its own q"][:2]

    def program(choices: Choices) -> int:
        qs = [draw(()) for draw in draws]
        tree = drawn_tree(qs, tuple(choices.draw(q.tolist()) for q in qs))
        with Chosen(choices):
            verdict = verify.residual(tree, p.log().expand(1, tree.nodes, -1), [torch.Generator()])[0]
        return int(tree.tokens[0, verdict.path[1]]) if len(verdict.path) > 1 else verdict.token

    law = law_of(program)
    expected = dict(enumerate(exact_law(p, draws).tolist()))
    assert total_variation(law, expected) < LAW_TOLERANCE


# --- the toys of the guide


@pytest.fixture(scope="module")
def toys():
    spec = importlib.util.spec_from_file_location("lossless_faults", ROOT / "scripts" / "lossless_faults.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_toys_are_lossless_without_their_faults(toys):
    assert max(toy.drift() for toy in (toys.WINDOWS, toys.TREES, toys.NOISE)) < LAW_TOLERANCE


@pytest.mark.proofs
def test_the_guide_has_the_measured_drifts(toys):
    guide = (ROOT / "docs" / "lossless.md").read_text(encoding="utf-8")
    assert toys.table() in guide
    assert [fault for fault in toys.TOYS if f"### {fault[0].upper()}{fault[1:]}\n" not in guide] == []
