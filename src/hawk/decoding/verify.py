"""Verifiers: which drafts of a tree the target keeps, and the token that follows them. Pure, at least float32.

All here are lossless: `coupled` returns exactly the tokens that plain AR returns for the same noise; `residual` keeps
the joint distribution (arXiv 2211.17192; Hawk, Eq. 6-7), and so does `traversal` (arXiv 2505.12398), which keeps more
drafts but asks more of them. The lossy one is in `hawk.decoding.relaxed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hawk.decoding.sampling import gumbel_argmax
from hawk.decoding.tree import DraftTree, Trial

LOSSLESS = ("coupled", "residual", "traversal")
"""Names of the verifiers that keep the target's distribution."""


@dataclass(frozen=True)
class Verdict:
    """Of one image: the kept nodes from the root downwards (root first), and the recovered or bonus token.

    `ahead` are the tokens after it where the tree tells them already (`aligned`).
    """

    path: list[int]
    token: int
    ahead: tuple[int, ...] = ()

    def aligned(self, tokens: list[int]) -> Verdict:
        """The part of it whose nodes have their keys where plain AR has them: node d at depth d. `tokens` of all nodes.

        In half precision the order of keys shows in the last bit. What is kept elsewhere in the tree is therefore not
        committed but foretold: those drafts are right, and the next step verifies them in their place.
        """
        kept = next((depth for depth, node in enumerate(self.path) if node != depth), len(self.path))
        if kept == len(self.path):
            return self
        told = [tokens[node] for node in self.path[kept:]] + [self.token]
        return Verdict(self.path[:kept], told[0], tuple(told[1:]))


@dataclass(frozen=True)
class Scored:
    """A verified batch of trees: log p of the token after each node, and the verdicts."""

    tree: DraftTree
    scores: Float[Tensor, "b n vocab"]
    verdicts: list[Verdict]


def coupled(
    tree: DraftTree, ancestors: Bool[Tensor, "b n n"], scores: Float[Tensor, "b n vocab"], noise: Tensor
) -> list[Verdict]:
    """Keep the path whose every token is the one that plain AR would draw: argmax(log p + g) at its parent.

    `scores` is log p at each node (of the token after it), `noise` `[b, n, vocab]` the noise of that next position.
    """
    chosen = gumbel_argmax(scores, noise)
    right = (tree.tokens == chosen.gather(1, tree.parents)) & tree.valid
    right[:, 0] = True
    kept = ~(ancestors & ~right[:, None, :]).any(-1)
    paths = [row.nonzero().flatten().tolist() for row in kept]
    return [Verdict(path, int(chosen[row, path[-1]])) for row, path in enumerate(paths)]


def residual(tree: DraftTree, scores: Float[Tensor, "b n vocab"], generators: list[torch.Generator]) -> list[Verdict]:
    """Walk down from the root; try each node's draws in order against the residual that earlier rejections left.

    A draft x from q is kept with probability min(1, p(x) / q(x)); else p <- normalise(max(p - q, 0)). `generators`
    holds one source of uniform numbers for each image. Raises ValueError where a tree has children but no trials.
    """
    needs_draws(tree)
    return [walk(tree, row, scores[row], generator, own_mass) for row, generator in enumerate(generators)]


def needs_draws(tree: DraftTree) -> None:
    """Raise ValueError where a tree has children but does not say what they were drawn from."""
    if tree.trials is None and tree.nodes > 1:
        raise ValueError("residual verification needs the draws and distributions of the draft tree")


def own_mass(p: Float[Tensor, " vocab"], token: int) -> Float[Tensor, ""]:
    """What a draft may claim of p where verification is lossless: p(token)."""
    return p[token]


def walk(
    tree: DraftTree,
    row: int,
    scores: Float[Tensor, "n vocab"],
    generator: torch.Generator,
    claim: Callable[[Tensor, int], Tensor],
) -> Verdict:
    """One image's verdict: a draft is kept with probability min(1, claim(p, x) / q(x)), else the residual is tried."""
    path = [0]
    while True:
        p = scores[path[-1]].exp()
        for draw in tree.draws(row, path[-1]):
            q = draft_distribution(tree, row, draw, p)
            token = int(tree.tokens[row, draw.node])
            left = residual_distribution(p, q)
            if left is None or uniform(generator) * q[token] < claim(p, token):
                path.append(draw.node)
                break
            p = left
        else:
            return Verdict(path, sample(p, generator))


