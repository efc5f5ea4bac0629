"""The decoder: speculation changes nothing but the number of target forwards, and that number is counted right."""

from dataclasses import fields
from functools import cache, partial

import pytest
import torch

from hawk.decoding import trees
from hawk.decoding.canvas import RECOVERED
from hawk.decoding.forward import Target
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.noise import GumbelNoise
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import TreeBuilder, Window, batch_trees
from hawk.decoding.trees import Drafter, NoDrafter
from hawk.drafters.methods import METHODS
from hawk.errors import HawkError
from hawk.models.llamagen.target import CaptionPrompt
from hawk.proofs.losslessness import (
    EXACT_SETTINGS,
    JOINT_SETTINGS,
    check_all,
    check_definition,
    check_laws,
    check_seed_exact,
    exact_joint,
    teacher_forced,
)
from hawk.proofs.suite import proofs, prove_joint, run_in_processes
from hawk.proofs.tiny import RandomDrafter, tiny_drafters, tiny_prompt, tiny_target

DRAFTERS = ("ar", "hawk, untrained", "random", "random-q", *(name for name in METHODS if name != "ar"))
SEEDS = [1, 2, 3]
SMALL = Grid(3, 4)
COVER = (
    SamplingParams(temperature=0.7, top_k=5, top_p=0.9, cfg_scale=2.0),
    SamplingParams(temperature=1.5, top_k=4),
    SamplingParams(top_p=0.8, cfg_scale=1.5),
    SamplingParams(temperature=0.0, cfg_scale=3.0),
)
"""Every value that a parameter has in EXACT_SETTINGS, in as few settings as there are temperatures."""
CASES = [
    pytest.param(COVER, SMALL, id="cover"),
    pytest.param(EXACT_SETTINGS, Grid(4, 6), id="full", marks=pytest.mark.proofs),
]
"""Settings and grids under which drafters are proven."""


@pytest.fixture(scope="module")
def target():
    return tiny_target(0)


@pytest.fixture(scope="module")
def prompt(target):
    return tiny_prompt(target, len(SEEDS))


@pytest.fixture(scope="module")
def drafters(target):
    return {name: drafter for name, (drafter, _) in tiny_drafters(target).items()}


@pytest.fixture(scope="module")
def plain(target, prompt):
    return [generate(target, Request(prompt, target.grid, params, SEEDS), NoDrafter()) for params in EXACT_SETTINGS]


@pytest.fixture(scope="module")
def plain_of(target, prompt):
    """Plain AR's images of a grid under some settings, drawn once."""
    return cache(lambda grid, params: generate(target, Request(prompt, grid, params, SEEDS), NoDrafter()))


def rows_of(prompt, rows):
    return CaptionPrompt(prompt.features[rows], prompt.mask[rows])


# --- seed-exact


def test_the_parts_are_what_the_decoder_asks_for(target, drafters):
    assert isinstance(target, Target)
    assert set(drafters) == set(DRAFTERS)
    assert all(isinstance(drafter, Drafter | Window) for drafter in (*drafters.values(), NoDrafter()))


def test_plain_ar_is_its_definition(target, prompt, plain):
    for params, generation in zip(EXACT_SETTINGS, plain, strict=True):
        assert check_definition(target, Request(prompt, target.grid, params, SEEDS), generation).passed


def test_the_cover_has_every_value_of_the_exact_settings():
    for field in fields(SamplingParams):
        covered, exact = ({getattr(params, field.name) for params in some} for some in (COVER, EXACT_SETTINGS))
        assert covered == exact, field.name


@pytest.mark.parametrize(("settings", "grid"), CASES)
@pytest.mark.parametrize("name", DRAFTERS)
def test_same_seed_same_tokens(name, settings, grid, target, prompt, plain_of, drafters):
    for params in settings:
        request = Request(prompt, grid, params, SEEDS)
        check = check_seed_exact(name, target, request, drafters[name], plain_of(grid, params))
        assert check.passed, check


