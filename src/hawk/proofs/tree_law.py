"""The exact law of traversal over whole trees: every tree that may be drawn, every place where it may stop.

Nothing is sampled: traversal tells the chance of each stop itself (`verify.stops`).
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

Path = tuple[int, ...]
"""The tokens from below the root down to a node."""

Continuation = Callable[[Path], Tensor]
"""p of the token after these."""


@dataclass(frozen=True)
class DrawnTree:
    """One tree as it may come out, its chance, and the path to each of its nodes."""

    chance: float
    tree: DraftTree
    paths: list[Path]

    def scores(self, p: Continuation) -> Float[Tensor, "n vocab"]:
        """log p of the token after each node."""
        return torch.stack([p(path) for path in self.paths]).log()


@dataclass(frozen=True)
class TreeLaw:
    """How a static tree is drawn: `draws[d]` draws below every node of depth d, the i-th (0 first) from `q(path, i)`.

    `shared`: the nodes of a depth have the same draws, as in a Cartesian tree.
    """

    draws: tuple[int, ...]
    q: Callable[[Path, int], Tensor]
    shared: bool = False

    def trees(
        self, level: Sequence[Path] = ((),), drawn: Sequence[tuple[Path, int, Tensor]] = ()
    ) -> Iterator[DrawnTree]:
        """Every tree that may be drawn below these nodes, after these draws (parent, token, q)."""
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


def planted(drawn: Sequence[tuple[Path, int, Tensor]]) -> DrawnTree:
    """The tree of these draws, of chance 1."""
    builder = TreeBuilder.rooted(0)
    nodes: dict[Path, int] = {(): 0}
    for index, (path, token, _) in enumerate(drawn):
        nodes[*path, token] = builder.add(nodes[path], token, 0, index)
    tree = batch_trees([builder], ("draw",), [torch.stack([q for _, _, q in drawn])])
    return DrawnTree(1.0, tree, sorted(nodes, key=nodes.__getitem__))


def tree_cases(seed: int = 7, vocab: int = 3) -> tuple[Continuation, dict[str, TreeLaw]]:
    """A p that depends on all that went before and forbids some tokens, and trees that traversal must survive."""
    p, own, other = (random_continuation(seed + source, vocab) for source in range(3))

    def alike(path: Path, draw: int) -> Tensor:
        return 0.5 * p(path) + 0.5 * own(path)

    def two_sources(path: Path, draw: int) -> Tensor:
        return alike(path, 0) if draw == 0 else other(path)

    return forbidding(p), {
        "a chain of three": TreeLaw((1, 1, 1), alike),
        "two draws from one q, then one": TreeLaw((2, 1), alike),
        "two sources at both depths": TreeLaw((2, 2), two_sources),
        "two sources, then a chain": TreeLaw((2, 1, 1), two_sources),
        "a chain drawn from p": TreeLaw((1, 1), lambda path, draw: forbidding(p)(path)),
    }


def random_continuation(seed: int, vocab: int) -> Continuation:
    """A random distribution after every path, the same at each call."""

    def after(path: Path) -> Tensor:
        number = sum((token + 1) * (vocab + 1) ** place for place, token in enumerate(path))
        generator = torch.Generator().manual_seed(10_000 * seed + number)
        return (1.5 * torch.randn(vocab, generator=generator, dtype=torch.float64)).softmax(-1)

    return after


def forbidding(p: Continuation) -> Continuation:
    """p without the token that came last, so that some drafts are hopeless."""

    def after(path: Path) -> Tensor:
        left = p(path).index_fill(0, torch.tensor(path[-1:], dtype=torch.long), 0.0)
        return left / left.sum()

    return after


@dataclass(frozen=True)
class Committed:
    """What a step of traversal commits: the law of the next `len(draws) + 1` tokens, and how many it keeps, on average.

    Where a step commits fewer tokens, plain AR goes on from there.
    """

    law: Float[Tensor, "..."]
    kept: float


def exact_traversal(p: Continuation, drafts: TreeLaw) -> Committed:
    """Traversal integrated over its draws and its uniforms; lossless where the law is `joint_of(p)`."""
    length, vocab = len(drafts.draws) + 1, len(p(()))
    law, kept = torch.zeros((vocab,) * length, dtype=torch.float64), 0.0
    for drawn in drafts.trees():
        left = drawn.chance
        for stop in stops(drawn.tree, 0, drawn.scores(p)):
            path, chance = drawn.paths[stop.path[-1]], left * stop.chance
            law[path] += chance * joint_of(p, length - len(path), path, stop.p)
            kept += chance * len(path)
            left -= chance
    return Committed(law, kept)


def joint_of(p: Continuation, length: int, path: Path = (), first: Tensor | None = None) -> Float[Tensor, "..."]:
    """Probability of the next `length` tokens after `path`; of the first of them `first` where it is given."""
    ahead = p(path) if first is None else first
    if length == 1:
        return ahead
    return torch.stack([ahead[token] * joint_of(p, length - 1, (*path, token)) for token in range(len(ahead))])