def residual_distribution(p: Float[Tensor, " vocab"], q: Float[Tensor, " vocab"]) -> Tensor | None:
    """normalise(max(p - q, 0)) (Hawk, Eq. 7); None where nothing is left (p = q: no draw is rejected)."""
    left = unclaimed(p, q)
    total = left.sum()
    return None if total <= 0 else left / total


def unclaimed(p: Float[Tensor, " vocab"], q: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
    """max(p - q, 0): the mass of p that a draw from q does not bring."""
    return (p - q).clamp_min(0)


def draft_distribution(tree: DraftTree, row: int, draw: Trial, like: Tensor) -> Float[Tensor, " vocab"]:
    """What a draw was drawn from: its row of q, or one-hot at its token."""
    if draw.q >= 0:
        assert tree.q is not None
        return tree.q[row][draw.q].to(like)
    one_hot = torch.zeros_like(like)
    one_hot[tree.tokens[row, draw.node]] = 1
    return one_hot


@dataclass(frozen=True)
class Stop:
    """Where traversal may end: it keeps `path` with this chance, else goes on; the token after it is drawn from `p`."""

    path: list[int]
    chance: float
    p: Float[Tensor, " vocab"]


def traversal(tree: DraftTree, scores: Float[Tensor, "b n vocab"], generators: list[torch.Generator]) -> list[Verdict]:
    """Try whole paths, deepest first: a path is kept by its tokens together, not one by one (arXiv 2505.12398).

    On average it keeps no fewer than `residual` on a chain, where it is block verification (arXiv 2403.10444) and no
    verifier keeps more. It looks at all of a tree, so it is lossless only where every draw follows the q that it
    carries whatever the other draws of the tree are (none shared between branches), and where no draw is used again
    at a later step: what it rejects no longer follows its q. Raises as `residual` does.
    """
    needs_draws(tree)
    verdicts = []
    for row, generator in enumerate(generators):
        stop = next(stop for stop in stops(tree, row, scores[row]) if uniform(generator) < stop.chance)
        verdicts.append(Verdict(stop.path, sample(stop.p, generator)))
    return verdicts


def stops(tree: DraftTree, row: int, scores: Float[Tensor, "n vocab"]) -> Iterator[Stop]:
    """The places where traversal of one image's tree may end, in its order; the last one's chance is 1."""
    return _stops_below(tree, row, scores.double(), [0], 1.0)


def _stops_below(
    tree: DraftTree, row: int, scores: Float[Tensor, "n vocab"], path: list[int], weight: float
) -> Iterator[Stop]:
    """Stops at the last node of `path` or below it, which is to be kept with probability `weight`.

    A draw x from q brings min(weight p(x), q(x)), so its subtree weighs min(1, weight p(x) / q(x)). Where that is
    rejected max(weight p - q, 0) is still to be given: it is the next draw's p, and at last that of a stop here. x has
    no share in it, so the same token drawn again is never kept (its subtree, seen already, could not be tried twice).
    """
    p = scores[path[-1]].exp()
    for draw in tree.draws(row, path[-1]):
        q = draft_distribution(tree, row, draw, p)
        token = int(tree.tokens[row, draw.node])
        left = unclaimed(weight * p, q)
        rest = float(left.sum())
        brings = min(1.0, weight * float(p[token]) / float(q[token]))
        if weight == 1 and rest == 0:  # p = q: no draw is rejected
            brings = 1.0
        if brings > 0:
            yield from _stops_below(tree, row, scores, [*path, draw.node], brings)
        if rest == 0:
            return
        weight, p = rest / (rest + (1 - weight)), left / rest
    yield Stop(path, weight, p)


def uniform(generator: torch.Generator) -> float:
    """A number between 0 and 1."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def sample(p: Float[Tensor, " vocab"], generator: torch.Generator) -> int:
    """One token drawn from p."""
    return int(torch.multinomial(p.double().cpu(), 1, generator=generator))
