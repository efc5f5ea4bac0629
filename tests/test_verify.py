"""The two verifiers by themselves: which drafts they keep, and that the law of what they commit is the target's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hawk.decoding.tree import TreeBuilder, batch_trees
from hawk.decoding.verify import Verdict, coupled, residual, residual_distribution
from hawk.proofs.law import accept_chance, exact_law
from hawk.proofs.losslessness import LAW_TOLERANCE, check_laws, chi_square, law_cases

F64 = torch.float64
VOCAB = 5


def scores_choosing(tokens):
    """log p with noise 0 whose argmax at node i is `tokens[i]`."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), VOCAB).double()


def verdict(builder, tokens):
    tree = batch_trees([builder], ("a",))
    scores = scores_choosing(tokens)[None]
    return coupled(tree, tree.ancestors(), scores, torch.zeros_like(scores))[0]


# --- coupled


def test_coupled_without_drafts_commits_the_argmax():
    assert verdict(TreeBuilder.rooted(0), [3]).path == [0]
    assert verdict(TreeBuilder.rooted(0), [3]).token == 3


def test_coupled_keeps_the_path_that_plain_ar_would_take():
    builder = TreeBuilder.rooted(0)
    wrong, right = builder.add(0, 1, 0), builder.add(0, 2, 0)
    builder.add(wrong, 3, 0)
    below, other = builder.add(right, 3, 0), builder.add(right, 4, 0)
    # root chooses 2; node `right` chooses 4; node `other` chooses 0: the bonus token
    choices = {0: 2, wrong: 3, 3: 0, right: 4, below: 1, other: 0}
    found = verdict(builder, [choices[node] for node in range(6)])
    assert found.path == [0, right, other]
    assert found.token == 0


def test_coupled_recovers_the_target_token_where_no_draft_is_right():
    builder = TreeBuilder.rooted(0)
    builder.add(0, 1, 0)
    builder.add(0, 2, 0)
    found = verdict(builder, [4, 0, 0])
    assert (found.path, found.token) == ([0], 4)


def test_coupled_drops_a_right_token_below_a_wrong_one():
    builder = TreeBuilder.rooted(0)
    builder.add(builder.add(0, 1, 0), 3, 0)
    found = verdict(builder, [2, 3, 0])  # node 2 is what its parent chooses, but its parent is not kept
    assert (found.path, found.token) == ([0], 2)


def test_coupled_never_keeps_padding_and_takes_each_image_by_itself():
    short, long = TreeBuilder.rooted(0), TreeBuilder.rooted(0)
    long.add(long.add(0, 0, 0), 0, 0)
    tree = batch_trees([short, long], ("a",))
    scores = scores_choosing([0, 0, 0]).expand(2, -1, -1)  # padding tokens are 0 too
    found = coupled(tree, tree.ancestors(), scores, torch.zeros_like(scores))
    assert [v.path for v in found] == [[0], [0, 1, 2]]


def test_coupled_adds_the_noise_of_each_node():
    builder = TreeBuilder.rooted(0)
    builder.add(0, 1, 0)
    tree = batch_trees([builder], ("a",))
    scores = torch.zeros(1, 2, VOCAB, dtype=F64).log_softmax(-1)
    noise = torch.zeros_like(scores)
    noise[0, 0, 1], noise[0, 1, 4] = 1, 1
    found = coupled(tree, tree.ancestors(), scores, noise)[0]
    assert (found.path, found.token) == ([0, 1], 4)
    scores[0, 0, 1] = -torch.inf  # no noise makes a removed token possible
    assert coupled(tree, tree.ancestors(), scores, noise)[0].path == [0]


# --- residual


def test_every_law_is_the_targets():
    failed = [check for check in check_laws() if not check.passed]
    assert failed == []


@settings(max_examples=4)
@given(st.integers(0, 10_000))
def test_laws_hold_for_any_distributions(seed):
    p, cases = law_cases(seed, vocab=3)
    for name in ("three draws, each from its own q", "three draws from one q without replacement"):
        torch.testing.assert_close(exact_law(p, cases[name][:2]), p, rtol=0, atol=LAW_TOLERANCE)


def test_a_draft_is_kept_with_p_over_q():
    p, q = torch.tensor([0.1, 0.6, 0.3], dtype=F64), torch.tensor([0.4, 0.3, 0.3], dtype=F64)
    assert [accept_chance(p, [q], (token,)) for token in range(3)] == pytest.approx([0.25, 1, 1], abs=1e-12)


def test_a_second_draw_is_tried_against_the_residual():
    """After token 0 is rejected p - q leaves token 1 alone: a second 0 is then hopeless, a 1 is certain."""
    p, q = torch.tensor([0.1, 0.6, 0.3], dtype=F64), torch.tensor([0.4, 0.3, 0.3], dtype=F64)
    assert accept_chance(p, [q, q], (0, 0)) == 0
    assert accept_chance(p, [q, q], (0, 1)) == 1


