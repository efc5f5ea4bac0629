"""Heads, vertical cache, pools: every draft is for the position it claims and carries the q it was drawn from."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hawk.decoding.canvas import Canvas
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.noise import Randomness
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams, gumbel_argmax, log_probs
from hawk.decoding.tree import TreeBuilder, Window, batch_trees
from hawk.decoding.trees import NoDrafter
from hawk.decoding.verify import Verdict, Verified, sample
from hawk.drafters.best_first import Candidates, grow_best_first
from hawk.drafters.feature import FeatureConfig, FeatureDrafter
from hawk.drafters.heads import DraftHeads, HeadsConfig, HorizontalSource, VerticalSource
from hawk.drafters.jacobi import JacobiMemory, JacobiTree, LiveDrafts, coupled_draw, siblings
from hawk.drafters.left import LeftFactor
from hawk.drafters.methods import METHODS, build_drafter, method_named
from hawk.drafters.parts import DraftParts
from hawk.drafters.pool import CartesianPool, FusedPool
from hawk.drafters.settings import HEAD_SOURCES, REFRESH, FusedSettings, TreeLimits
from hawk.drafters.source import Draft
from hawk.drafters.spatial import SpatialConfig, SpatialDrafter
from hawk.drafters.stale import StaleSource
from hawk.errors import HawkError
from hawk.proofs.losslessness import chi_square
from hawk.proofs.tiny import tiny_drafters, tiny_prompt, tiny_target

F64 = torch.float64
TWO = ("horizontal", "vertical-1")
ROOTS = batch_trees([TreeBuilder.rooted(0)] * 2, ())
UNSEEN = Verified(ROOTS, torch.zeros(2, 1, 3), [Verdict([0], 0)] * 2)  # a step that heads do not look at
FREE = SamplingParams()


# --- offsets: a mock whose states and tokens are position numbers, so that every draft must name its position


GRID = Grid(4, 3)
NUMBERS = GRID.size + 8
HORIZONTAL, VERTICAL = 4, 2


def shift(by):
    """Linear map that adds `by` to a number."""
    return 3.0 * torch.diag(torch.ones(NUMBERS - by), -by)


@pytest.fixture
def numbered_heads():
    """Horizontal head n adds n; vertical head d adds d rows to the token it follows (whose state says one more)."""
    heads = DraftHeads(HeadsConfig(NUMBERS, HORIZONTAL, VERTICAL))
    for n, block in enumerate(heads.horizontal, start=1):
        block.weight.data = shift(n)
    for d, block in enumerate(heads.vertical, start=1):
        block.weight.data = shift(d * GRID.width - 1)
    return heads.requires_grad_(False)


def numbered_canvas(committed):
    """States that say the position they predict; those not known yet are NaN."""
    canvas = Canvas.blank(GRID, torch.zeros(len(committed), NUMBERS))
    for row, count in enumerate(committed):
        canvas.commit(row, list(range(count)), [0] * count)
        canvas.states[row] = torch.nan
    tell(canvas)
    return canvas


def tell(canvas):
    for row, count in enumerate(canvas.committed):
        canvas.states[row, :count] = 10.0 * torch.eye(NUMBERS)[:count]


def test_horizontal_head_n_is_for_n_places_after_the_root(numbered_heads):
    source = HorizontalSource(numbered_heads)
    canvas = numbered_canvas([1, 6])
    memory = source.start(canvas)
    for row, count in enumerate(canvas.committed):
        source.receive(memory, row, source.queries(memory, canvas, row))
        for offsets in range(1, HORIZONTAL + 1):
            drafted = source.draft(memory, row, count, offsets).log_q.argmax(-1).tolist()
            assert drafted == [count - 1 + n for n in range(1, offsets + 1)]


def test_vertical_drafts_wait_for_the_cell_d_rows_below(numbered_heads):
    """Images that advance unevenly, over more rows than the ring holds."""
    pool = CartesianPool([VerticalSource(numbered_heads, d, NUMBERS) for d in (1, 2)], lambda s: s)
    canvas = numbered_canvas([0, 0])
    memory = pool.start(canvas, FREE, Randomness.from_seeds([1, 2], GRID.size, NUMBERS, torch.zeros(0)))
    for advance in [(1, 1), (3, 1), (1, 4), (4, 1), (1, 1), (2, 3), (0, 1)]:
        for row, count in enumerate(advance):
            first = canvas.committed[row]
            canvas.commit(row, list(range(first, first + count)), [0] * count)
        tell(canvas)
        pool.observe(memory, canvas, UNSEEN)
        for row in range(canvas.batch):
            root = canvas.committed[row] - 1
            found = {}
            for source, draft in pool.drafts(memory, canvas, row, canvas.room(row)).items():
                positions = range(root + 1 + draft.first, root + 1 + draft.end)
                assert draft.log_q.argmax(-1).tolist() == list(positions)
                found[source + 1] = list(positions)
            for d in (1, 2):  # exactly the cells whose cell d rows above has a state by now
                known = [p for p in range(root + 1, GRID.size) if 0 <= p - d * GRID.width < root]
                assert found.get(d, []) == known


def test_zero_heads_repeat_the_targets_own_distribution():
    heads = DraftHeads(HeadsConfig(8))
    state = torch.randn(5, 8)
    for block in (*heads.horizontal, *heads.vertical):
        assert torch.equal(heads.draft_state(block, state), state)


@pytest.mark.parametrize("name", ["hawk-vertical", "hawk-paper", "hawk"])
@pytest.mark.parametrize("params", [FREE, SamplingParams(temperature=0.7, top_k=5, cfg_scale=2.0)])
def test_waiting_predictions_equal_those_made_afresh(name, params):
    """In a real decoding run: what the cache holds for y is the vertical head of the state after y - d * width."""
    target = tiny_target(1, grid=Grid(5, 4))
    pool, verifier = tiny_drafters(target)[name]
    inner, checked = pool.drafts, 0

    def watched(memory, canvas, row, window):
        nonlocal checked
        drafts = inner(memory, canvas, row, window)
        for k, draft in drafts.items():
            source = pool.sources[k]
            if not isinstance(source, VerticalSource):
                continue
            block, first = source.heads.vertical[source.depth - 1], canvas.committed[row] + draft.first
            after = torch.arange(first, first + len(draft.log_q)) - source.depth * canvas.grid.width
            assert bool((after >= 0).all())
            assert int(after.max()) < canvas.committed[row] - 1
            state = source.heads.draft_state(block, canvas.states[row, after + 1])
            afresh = log_probs(target.head(state), params)
            torch.testing.assert_close(draft.log_q, afresh, rtol=1e-9, atol=1e-9)
            checked += 1
        return drafts

    pool.drafts = watched
    generate(target, Request(tiny_prompt(target, 3), target.grid, params, [1, 2, 3], verifier), pool)
    assert checked > 20


# --- what the target said too early


def test_stale_scores_are_of_the_branch_that_broke_and_older_ones_wait_behind_them():
    """Positions are numbers: the scores of the node at position p say p + 1, plus a tenth of the step's number."""
    grid, vocab = Grid(2, 8), 3
    canvas = Canvas.blank(grid, torch.zeros(1, 2))
    canvas.commit(0, [0, 0], [0, 0])
    source = StaleSource(vocab)
    memory = source.start(canvas)
    assert source.draft(memory, 0, 2, 4) is None

    def verified(step, parents, path):
        builder = TreeBuilder.rooted(0)
        for node, parent in enumerate(parents, start=1):
            builder.add(parent, node, 0)
        root = canvas.committed[0] - 1
        says = torch.tensor([[[root + depth + 1 + step / 10] * vocab for depth in builder.depths]])
        verified = Verified(batch_trees([builder], ()), says, [Verdict(path, 0)])
        canvas.commit(0, [0] * len(path), [0] * len(path))
        source.see(memory, canvas, 0, verified)

    verified(1, [0, 0, 1, 3, 4], [0])  # a chain 1-3-4-5 and a sibling 2: all wrong; positions 3, 4, 5, 6 were scored
    assert source.draft(memory, 0, 3, 9).log_q[:, 0].tolist() == pytest.approx([3.1, 4.1, 5.1, 6.1])
    assert source.draft(memory, 0, 3, 2).log_q[:, 0].tolist() == pytest.approx([3.1, 4.1])
    verified(2, [0, 1, 2], [0, 1])  # one kept, two wrong: positions 5, 6 anew, nothing older left
    assert source.draft(memory, 0, 5, 9).log_q[:, 0].tolist() == pytest.approx([5.2, 6.2])
    verified(3, [0], [0, 1])  # all kept, nothing new: what an earlier step said of 7 and on is not there
    assert source.draft(memory, 0, 7, 9) is None