@pytest.mark.parametrize(("settings", "grid"), CASES)
@pytest.mark.parametrize("name", ["random", "hawk"])
def test_committing_only_aligned_nodes_gives_the_same_tokens(
    name, settings, grid, target, prompt, plain_of, drafters, monkeypatch
):
    """What half precision does; here in float64, where every difference would be a mistake."""
    verified = trees.coupled_at
    ahead = []

    def aligned(randomness, half, *rest):
        verdicts = verified(randomness, True, *rest)
        ahead.extend(verdict.ahead for verdict in verdicts)
        return verdicts

    monkeypatch.setattr(trees, "coupled_at", aligned)
    for params in settings:
        request = Request(prompt, grid, params, SEEDS)
        check = check_seed_exact(name, target, request, drafters[name], plain_of(grid, params))
        assert check.passed, check
    assert any(ahead)


@pytest.mark.parametrize("grid", [Grid(1, 9), Grid(9, 1), Grid(3, 5)])
def test_other_grids_than_the_targets_own(grid, target, prompt, drafters):
    chosen = {name: (drafters[name], "coupled") for name in ("random", "hawk")}
    checks = check_all(target, prompt, grid, chosen, [SamplingParams(cfg_scale=2.0)], SEEDS)
    assert [check.passed for check in checks] == [True] * 3


def test_speculation_pays(target, prompt, plain, drafters):
    """Equal tokens would prove nothing if no draft were ever kept."""
    helpless = (
        "ar",
        "random",
        "random-q",
        "sjd",
        "scd-maximal",
        "hawk-spatial",
    )  # on a target that is all noise: a draft is seldom kept
    for name in DRAFTERS:
        generation = generate(target, Request(prompt, target.grid, EXACT_SETTINGS[0], SEEDS), drafters[name])
        assert torch.equal(generation.tokens, plain[0].tokens), name
        assert generation.stats.accepted_by_source or name == "ar", name
        assert name in helpless or generation.stats.nfe < plain[0].stats.nfe, name


@pytest.mark.parametrize(("name", "verifier"), [("hawk", "coupled"), ("random", "coupled"), ("hawk-paper", "residual")])
@pytest.mark.parametrize("params", [EXACT_SETTINGS[0], EXACT_SETTINGS[2]])
def test_an_image_does_not_depend_on_its_neighbours(name, verifier, params, target, prompt, drafters):
    together = generate(target, Request(prompt, SMALL, params, SEEDS, verifier), drafters[name])
    turned = [2, 0, 1]
    again = generate(
        target,
        Request(rows_of(prompt, turned), SMALL, params, [SEEDS[i] for i in turned], verifier),
        drafters[name],
    )
    assert torch.equal(again.tokens, together.tokens[turned])
    alone = generate(target, Request(rows_of(prompt, [1]), SMALL, params, SEEDS[1:2], verifier), drafters[name])
    assert torch.equal(alone.tokens[0], together.tokens[1])


def test_seeds_make_images_differ_and_greedy_ignores_them(target):
    prompt = tiny_prompt(target, 3, alike=True)
    drawn = generate(target, Request(prompt, target.grid, SamplingParams(), [5, 6, 5]), NoDrafter()).tokens
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    greedy = generate(
        target, Request(prompt, target.grid, SamplingParams(temperature=0.0), [5, 6, 7]), NoDrafter()
    ).tokens
    assert bool((greedy == greedy[0]).all())


def test_captions_and_guidance_matter(target, prompt):
    alike = tiny_prompt(target, 3, alike=True)

    def draw(prompt, scale):
        return generate(
            target, Request(prompt, target.grid, SamplingParams(cfg_scale=scale), SEEDS), NoDrafter()
        ).tokens

    assert not torch.equal(draw(prompt, 1.0), draw(alike, 1.0))
    assert not torch.equal(draw(prompt, 3.0), draw(prompt, 1.0))


