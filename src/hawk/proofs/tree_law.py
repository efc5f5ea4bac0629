"""The exact law of traversal verification: the joint distribution of the tokens that a step commits.

Nothing is sampled. All trees that may be drawn are enumerated, and `verify.stops` gives, for each node where traversal
of a tree may stop, the chance that it stops there if it did not stop before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from hawk.decoding.tree import DraftTree, TreeBuilder, batch_trees
from hawk.decoding.verify import stops

TokenPath = tuple[int, ...]
"""The tokens on the way from the root to a node; the root's own token is left out."""

Continuation = Callable[[TokenPath], Tensor]
"""The distribution of the token that follows a path."""


@dataclass(frozen=True)
class DrawnTree:
    """One possible outcome of drawing a tree: its probability, the tree, and the path to each of its nodes."""

    chance: float
    tree: DraftTree
    paths: list[TokenPath]

    def scores(self, p: Continuation) -> Float[Tensor, "n vocab"]:
        """log p of the token that follows each node."""
        return torch.stack([p(path) for path in self.paths]).log()


@dataclass(frozen=True)
class TreeLaw:
    """How a tree of fixed shape is drawn.

    Attributes:
        draws: `draws[d]` is the number of draws below every node of depth d.
        q: `q(path, i)` is the distribution of the i-th draw (from 0) below the node that `path` leads to.
        shared: True where all nodes of a depth share the same draws, as in a Cartesian tree.
    """

    draws: tuple[int, ...]
    q: Callable[[TokenPath, int], Tensor]
    shared: bool = False

    def trees(
        self, level: Sequence[TokenPath] = ((),), drawn: Sequence[tuple[TokenPath, int, Tensor]] = ()
    ) -> Iterator[DrawnTree]:
        """All trees that may grow below the nodes of `level`, after the draws (path to the parent, token, q) so far."""
        depth = len(level[0])
        if depth == len(self.draws):
            yield planted(drawn)
            return
        below = [(path, self.q(path, draw)) for path in level for draw in range(self.draws[depth])]
        drawers = [q for _, q in below[: self.draws[depth] if self.shared else None]]
        for tokens in product(*(q.nonzero().flatten().tolist() for q in drawers)):
            repeated = tokens * (len(below) // len(tokens))
            fresh = [(path, token, q) for (path, q), token in zip(below, repeated, strict=True)]
            chance = prod(float(q[token]) for q, token in zip(drawers, tokens, strict=True))
            next_level = list(dict.fromkeys((*path, token) for path, token, _ in fresh))
            for deeper in self.trees(next_level, [*drawn, *fresh]):
                yield DrawnTree(chance * deeper.chance, deeper.tree, deeper.paths)


def planted(drawn: Sequence[tuple[TokenPath, int, Tensor]]) -> DrawnTree:
    """The tree of these draws, with probability 1."""
    builder = TreeBuilder.rooted(0)
    nodes: dict[TokenPath, int] = {(): 0}
    for index, (path, token, _) in enumerate(drawn):
        nodes[*path, token] = builder.add(nodes[path], token, 0, index)
    tree = batch_trees([builder], ("draw",), [torch.stack([q for _, _, q in drawn])])
    return DrawnTree(1.0, tree, sorted(nodes, key=nodes.__getitem__))


def tree_cases(seed: int = 7, vocab: int = 3) -> tuple[Continuation, dict[str, TreeLaw]]:
    """A distribution p for every path, and kinds of trees on which traversal must be lossless, by name.

    p depends on the whole path and forbids some tokens.
    """
    p, own, other = (random_continuation(seed + source, vocab) for source in range(3))

    def alike(path: TokenPath, draw: int) -> Tensor:
        return 0.5 * p(path) + 0.5 * own(path)

    def two_sources(path: TokenPath, draw: int) -> Tensor:
        return alike(path, 0) if draw == 0 else other(path)

    return forbidding(p), {
        "a chain of three": TreeLaw((1, 1, 1), alike),
        "two draws from one q, then one": TreeLaw((2, 1), alike),
        "two sources at both depths": TreeLaw((2, 2), two_sources),
        "two sources, then a chain": TreeLaw((2, 1, 1), two_sources),
        "a chain drawn from p": TreeLaw((1, 1), lambda path, draw: forbidding(p)(path)),
    }


def random_continuation(seed: int, vocab: int) -> Continuation:
    """A random distribution for every path; the same path always gets the same one."""

    def after(path: TokenPath) -> Tensor:
        number = sum((token + 1) * (vocab + 1) ** index for index, token in enumerate(path))
        generator = torch.Generator().manual_seed(10_000 * seed + number)
        return (1.5 * torch.randn(vocab, generator=generator, dtype=torch.float64)).softmax(-1)

    return after


def forbidding(p: Continuation) -> Continuation:
    """p with the path's last token forbidden, so that some drafts can never be accepted."""

    def after(path: TokenPath) -> Tensor:
        left = p(path).index_fill(0, torch.tensor(path[-1:], dtype=torch.long), 0.0)
        return left / left.sum()

    return after


@dataclass(frozen=True)
class Committed:
    """The law of the next `len(draws) + 1` tokens after a step of traversal, and the mean number of accepted drafts.

    Where the step commits fewer tokens, plain AR supplies the rest.
    """

    law: Float[Tensor, "..."]
    accepted: float


def exact_traversal(p: Continuation, drafts: TreeLaw) -> Committed:
    """What traversal commits, over all draws and all uniform numbers; lossless if the law equals `joint_of(p)`."""
    length, vocab = len(drafts.draws) + 1, len(p(()))
    law, accepted = torch.zeros((vocab,) * length, dtype=torch.float64), 0.0
    for drawn in drafts.trees():
        left = drawn.chance
        for stop in stops(drawn.tree, 0, drawn.scores(p)):
            path, chance = drawn.paths[stop.path[-1]], left * stop.chance
            law[path] += chance * joint_of(p, length - len(path), path, stop.p)
            accepted += chance * len(path)
            left -= chance
    return Committed(law, accepted)


def joint_of(p: Continuation, length: int, path: TokenPath = (), first: Tensor | None = None) -> Float[Tensor, "..."]:
    """Joint distribution of the next `length` tokens after `path`.

    `first` replaces p for the first of these tokens.
    """
    ahead = p(path) if first is None else first
    if length == 1:
        return ahead
    return torch.stack([ahead[token] * joint_of(p, length - 1, (*path, token)) for token in range(len(ahead))])