def test_behind_the_broken_branch_stand_the_scores_of_the_trees_first_branch():
    canvas = Canvas.blank(Grid(2, 8), torch.zeros(1, 2))
    canvas.commit(0, [0, 0], [0, 0])
    source = StaleSource(3)
    memory = source.start(canvas)
    builder = TreeBuilder.rooted(0)
    for node, parent in enumerate([0, 1, 2, 3, 0, 5], start=1):  # first branch 1-2-3-4; beside it 5-6
        builder.add(parent, node, 0)
    says = torch.tensor([[[float(node)] * 3 for node in range(7)]])
    verified = Verified(batch_trees([builder], ()), says, [Verdict([0, 5], 0)])  # 5 kept, 6 wrong
    canvas.commit(0, [0, 0], [0, 0])
    source.see(memory, canvas, 0, verified)
    assert source.draft(memory, 0, 4, 9).log_q[:, 0].tolist() == [6, 3, 4]  # depths 2, 3, 4


def test_the_first_branch_goes_on_to_the_refreshed_positions():
    """Likeliest tokens where a source speaks, then the cell above; and it stands right behind the root."""
    vocab, grid = 4, Grid(4, 3)
    log_q = torch.full((5, vocab), -9.0, dtype=F64)
    log_q[torch.arange(5), torch.tensor([1, 2, 3, 0, 1])] = -1e-3
    settings = FusedSettings(
        {"0": ((50.0,),)}, (), ((0.6, 0.3),), window=2, refresh=8, max_nodes=4, node_cost=0.01, sources=("one",)
    )
    pool = known_pool(FusedPool, {0: Draft(0, log_q)}, sources=1, settings=settings)
    canvas = settled_canvas(grid, [3], vocab)
    memory = pool.start(canvas, FREE, Randomness.from_seeds([1], grid.size, vocab, log_q))
    tree = pool.propose(memory, canvas)
    assert tree.tokens[0, 1:9].tolist() == [1, 2, 3, 0, 1, 3, 0, 1]  # the last three repeat those above
    assert tree.parents[0, 1:9].tolist() == list(range(8))
    assert tree.nodes == 9 + 1  # one sibling, behind the branch
    assert pool.max_nodes == 12
    near = replace(pool, settings=settings.limited(TreeLimits(window=5)))
    assert near.propose(memory, canvas).deepest(0) == 5
    few = replace(pool, settings=settings.limited(TreeLimits(num_draft_tokens=2)))
    assert few.propose(memory, canvas).nodes == 3