def test_guided_decoding_is_teacher_forcing_with_caption_and_null_caption(target, prompt, plain):
    """By the training forward, which knows neither cache nor tree, and the guidance formula written out."""
    scale, tokens = EXACT_SETTINGS[1].cfg_scale, plain[1].tokens
    cond = target.head(target(tokens, prompt.features, prompt.mask, target.grid))
    null = target.head(target(tokens, target.null_features(prompt.features), prompt.mask, target.grid))
    noise = GumbelNoise(SEEDS, target.grid.size, target.vocab_size, like=cond)
    noise = noise.rows(torch.arange(target.grid.size).repeat(3, 1))
    expected = (null + scale * (cond - null)).log_softmax(-1) + noise
    assert torch.equal(expected.argmax(-1), tokens)


def test_what_lies_under_the_padding_does_not_matter(target, prompt, plain, drafters):
    junk = torch.where(prompt.mask[..., None], prompt.features, 9.0)
    drawn = generate(
        target, Request(CaptionPrompt(junk, prompt.mask), target.grid, SamplingParams(), SEEDS), drafters["hawk"]
    )
    assert not bool(prompt.mask.all())
    assert torch.equal(drawn.tokens, plain[0].tokens)


def test_a_negative_prompt_equal_to_the_prompt_undoes_guidance(target, prompt):
    cancelled = CaptionPrompt(prompt.features, prompt.mask, prompt.features, prompt.mask)
    guided = generate(target, Request(cancelled, target.grid, SamplingParams(cfg_scale=4.0), SEEDS), NoDrafter())
    unguided = generate(target, Request(prompt, target.grid, SamplingParams(), SEEDS), NoDrafter())
    assert torch.equal(guided.tokens, unguided.tokens)


def test_guiding_logits_and_guiding_states_agree(target, prompt, plain, drafters, monkeypatch):
    """A head that is not known to be linear is applied to both rows."""
    monkeypatch.setattr(target, "linear_head", False)
    drawn = generate(target, Request(prompt, target.grid, EXACT_SETTINGS[1], SEEDS), drafters["hawk"])
    assert torch.equal(drawn.tokens, plain[1].tokens)


# --- the joint distribution


def test_the_enumerated_joint_is_a_distribution_and_a_product():
    target = tiny_target(3, vocab=3, grid=Grid(2, 2), dim=16)
    prompt, params = tiny_prompt(target, 2, alike=True), SamplingParams(top_k=2)
    joint = exact_joint(target, prompt, target.grid, params, images=2)
    assert len(joint) == 3**4
    assert float(joint.sum()) == pytest.approx(1)
    assert int((joint > 0).sum()) == 2**4
    sequence = torch.tensor([[2, 0, 1, 2], [0, 0, 0, 1]])
    scores = teacher_forced(target, prompt, target.grid, params, sequence)
    product = scores.exp().gather(-1, sequence[..., None]).prod(1).flatten()
    assert joint[[2 * 27 + 1 * 3 + 2, 1]].tolist() == pytest.approx(product.tolist())


def test_joint_refuses_what_cannot_be_enumerated(target, prompt, drafters):
    with pytest.raises(HawkError, match="too many to enumerate"):
        check_all(target, prompt, target.grid, {"medusa": (drafters["medusa"], "residual")}, [SamplingParams()], SEEDS)


@pytest.mark.parametrize(
    ("name", "verifier", "rounds"),
    [
        ("random-q", "traversal", 1),
        *(
            pytest.param(*each, 3, marks=pytest.mark.proofs)
            for each in (("random-q", "residual"), ("hawk-paper", "residual"), ("eagle", "traversal"))
        ),
    ],
)
def test_drawn_drafts_keep_the_joint_distribution(name, verifier, rounds):
    """For the fast tests, `test_mutations.joint_of_random_trees` is the same proof under the residual verifier."""
    target = tiny_target(3, vocab=3, grid=Grid(3, 2), dim=16)
    chosen = {name: (tiny_drafters(target, verifier=verifier)[name][0], verifier)}
    prompt, seeds = tiny_prompt(target, 200, alike=True), list(range(200))
    checks = check_all(target, prompt, target.grid, chosen, JOINT_SETTINGS[:1], seeds, rounds)
    assert [check.passed for check in checks] == [True, True], checks