def test_a_one_hot_draft_is_kept_with_p():
    p = torch.tensor([0.1, 0.65, 0.25, 0.0], dtype=F64)
    one_hot = torch.eye(4, dtype=F64)
    assert [accept_chance(p, [one_hot[t]], (t,)) for t in range(4)] == pytest.approx(p.tolist(), abs=1e-12)
    rejected_first = accept_chance(p, [one_hot[1], one_hot[2]], (1, 2))
    assert rejected_first == pytest.approx(0.25 / 0.35)


def test_a_draft_from_p_itself_is_always_kept():
    p = torch.tensor([0.1, 0.65, 0.25], dtype=F64)
    assert [accept_chance(p, [p], (t,)) for t in range(3)] == [1, 1, 1]


def test_residual_distribution():
    p, q = torch.tensor([0.1, 0.6, 0.3], dtype=F64), torch.tensor([0.4, 0.4, 0.2], dtype=F64)
    assert residual_distribution(p, q).tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    assert residual_distribution(p, p) is None


def test_residual_walks_down_kept_drafts_and_never_commits_what_p_forbids():
    builder = TreeBuilder.rooted(0)
    kept = builder.add(0, 1, 0, q=-1)
    builder.add(kept, 2, 0, q=-1)
    tree = batch_trees([builder], ("a",), [torch.empty(0, 3, dtype=F64)])
    scores = torch.tensor([[[0.0, 1, 0], [0.5, 0.5, 0], [0, 0, 1]]], dtype=F64).log()
    for seed in range(20):
        found = residual(tree, scores, [torch.Generator().manual_seed(seed)])[0]
        assert found.path == [0, kept]  # certain at the root, forbidden below
        assert found.token in (0, 1)


@pytest.mark.proofs
def test_residual_tries_duplicates_and_keeps_the_joint_of_two_levels():
    """A two-level tree, drawn afresh each time: the pair of committed tokens follows p(a) p(b | a)."""
    generator = torch.Generator().manual_seed(1)
    q = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6]], dtype=F64)
    first = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    then = torch.tensor([[0.1, 0.1, 0.8], [0.6, 0.3, 0.1], [1 / 3, 1 / 3, 1 / 3]], dtype=F64)
    counts = torch.zeros(9, dtype=torch.long)
    for _ in range(800):
        builder = TreeBuilder.rooted(0)
        drawn = torch.multinomial(q, 3, replacement=True, generator=generator)
        for token in drawn[0].tolist():
            builder.add(0, token, 0, q=0)
        for parent in range(1, len(builder.tokens)):
            for token in drawn[1].tolist():
                builder.add(parent, token, 0, q=1)
        tree = batch_trees([builder], ("a",), [q])
        p = torch.stack([first] + [then[token] for token in builder.tokens[1:]])
        found = residual(tree, p.log()[None], [generator])[0]
        tokens = [builder.tokens[node] for node in found.path[1:]] + [found.token]
        if len(tokens) == 1:  # nothing kept: plain AR goes on from there
            tokens.append(int(torch.multinomial(then[tokens[0]], 1, generator=generator)))
        counts[tokens[0] * 3 + tokens[1]] += 1
    assert chi_square(counts, (first[:, None] * then).flatten()).p_value > 1e-3


def test_residual_needs_the_draws():
    builder = TreeBuilder.rooted(0)
    builder.add(0, 1, 0)
    with pytest.raises(ValueError, match="draws and distributions"):
        residual(batch_trees([builder], ("a",)), torch.zeros(1, 2, 3), [torch.Generator()])


# --- the test statistic that all of this leans on


def test_chi_square_has_the_right_tail():
    """df 2 and statistic 6: the upper tail is exp(-3)."""
    counts, p = torch.tensor([130, 100, 70]), torch.tensor([1 / 3, 1 / 3, 1 / 3], dtype=F64)
    fit = chi_square(counts, p)
    assert (fit.statistic, fit.freedom) == (pytest.approx(18), 2)
    assert fit.p_value == pytest.approx(torch.exp(torch.tensor(-9.0)).item(), rel=1e-4)


def test_chi_square_lumps_rare_cells_and_forbids_impossible_ones():
    p = torch.tensor([0.001, 0.002, 0.003, 0.494, 0.5], dtype=F64)
    assert chi_square(torch.tensor([1, 2, 3, 494, 500]), p).freedom == 2
    p = torch.tensor([0.0, 0.5, 0.5], dtype=F64)
    assert chi_square(torch.tensor([1, 500, 500]), p).p_value == 0
    assert chi_square(torch.tensor([0, 500, 500]), p).p_value == pytest.approx(1)


def test_a_verdict_commits_the_nodes_whose_index_is_their_depth_and_foretells_the_rest() -> None:
    tokens = [9, 11, 12, 13, 14, 15]
    assert Verdict([0, 1, 2], 7).aligned(tokens) == Verdict([0, 1, 2], 7)
    assert Verdict([0, 1, 4, 5], 7).aligned(tokens) == Verdict([0, 1], 14, (15, 7))
    assert Verdict([0, 3], 7).aligned(tokens) == Verdict([0], 13, (7,))
    assert Verdict([0], 7).aligned(tokens) == Verdict([0], 7)