def test_jacobi_windows_are_filled_up_with_the_uniform_distribution():
    canvas = Canvas.blank(Grid(2, 8), torch.zeros(1, 2))
    source = StaleSource(4, window=3)
    drafted = source.draft(source.start(canvas), 0, 0, 5).log_q
    assert torch.allclose(drafted.exp(), torch.full((3, 4), 0.25))


def test_maximal_coupling_keeps_a_draft_as_often_as_can_be_and_draws_from_p():
    p, q = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=F64), torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=F64)
    generator, kept = torch.Generator().manual_seed(0), 0
    counts = torch.zeros(4, dtype=torch.long)
    for _ in range(4000):
        token = sample(q, generator)
        coupled = coupled_draw(token, q, p, generator)
        kept += coupled == token
        counts[coupled] += 1
    assert counts[3] == 0
    assert chi_square(counts[:3], p[:3]).p_value > 1e-3
    assert kept / 4000 == pytest.approx(float(torch.minimum(p, q).sum()), abs=0.03)


def test_siblings_are_drawn_without_replacement_each_from_its_own_q():
    q = torch.tensor([0.6, 0.3, 0.1, 0.0], dtype=F64)
    drawn = siblings(0, q, 5, torch.Generator().manual_seed(1))
    assert sorted(token for token, _ in drawn) == [0, 1, 2]  # a fourth has no mass
    for k, (_, given) in enumerate(drawn):
        assert float(given.sum()) == pytest.approx(1)
        assert all(given[token] == 0 for token, _ in drawn[:k])