@pytest.mark.slow
def test_every_proof_holds():
    assert [check for proof in proofs() for check in proof() if not check.passed] == []


@pytest.mark.proofs
@pytest.mark.parametrize("processes", [1, 2])
def test_proofs_run_in_processes_as_they_do_here(processes):
    few = [partial(check_laws, vocab) for vocab in (3, 4)]
    assert list(run_in_processes(few, processes)) == [proof() for proof in few]


def test_every_method_is_proven():
    asked = [proof.args for proof in proofs() if getattr(proof, "func", None) is prove_joint]
    drawn = {name for name, method in METHODS.items() if method.verifier == "residual"}
    assert {name for verifier, name, _ in asked if verifier == "residual"} == {*drawn, "random-q"}
    assert len(set(asked)) == len(asked)


def test_proofs_want_float64():
    with pytest.raises(HawkError, match="float64"):
        proofs(tiny_target(0, dtype=torch.float32))


# --- what is counted


class Oracle:
    """Knows plain AR's tokens and drafts them as a chain; `wrong` depths (1 first) get another token instead.

    `lengths[row]` is the chain's length for each image.
    """

    lossless_with = ("coupled", "residual")

    def __init__(self, tokens, lengths, wrong=()):
        self.tokens, self.lengths, self.wrong = tokens, lengths, wrong
        self.max_nodes = max(lengths) + 1
        self.observed = []

    def start(self, canvas, params, randomness):
        return "memory"

    def propose(self, memory, canvas):
        assert memory == "memory"
        builders = []
        for row, length in enumerate(self.lengths):
            node = 0
            builder = TreeBuilder.rooted(int(canvas.tokens[row, canvas.committed[row] - 1]))
            for depth in range(1, min(length, canvas.room(row)) + 1):
                token = int(self.tokens[row, canvas.committed[row] + depth - 1])
                node = builder.add(node, (token + (depth in self.wrong)) % 12, 0)
            builders.append(builder)
        return batch_trees(builders, ("oracle",))

    def observe(self, memory, canvas, scored):
        self.observed.append(([len(v.path) for v in scored.verdicts], list(canvas.committed)))


NUMBERED = SamplingParams(cfg_scale=2.0)


@pytest.fixture(scope="module")
def known(target, prompt):
    return generate(target, Request(prompt, SMALL, NUMBERED, SEEDS), NoDrafter()).tokens


def test_plain_ar_takes_one_forward_a_token(target, prompt):
    stats = generate(target, Request(prompt, SMALL, NUMBERED, SEEDS), NoDrafter()).stats
    assert (stats.images, stats.nfe, stats.committed) == (3, 12, 36)
    assert stats.accept_length == 1
    assert stats.nodes == 36
    assert stats.acceptance_rate == []
    assert stats.accepted_by_source == {}


def test_an_oracle_is_always_kept(target, prompt, known):
    """12 tokens: the prefill commits 1, then 3 drafts and a bonus a step: 4 + 4 + 3."""
    oracle = Oracle(known, [3, 3, 3])
    drawn = generate(target, Request(prompt, SMALL, NUMBERED, SEEDS), oracle)
    assert torch.equal(drawn.tokens, known)
    stats = drawn.stats
    assert (stats.nfe, stats.committed) == (1 + 3, 36)
    assert stats.accept_length == 3
    assert stats.verified_by_depth == stats.accepted_by_depth == [9, 9, 9]
    assert stats.acceptance_rate == [1, 1, 1]
    assert stats.accepted_by_source == {"oracle": 27}
    assert stats.nodes == 3 * (1 + 3 * 4)
    assert drawn.source_names == ("oracle",)
    assert (drawn.origins[0] == RECOVERED).nonzero().flatten().tolist() == [0, 4, 8]
    assert oracle.observed == [([1] * 3, [1] * 3), ([4] * 3, [5] * 3), ([4] * 3, [9] * 3), ([4] * 3, [12] * 3)]


