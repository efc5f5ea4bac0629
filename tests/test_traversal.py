"""Traversal verification: where it is lossless, where it is not, and that it accepts no fewer drafts than residual."""

from math import prod

import pytest
import torch

from hawk.decoding import verify
from hawk.decoding.generate import generate
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import TreeBuilder, batch_trees
from hawk.decoding.verify import draft_distribution, residual_distribution, stops, traversal
from hawk.proofs.losslessness import LAW_TOLERANCE
from hawk.proofs.tiny import tiny_drafters, tiny_prompt, tiny_target
from hawk.proofs.tree_law import TreeLaw, exact_traversal, joint_of, random_continuation, tree_cases

F64 = torch.float64


def residual_accepts(drawn, p):
    """Mean number of drafts of a tree that residual verification accepts, over its uniform numbers."""
    tree, scores = drawn.tree, drawn.scores(p)

    def below(node):
        ahead, accepted, reached = scores[node].exp(), 0.0, 1.0
        for draw in tree.draws(0, node):
            q, token = draft_distribution(tree, 0, draw, ahead), int(tree.tokens[0, draw.node])
            left = residual_distribution(ahead, q)
            chance = 1.0 if left is None else min(1.0, float(ahead[token] / q[token]))
            accepted += reached * chance * (1 + below(draw.node))
            reached *= 1 - chance
            if reached == 0:
                break
            ahead = left
        return accepted

    return below(0)


def residual_mean(p, drafts):
    """Mean number of drafts that residual verification accepts, over its uniform numbers and all draws."""
    return sum(drawn.chance * residual_accepts(drawn, p) for drawn in drafts.trees())


def mixed(p, other):
    """A drafter whose q is half p and half another distribution."""
    return lambda path, draw: 0.5 * p(path) + 0.5 * other(path)


# --- lossless