# --- the paper's pool


def settled_canvas(grid, committed, vocab):
    canvas = Canvas.blank(grid, torch.zeros(len(committed), 2, dtype=F64))
    for row, count in enumerate(committed):
        canvas.commit(row, [(row + 1) % vocab] * count, [0] * count)
    return canvas


def known_pool(kind, drafts, sources=2, **settings):
    """A pool of the given kind whose sources always say `drafts`."""

    class Known(kind):
        source_names = tuple(f"source-{k}" for k in range(sources))

        def drafts(self, memory, canvas, row, window):
            return {k: draft.until(window) for k, draft in drafts.items() if draft.first < window}

    return Known([], lambda s: s, **settings)


def test_cartesian_draws_carry_the_q_they_were_drawn_from():
    """Sources whose supports do not meet, so that a draw tells its source; over many proposals they follow q."""
    left = torch.tensor([[0.7, 0.3, 0, 0], [0.2, 0.8, 0, 0]], dtype=F64)
    right = torch.tensor([[0, 0, 0.5, 0.5]], dtype=F64)
    pool = known_pool(CartesianPool, {0: Draft(0, left.log()), 1: Draft(1, right.log())}, depth=2)
    canvas = settled_canvas(Grid(1, 9), [2], 4)
    memory = pool.start(canvas, FREE, Randomness.from_seeds([7], 9, 4, torch.zeros(0, dtype=F64)))
    counts = torch.zeros(3, 4, dtype=torch.long)
    for _ in range(400):
        tree = pool.propose(memory, canvas)
        depths = tree.ancestors().sum(-1)[0] - 1
        for parent, trials in tree.trials[0].items():
            for trial in trials:
                token, source = int(tree.tokens[0, trial.node]), int(tree.sources[0, trial.node])
                depth = int(depths[trial.node])
                said = left[depth - 1] if source == 0 else right[0]
                assert int(tree.parents[0, trial.node]) == parent
                assert torch.equal(tree.q[0][trial.q], said)
                assert said[token] > 0
        for node in tree.parents[0].unique().tolist():
            assert [int(tree.sources[0, trial.node]) for trial in tree.trials[0][node]] == (
                [0] if node == 0 else [0, 1]
            )
        for node in range(1, tree.nodes):
            which = 0 if depths[node] == 1 else 1 + int(tree.sources[0, node])
            counts[which, tree.tokens[0, node]] += 1
    for observed, q in zip(counts, (left[0], left[1], right[0]), strict=True):
        assert chi_square(observed, q).p_value > 1e-3


def test_cartesian_tree_multiplies_the_depths():
    """One-hot sources: two candidates at each of three depths make 2 + 4 + 8 nodes, every combination once."""
    eye = torch.eye(6, dtype=F64).log()
    drafts = {0: Draft(0, eye[[0, 1, 2]]), 1: Draft(0, eye[[3, 4, 5]])}
    canvas = settled_canvas(Grid(2, 5), [1, 8], 6)
    memory = known_pool(CartesianPool, drafts).start(canvas, FREE, Randomness.from_seeds([1, 2], 10, 6, torch.zeros(0)))
    tree = known_pool(CartesianPool, drafts, max_nodes=15).propose(memory, canvas)
    assert tree.valid.sum(1).tolist() == [15, 7]  # the second image has room for two depths only
    leaves = [node for node in range(15) if node not in tree.parents[0].tolist()]
    paths = {tuple(tree.tokens[0, tree.ancestors()[0, leaf]].tolist()[1:]) for leaf in leaves}
    assert paths == set(itertools.product((0, 3), (1, 4), (2, 5)))
    assert tree.tokens[:, 0].tolist() == [1, 2]
    fewer = known_pool(CartesianPool, drafts, max_nodes=14).propose(memory, canvas)
    assert fewer.valid.sum(1).tolist() == [7, 7]  # a depth that does not fit is left out as a whole