def test_a_wrong_draft_costs_what_lies_below_it(target, prompt, known):
    """Of right, wrong, right: one draft and a recovered token a step. Rooms 11, 9, 7, 5, 3, 1: six steps."""
    drawn = generate(target, Request(prompt, SMALL, NUMBERED, SEEDS), Oracle(known, [3, 3, 3], wrong=(2,)))
    assert torch.equal(drawn.tokens, known)
    stats = drawn.stats
    assert stats.nfe == 7
    assert stats.accept_length == pytest.approx(12 / 7)
    assert stats.verified_by_depth == [18, 15, 15]
    assert stats.accepted_by_depth == [18, 0, 0]
    assert stats.acceptance_rate == [1, 0, 0]
    assert drawn.origins[1].tolist() == [RECOVERED, 0] * 6


def test_a_finished_image_waits_uncounted(target, prompt, known):
    """The first image needs 1 + 1 forwards, the second 12, the third 1 + 4; the batch takes the longest."""
    drawn = generate(target, Request(prompt, SMALL, NUMBERED, SEEDS), Oracle(known, [11, 0, 2]))
    assert torch.equal(drawn.tokens, known)
    stats = drawn.stats
    assert (stats.nfe, stats.committed) == (12, 36)
    assert stats.accept_length == 1
    assert stats.accepted_by_source == {"oracle": 11 + 4 * 2}
    assert stats.verified_by_depth == [1 + 4, 1 + 4, *[1] * 9]
    assert stats.nodes == (1 + 12) + 12 + (1 + 4 * 3)


def test_on_step_sees_every_step(target, prompt, known):
    seen = []
    generate(
        target,
        Request(prompt, SMALL, NUMBERED, SEEDS),
        Oracle(known, [3, 3, 3]),
        on_step=lambda canvas, stats: seen.append((list(canvas.committed), stats.nfe)),
    )
    assert seen == [([5] * 3, 2), ([9] * 3, 3), ([12] * 3, 4)]


# --- what is refused


def test_a_verifier_that_the_drafts_cannot_be_verified_by_is_refused(target, prompt, drafters):
    with pytest.raises(HawkError, match="need the verifier coupled, not residual"):
        generate(target, Request(prompt, SMALL, NUMBERED, SEEDS, "residual"), drafters["hawk"])
    with pytest.raises(HawkError, match="unknown verifier 'loose'"):
        generate(target, Request(prompt, SMALL, NUMBERED, SEEDS, "loose"), drafters["hawk"])
    with pytest.raises(HawkError, match="need the verifier residual or coupled, not traversal"):  # draws are shared
        generate(target, Request(prompt, SMALL, NUMBERED, SEEDS, "traversal"), drafters["medusa"])
    with pytest.raises(HawkError, match="need the verifier residual or coupled, not traversal"):  # drafts live on
        generate(target, Request(prompt, SMALL, NUMBERED, SEEDS, "traversal"), drafters["scd-maximal"])
    with pytest.raises(HawkError, match="a relaxation goes with the verifier relaxed"):
        generate(target, Request(prompt, SMALL, NUMBERED, SEEDS, "relaxed"), drafters["lantern"])


def test_captions_of_another_shape_are_refused(target):
    prompt = CaptionPrompt(torch.zeros(1, 7, 10, dtype=torch.float64), torch.ones(1, 7, dtype=torch.bool))
    with pytest.raises(HawkError, match="7x10, this model takes 5x10"):
        generate(target, Request(prompt, SMALL, NUMBERED, [1]), NoDrafter())


def test_random_trees_never_pass_the_end_and_do_not_depend_on_neighbours(target, prompt):
    class Watched(RandomDrafter):
        def propose(self, memory, canvas):
            tree = super().propose(memory, canvas)
            depths = tree.ancestors().sum(-1) - 1
            for row in range(canvas.batch):
                assert int(depths[row][tree.valid[row]].max()) <= canvas.room(row)
            assert tree.nodes <= self.max_nodes
            return tree

    generate(target, Request(prompt, SMALL, NUMBERED, SEEDS), Watched(12))
    generate(target, Request(prompt, SMALL, NUMBERED, SEEDS, "residual"), Watched(12, carries_q=True))
