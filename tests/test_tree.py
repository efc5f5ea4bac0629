"""Draft trees: growing, ancestors, padding, draws."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hawk.decoding.tree import TreeBuilder, Trial, batch_trees, first_branch


def test_a_rooted_tree_is_its_root():
    tree = batch_trees([TreeBuilder.rooted(5)], ())
    assert tree.nodes == 1
    assert tree.tokens.tolist() == [[5]]
    assert tree.parents.tolist() == [[0]]
    assert tree.ancestors().tolist() == [[[True]]]
    assert tree.trials is None
    assert tree.q is None


def test_add_gives_nodes_in_order_with_depth_and_source():
    builder = TreeBuilder.rooted(5)
    left, right = builder.add(0, 1, 0), builder.add(0, 2, 1)
    below = builder.add(right, 1, 0)
    assert [left, right, below] == [1, 2, 3]
    assert builder.depths == [0, 1, 1, 2]
    tree = batch_trees([builder], ("a", "b"))
    assert tree.tokens.tolist() == [[5, 1, 2, 1]]
    assert tree.parents.tolist() == [[0, 0, 0, 2]]
    assert tree.sources.tolist() == [[0, 0, 1, 0]]


def test_equal_siblings_are_one_node_and_equal_cousins_are_not():
    builder = TreeBuilder.rooted(0)
    first = builder.add(0, 3, source=0)
    assert builder.add(0, 3, source=1) == first
    other = builder.add(0, 4, source=1)
    assert builder.add(first, 3, 0) != builder.add(other, 3, 0)
    assert builder.sources[first] == 0  # the source that came first keeps the node


def test_a_token_drawn_twice_is_one_node_and_two_trials():
    builder = TreeBuilder.rooted(0)
    first = builder.add(0, 3, 0, q=0)
    second = builder.add(0, 4, 1, q=1)
    builder.add(0, 3, 1, q=1)
    below = builder.add(first, 3, 0, q=2)
    q = torch.full((3, 6), 1 / 6)
    tree = batch_trees([builder], ("a", "b"), [q])
    assert tree.nodes == 4
    assert tree.trials == [{0: [Trial(first, 0), Trial(second, 1), Trial(first, 1)], first: [Trial(below, 2)]}]
    assert tree.q is not None
    assert tree.q[0] is q


def test_smaller_trees_are_padded_with_nodes_that_are_not_valid():
    small, large = TreeBuilder.rooted(1), TreeBuilder.rooted(2)
    large.add(large.add(0, 7, 0), 8, 0)
    tree = batch_trees([small, large], ("a",))
    assert tree.nodes == 3
    assert tree.valid.tolist() == [[True, False, False], [True, True, True]]
    assert tree.tokens[1].tolist() == [2, 7, 8]


@given(st.lists(st.lists(st.integers(0, 100), max_size=9), min_size=1, max_size=3))
def test_ancestors_follow_the_parents_up_to_the_root(choices):
    builders = []
    for parents in choices:
        builder = TreeBuilder.rooted(0)
        for token, choice in enumerate(parents):
            builder.add(choice % len(builder.tokens), token, 0)
        builders.append(builder)
    tree = batch_trees(builders, ("a",))
    ancestors = tree.ancestors()
    for row, builder in enumerate(builders):
        for node in range(len(builder.tokens)):
            above, walker = {node}, node
            while walker:
                walker = builder.parents[walker]
                above.add(walker)
            assert ancestors[row, node].nonzero().flatten().tolist() == sorted(above)
            assert int(ancestors[row, node].sum()) - 1 == builder.depths[node]


def test_the_deepest_node_of_each_image() -> None:
    chain, flat = TreeBuilder.rooted(1), TreeBuilder.rooted(1)
    for parent in range(3):
        chain.add(parent, parent, 0)
        flat.add(0, parent, 0)
    tree = batch_trees([chain, flat, TreeBuilder.rooted(2)], ())
    assert [tree.deepest(row) for row in range(3)] == [3, 1, 0]


def test_the_first_branch_can_stand_first() -> None:
    builder = TreeBuilder.rooted(9)
    a, b = builder.add(0, 1, 5), builder.add(0, 2, 6)
    c, d = builder.add(b, 3, 7), builder.add(a, 4, 8)
    assert first_branch(builder.parents, 0) == [a, d]
    ordered = builder.first_branch_first()
    assert ordered.tokens == [9, 1, 4, 2, 3]
    assert ordered.parents == [0, 0, 1, 0, 3]
    assert ordered.sources == [0, 5, 8, 6, 7]
    assert ordered.depths == [0, 1, 2, 1, 2]
    assert ordered.add(3, 3, 0) == 4  # still merged with its equal
    assert c == 3