def test_equal_draws_share_a_node_and_stay_trials():
    certain = torch.eye(3, dtype=F64)[[1]].log()
    pool = known_pool(CartesianPool, {0: Draft(0, certain), 1: Draft(0, certain)}, draws=2)
    canvas = settled_canvas(Grid(1, 4), [1], 3)
    tree = pool.propose(pool.start(canvas, FREE, Randomness.from_seeds([1], 4, 3, torch.zeros(0))), canvas)
    assert tree.nodes == 2
    assert [trial.node for trial in tree.trials[0][0]] == [1, 1, 1, 1]
    assert [trial.q for trial in tree.trials[0][0]] == [0, 0, 1, 1]


# --- Hawk's pool


def test_best_first_takes_the_likeliest_nodes_in_order():
    """Against all nodes of the full tree, sorted by the product of the rates along their path."""
    rates = [(0.5, 0.3, 0.1), (0.6, 0.25, 0.05), (0.7, 0.2, 0.15)]
    candidates = [[10 * depth + rank for rank in range(3)] for depth in range(3)]
    paths = [p for depth in range(1, 4) for p in itertools.product(range(3), repeat=depth)]
    chance = {path: math.prod(rates[depth][rank] for depth, rank in enumerate(path)) for path in paths}
    builder = TreeBuilder.rooted(99)
    grow_best_first(
        builder, lambda depth, _: Candidates(candidates[depth], rates[depth]), 3, max_nodes=12, node_cost=1e-9
    )

    def path_of(node):
        return () if node == 0 else (*path_of(builder.parents[node]), builder.tokens[node] % 10)

    grown = [path_of(node) for node in range(1, len(builder.tokens))]
    gains = [chance[path] for path in grown]
    assert gains == pytest.approx(sorted(gains, reverse=True))
    assert gains == pytest.approx(sorted(chance.values(), reverse=True)[:11])
    assert len(set(grown)) == 11