LARGE = ("two sources at both depths", "two sources, then a chain")
"""Kinds of trees of which there are so many that enumerating them takes seconds."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.proofs if case in LARGE else ()) for case in tree_cases()[1]]
)
def test_the_law_of_every_kind_of_tree_is_the_targets(case):
    p, cases = tree_cases(seed=20)
    law = exact_traversal(p, cases[case]).law
    torch.testing.assert_close(law, joint_of(p, law.dim()), rtol=0, atol=LAW_TOLERANCE)


def test_traversal_is_not_lossless_where_branches_share_their_draws():
    """In a Cartesian tree a rejected path reveals the drafts of the branch beside it, which then no longer follow q."""
    p, other = random_continuation(2, 3), random_continuation(3, 3)

    def flat(path, draw):
        return mixed(p, other)((0,) * len(path), draw)

    own = exact_traversal(p, TreeLaw((3, 1), flat)).law
    shared = exact_traversal(p, TreeLaw((3, 1), flat, shared=True)).law
    joint = joint_of(p, 3)
    assert float((own - joint).abs().sum() / 2) < LAW_TOLERANCE
    assert float((shared - joint).abs().sum() / 2) > 0.01


def test_traversal_is_not_lossless_where_drafts_live_for_several_steps():
    """Traversal also rejects drafts past the new frontier, so those that stay in a Jacobi window no longer follow q."""
    p, other = random_continuation(0, 3), random_continuation(1, 3)
    q = mixed(p, other)
    rejected = torch.zeros(3, 3, dtype=F64)
    for drawn in TreeLaw((1, 1), q).trees():
        *above, _ = stops(drawn.tree, 0, drawn.scores(p))
        rejected[drawn.paths[-1]] += drawn.chance * prod(1 - stop.chance for stop in above)
    told = rejected.sum(1).argmax().item()
    drift = float((rejected[told] / rejected[told].sum() - q((told,), 0)).abs().sum() / 2)
    assert drift > 0.05


# --- how much it keeps


@pytest.mark.parametrize(
    ("draws", "least"),
    [((1, 1, 1), 0.03), *(pytest.param(*each, marks=pytest.mark.proofs) for each in (((2, 1), 0.008), ((2, 2), 0.0)))],
)
def test_it_accepts_no_fewer_drafts_than_residual(draws, least):
    """Computed exactly, on the same drafts. On a chain it is a theorem; on these trees it holds for all p, q tried."""
    gains = []
    for seed in range(4):
        vocab = 2 if draws == (2, 2) else 3
        p, other = random_continuation(2 * seed, vocab), random_continuation(2 * seed + 1, vocab)
        drafts = TreeLaw(draws, mixed(p, other))
        ours, residual = exact_traversal(p, drafts).accepted, residual_mean(p, drafts)
        assert ours >= residual - 1e-12
        gains.append((ours + 1) / (residual + 1) - 1)
    assert sum(gains) / len(gains) > least


def test_the_weight_of_a_path_is_of_all_its_tokens_together(monkeypatch):
    """p / q is 1/2, then 4/3. The path is accepted with chance 2/3; token by token the chance would be 1/2."""
    builder = TreeBuilder.rooted(0)
    builder.add(builder.add(0, 0, 0, q=0), 0, 0, q=1)
    q = torch.tensor([[1.0, 0.0], [0.75, 0.25]], dtype=F64)
    tree = batch_trees([builder], ("a",), [q])
    scores = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]], dtype=F64).log()
    found = list(stops(tree, 0, scores))
    assert [stop.path for stop in found] == [[0, 1, 2], [0]]
    assert found[0].chance == pytest.approx(2 / 3)
    assert found[-1].chance == 1
    assert found[-1].p.tolist() == pytest.approx([0, 1])
    for number, path in ((0.66, [0, 1, 2]), (0.67, [0])):
        monkeypatch.setattr(verify, "uniform", lambda generator, number=number: number)
        assert traversal(tree, scores[None], [torch.Generator()])[0].path == path


def test_a_token_drawn_again_is_never_accepted_and_a_draft_from_p_always():
    builder = TreeBuilder.rooted(0)
    for _ in range(2):
        builder.add(0, 0, 0, q=0)
    tree = batch_trees([builder], ("a",), [torch.tensor([[0.8, 0.1, 0.1]], dtype=F64)])
    scores = torch.tensor([[0.4, 0.3, 0.3], [1 / 3, 1 / 3, 1 / 3]], dtype=F64).log()
    assert [stop.path for stop in stops(tree, 0, scores)] == [[0, 1], [0]]
    same = tree.q[0][0].log().expand(2, 3)
    assert next(stops(tree, 0, same)).chance == 1


def test_a_tree_without_draws_is_refused():
    builder = TreeBuilder.rooted(0)
    builder.add(0, 1, 0)
    with pytest.raises(ValueError, match="draws and distributions"):
        traversal(batch_trees([builder], ("a",)), torch.zeros(1, 2, 3), [torch.Generator()])


def test_drafters_name_traversal_where_it_is_lossless():
    """It is lossless where drafts are drawn from q, each branch has its own draws, and no draft outlives its step."""
    drafters = tiny_drafters(tiny_target(0), verifier="traversal")
    able = {name for name, (drafter, _) in drafters.items() if "traversal" in drafter.lossless_with}
    assert able == {
        "random",
        "random-q",
        "medusa",
        "hawk-vertical",
        "hawk-paper",
        "hawk-spatial",
        "eagle",
        "eagle-topk",
        "lantern",
        "sjd",
    }


def test_for_traversal_a_cartesian_pool_draws_anew_for_each_branch():
    target = tiny_target(0)
    pool, _ = tiny_drafters(target, verifier="traversal")["medusa"]
    trees = []
    grow = pool.propose
    pool.propose = lambda *asked: trees.append(grow(*asked)) or trees[-1]
    generate(target, Request(tiny_prompt(target, 3), target.grid, SamplingParams(), [1, 2, 3], "traversal"), pool)
    differing = 0
    for tree in trees:
        for row, trials in enumerate(tree.trials):
            pairs = [[int(tree.tokens[row, t.node]) for t in trials[n]] for n in (1, 2) if n in trials]
            differing += len(pairs) == 2 and pairs[0] != pairs[1]
    assert differing