@pytest.mark.parametrize("node_cost", [0.01, 0.05, 0.2, 0.6, 2.0])
def test_the_tree_has_the_size_of_most_tokens_per_time(node_cost):
    """Against every size of the best-first tree: expected tokens over time, of which the grown tree has the most."""
    rates = [(0.6, 0.2), (0.7, 0.1), (0.5, 0.3)]
    sizes = {}
    for limit in range(1, 15):
        builder = TreeBuilder.rooted(0)
        levels = [Candidates([1, 2], rate) for rate in rates]
        grow_best_first(builder, lambda depth, _, at=levels: at[depth], 3, limit, 0.0)
        chance = [1.0]
        for parent, token, depth in zip(builder.parents[1:], builder.tokens[1:], builder.depths[1:], strict=True):
            chance.append(chance[parent] * rates[depth - 1][token - 1])
        sizes[limit] = sum(chance) / (1 + node_cost * (limit - 1))
    grown = TreeBuilder.rooted(0)
    grow_best_first(grown, lambda depth, _: levels[depth], 3, 14, node_cost)
    assert sizes[len(grown.tokens)] == pytest.approx(max(sizes.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_method_drafts_for_a_packed_target(dtype):
    target = tiny_target(0, torch.float32, grid=Grid(3, 4))
    dim = target.config.dim
    parts = DraftParts(
        FusedSettings.unfitted((*HEAD_SOURCES, "spatial", "stale")),
        DraftHeads(HeadsConfig(dim)).requires_grad_(False),
        SpatialDrafter(SpatialConfig(dim, width=48)).requires_grad_(False),
        feature=FeatureDrafter(FeatureConfig(dim, heads=2)).requires_grad_(False),
    )
    target.pack(dtype)
    parts.pack(dtype)
    plain = generate(target, Request(tiny_prompt(target, 2), target.grid, FREE, [1, 2]), NoDrafter())
    for name, method in METHODS.items():
        if name != "ar":
            drafter = build_drafter(method, parts, target)
            verifier = method.verifier if method.lossless else "residual"
            drawn = generate(target, Request(tiny_prompt(target, 2), target.grid, FREE, [1, 2], verifier), drafter)
            assert drawn.tokens.shape == plain.tokens.shape, name


def test_a_callers_limits_bound_the_tree():
    target = tiny_target(0, torch.float32, grid=Grid(3, 4))
    dim = target.config.dim
    feature = FeatureDrafter(FeatureConfig(dim, heads=2))
    spatial = SpatialDrafter(SpatialConfig(dim)).requires_grad_(False)
    parts = DraftParts(FusedSettings.unfitted(), DraftHeads(HeadsConfig(dim)), spatial, feature=feature)
    early = build_drafter(METHODS["hawk"], None, target, TreeLimits(num_draft_tokens=2))
    assert early.max_nodes == 3
    assert generate(target, Request(tiny_prompt(target, 1), target.grid, FREE, [1]), early).stats.nodes > 12, (
        "it does draft"
    )
    for name, method in METHODS.items():
        if name != "ar":
            for limits in (TreeLimits(num_draft_tokens=2, window=2), TreeLimits(num_draft_tokens=2)):
                narrow = build_drafter(method, parts, target, limits)
                assert narrow.max_nodes == 3, name
                verifier = method.verifier if method.lossless else "residual"
                assert generate(target, Request(tiny_prompt(target, 1), target.grid, FREE, [1], verifier), narrow)
    assert JacobiTree(0, window=16, branching=4, depth=3).within(40) == JacobiTree(0, window=16, branching=2, depth=3)
    with pytest.raises(HawkError, match="window must be 1 or more, not 0"):
        TreeLimits(window=0)


def test_fused_candidates_are_the_top_of_log_q_plus_the_targets_noise():
    """A single source: rank by rank log q + g of the very position, a product of experts where there are two."""
    vocab, committed = 7, [3, 5]
    log_q = torch.randn(3, vocab, dtype=F64).log_softmax(-1)
    other = torch.randn(2, vocab, dtype=F64).log_softmax(-1)
    settings = FusedSettings(
        {"0": ((1.0,),), "0,1": ((0.8, 0.4), (0.3, 0.9))}, (), ((0.5, 0.4, 0.3),), max_nodes=40, node_cost=1e-3
    )
    pool = known_pool(FusedPool, {0: Draft(0, log_q), 1: Draft(1, other)}, settings=settings)
    canvas = settled_canvas(Grid(2, 6), committed, vocab)
    randomness = Randomness.from_seeds([3, 4], 12, vocab, torch.zeros(0, dtype=F64))
    tree = pool.propose(pool.start(canvas, FREE, randomness), canvas)
    fused = log_q.clone()
    fused[1:] = 0.3 * log_q[1:] + 0.9 * other  # both are at offset 2 and on: the second row of weights
    depths = tree.ancestors().sum(-1) - 1
    noise = randomness.noise.rows(torch.tensor([[3, 4, 5], [5, 6, 7]]))
    for row in range(2):
        for depth in range(1, 4):
            at = {int(t) for t in tree.tokens[row, (depths[row] == depth) & tree.valid[row]]}
            best = (fused[depth - 1] + noise[row, depth - 1]).topk(3).indices.tolist()
            assert at <= set(best)
            assert best[0] in at
        assert int(tree.tokens[row, 1]) == int(gumbel_argmax(fused[0], noise[row, 0]))


def test_the_left_token_counts_except_after_the_root_and_in_the_first_column():
    """A sure source; a factor that for every left token names the next one, and outweighs the source."""
    vocab, grid = 6, Grid(2, 4)
    log_q = torch.eye(vocab, dtype=F64)[torch.tensor([1, 1, 1, 1])].mul(5).log_softmax(-1)
    names_the_next = LeftFactor(
        np.eye(vocab, dtype=np.float32), 80 * np.roll(np.eye(vocab, dtype=np.float32), 1, 0), 1.0
    )
    settings = FusedSettings({"0": ((9.0,),)}, (), ((0.9, 0.01),), node_cost=0.05)
    pool = known_pool(FusedPool, {0: Draft(0, log_q)}, settings=settings, left=names_the_next)
    canvas = settled_canvas(grid, [2], vocab)
    randomness = Randomness.from_seeds([3], grid.size, vocab, torch.zeros(0, dtype=F64))
    tree = pool.propose(pool.start(canvas, FREE, randomness), canvas)
    chain = tree.tokens[0, :5].tolist()  # positions 1 (the root) to 5; position 4 stands in the first column
    assert chain[1:] == [1, 2, 1, 2]


def test_a_fused_pool_stops_where_no_source_speaks():
    log_q = torch.zeros(1, 4, dtype=F64)
    pool = known_pool(FusedPool, {0: Draft(0, log_q), 1: Draft(2, log_q)}, settings=FusedSettings.unfitted(TWO))
    canvas = settled_canvas(Grid(2, 6), [3], 4)
    randomness = Randomness.from_seeds([3], 12, 4, torch.zeros(0, dtype=F64))
    tree = pool.propose(pool.start(canvas, FREE, randomness), canvas)
    assert int((tree.ancestors().sum(-1) - 1).max()) == 1


def test_a_drafter_that_knows_p_is_always_right():
    """Under the coupled verifier log q = log p names the very token the target takes: every first draft is kept."""
    target = tiny_target(2, grid=Grid(3, 4))
    prompt, grid = tiny_prompt(target, 2), target.grid
    fused = FusedSettings({"0": ((1.0,),)}, (), ((0.9, 0.01),), window=1)

    class Seer(FusedPool):
        source_names = ("seer",)

        def drafts(self, memory, canvas, row, window):
            """log p of the next position, by a teacher-forced forward over what is drawn."""
            tokens = canvas.tokens[row : row + 1]
            state = target(tokens, prompt.features[row : row + 1], prompt.mask[row : row + 1], grid)
            draft = Draft(0, log_probs(target.head(state), FREE)[0, canvas.committed[row]][None])
            return {0: draft} if window else {}

    stats = generate(target, Request(prompt, grid, FREE, [1, 2]), Seer([], target.head, fused)).stats
    assert stats.acceptance_rate == [1.0]
    assert stats.nfe == 1 + math.ceil(11 / 2)


# --- methods, and what lies on disk


@pytest.mark.parametrize("name", ["scd", "sjd"])
def test_the_smaller_of_two_limits_holds(name):
    target = tiny_target(0)
    limits = {
        (None, None): METHODS[name].window + 1,
        (4, None): 5,
        (None, 32): 33,
        (4, 32): 5,
        (32, 4): 5,
    }  # (drafts, window): nodes
    for (drafts, window), nodes in limits.items():
        assert build_drafter(METHODS[name], None, target, TreeLimits(drafts, window)).max_nodes == nodes


def test_methods_are_built_from_what_they_say():
    assert list(METHODS) == [
        "ar",
        "medusa",
        "hawk-vertical",
        "hawk-paper",
        "hawk-spatial",
        "eagle",
        "eagle-topk",
        "lantern",
        "sjd",
        "scd",
        "scd-maximal",
        "sjd-pac",
        "hawk",
    ]
    target = tiny_target(0)
    dim = target.config.dim
    feature = FeatureDrafter(FeatureConfig(dim, heads=2))
    spatial = SpatialDrafter(SpatialConfig(dim))
    parts = DraftParts(FusedSettings.unfitted(), DraftHeads(HeadsConfig(dim)), spatial, feature=feature)
    names = {}
    for name, method in METHODS.items():
        if name != "ar":
            pool = build_drafter(method, parts, target)
            assert (method.verifier in pool.lossless_with) is method.lossless
            names[name] = getattr(pool, "source_names", None)
    assert names == {
        "medusa": ("horizontal",),
        "hawk-vertical": ("vertical-1", "vertical-2"),
        "hawk-paper": ("horizontal", "vertical-1", "vertical-2"),
        "eagle": None,
        "eagle-topk": None,
        "lantern": None,
        "sjd": ("stale",),
        "scd": None,
        "scd-maximal": None,
        "sjd-pac": None,
        "hawk": ("horizontal", "vertical-1", "vertical-2"),
        "hawk-spatial": ("spatial",),
    }
    assert [name for name, method in METHODS.items() if not method.lossless] == ["lantern"]
    assert "LOSSY" in METHODS["lantern"].summary
    with pytest.raises(HawkError, match="unknown method 'hwak': choose one of ar, medusa"):
        method_named("hwak")


def test_a_method_without_its_parts_is_refused():
    target = tiny_target(0)
    for name in ("medusa", "eagle"):
        with pytest.raises(HawkError, match=f"method '{name}' needs a trained drafter"):
            build_drafter(METHODS[name], None, target)
    wants_spatial = DraftParts(FusedSettings.unfitted(("spatial",)))
    with pytest.raises(HawkError, match="no spatial drafter"):
        build_drafter(METHODS["hawk"], wants_spatial, target)
    with pytest.raises(HawkError, match="no feature drafter"):
        build_drafter(METHODS["eagle"], wants_spatial, target)
    with pytest.raises(HawkError, match="no draft heads"):
        build_drafter(METHODS["medusa"], wants_spatial, target)


def test_where_the_targets_early_guesses_are_all_there_is_a_window_drafts():
    target = tiny_target(0)

    def built(name, **limits):
        return build_drafter(METHODS[name], None, target, TreeLimits(**limits))

    assert built("scd") == Window(64, above=False)
    assert built("scd", window=5) == built("scd", num_draft_tokens=5) == Window(5, above=False)
    assert built("hawk") == Window(REFRESH)
    assert built("hawk", window=40) == Window(40)
    assert built("hawk", num_draft_tokens=9, window=40) == Window(9)


def test_the_default_shapes_of_rivals_are_those_of_their_authors():
    target = tiny_target(0)
    nodes = {name: build_drafter(METHODS[name], None, target).max_nodes for name in ("sjd", "scd-maximal", "sjd-pac")}
    assert nodes == {"sjd": 17, "scd-maximal": 65, "sjd-pac": 64}
    assert build_drafter(METHODS["sjd-pac"], None, target, TreeLimits(window=21)).max_nodes == 32

    canvas = Canvas.blank(Grid(8, 8), torch.zeros(1, 2))
    canvas.commit(0, [1], [-1])
    tree = build_drafter(METHODS["sjd-pac"], None, target)
    flat = torch.full((target.vocab_size,), 1 / target.vocab_size)
    live = LiveDrafts([offset % target.vocab_size for offset in range(53)], [flat] * 53)
    randomness = Randomness.from_seeds([0], 64, target.vocab_size, torch.zeros(1))
    drafted = tree.propose(JacobiMemory(randomness, [live]), canvas)
    depths = drafted.ancestors()[0].sum(-1).sub(1).tolist()
    # 3 children below the root, 9 below them, and a chain of 53 drafts in all
    assert [depths.count(depth) for depth in range(54)] == [1, 3, 9] + [1] * 51


def test_heads_are_saved_loaded_and_refused_for_another_target(tmp_path):
    heads = DraftHeads(HeadsConfig(6, horizontal=2, vertical=1))
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    heads.save(tmp_path / "heads", "target-a")
    loaded = DraftHeads.load(tmp_path / "heads", "target-a")
    assert loaded.config == heads.config
    assert not loaded.training
    for name, weight in heads.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.bfloat16().float())  # as it is stored
    with pytest.raises(HawkError, match="trained for target target-a, not target-b"):
        DraftHeads.load(tmp_path / "heads", "target-b")
    assert DraftHeads.load(tmp_path / "nothing", "target-a") is None


def test_pool_settings_are_saved_loaded_and_checked(tmp_path):
    settings = replace(FusedSettings.unfitted(TWO), max_nodes=9)
    settings.save(tmp_path)
    assert FusedSettings.load(tmp_path) == settings
    broken = json.loads((tmp_path / "pool.json").read_text())
    broken["rate"] = "high"
    (tmp_path / "pool.json").write_text(json.dumps(broken))
    with pytest.raises(HawkError, match="is not a pool"):
        FusedSettings.load(tmp_path)
    with pytest.raises(HawkError, match=r"no .*pool\.json"):
        FusedSettings.load(tmp_path / "nothing")
