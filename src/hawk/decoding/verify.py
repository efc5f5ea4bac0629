"""Verifiers: which drafts of a tree are accepted, and the token that follows them. Pure functions, in float32 or wider.

All verifiers here are lossless. `coupled` returns exactly the tokens that plain AR returns for the same noise.
`residual` keeps the joint distribution (arXiv 2211.17192; Hawk, Eq. 6-7), and so does `traversal` (arXiv 2505.12398),
which accepts more drafts but needs trees of independent draws. The lossy verifier is in `hawk.decoding.relaxed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hawk.decoding.sampling import gumbel_argmax
from hawk.decoding.tree import DraftTree, Trial
from hawk.machine import has_float64

LOSSLESS = ("coupled", "residual", "traversal")
"""Names of the verifiers that keep the target's distribution."""


@dataclass(frozen=True)
class Verdict:
    """The accepted nodes of one image, root first, and the recovered or bonus token after them.

    `ahead` are tokens after that token which are known already but not committed yet (`aligned`).
    """

    path: list[int]
    token: int
    ahead: tuple[int, ...] = ()

    def aligned(self, tokens: list[int]) -> Verdict:
        """Cut the verdict after the last node d that stands at depth d: up to there the keys lie in plain AR's order.

        In half precision, the order of the keys changes the last bit of a state. Drafts accepted elsewhere in the tree
        are therefore not committed yet: they become `ahead`, and the next step verifies them again in plain AR's order.
        `tokens` are those of all nodes.
        """
        kept = next((depth for depth, node in enumerate(self.path) if node != depth), len(self.path))
        if kept == len(self.path):
            return self
        told = [tokens[node] for node in self.path[kept:]] + [self.token]
        return Verdict(self.path[:kept], told[0], tuple(told[1:]))


@dataclass(frozen=True)
class Verified:
    """A verified batch of trees: log p of the token after each node, and the verdict on each tree."""

    tree: DraftTree
    log_p: Float[Tensor, "b n vocab"]
    verdicts: list[Verdict]


def coupled(
    tree: DraftTree, ancestors: Bool[Tensor, "b n n"], scores: Float[Tensor, "b n vocab"], noise: Tensor
) -> list[Verdict]:
    """Accept the path on which every token is the token that plain AR would draw: argmax(log p + g) at its parent.

    `scores[b, i]` is log p of the token after node i, up to a constant. `noise[b, i]` is the noise of that token's
    position.
    """
    chosen = gumbel_argmax(scores, noise)
    right = (tree.tokens == chosen.gather(1, tree.parents)) & tree.valid
    right[:, 0] = True
    kept = ~(ancestors & ~right[:, None, :]).any(-1)
    paths = [row.nonzero().flatten().tolist() for row in kept]
    return [Verdict(path, int(chosen[row, path[-1]])) for row, path in enumerate(paths)]


def residual(tree: DraftTree, scores: Float[Tensor, "b n vocab"], generators: list[torch.Generator]) -> list[Verdict]:
    """Walk down from the root; at each node try the draws in order against the residual of the earlier rejections.

    A draft x from q is accepted with probability min(1, p(x) / q(x)); on rejection p <- normalise(max(p - q, 0)).
    `generators` holds one source of uniform numbers for each image. Raises ValueError where a tree has children but no
    trials.
    """
    needs_draws(tree)
    return [walk(tree, row, scores[row], generator, own_mass) for row, generator in enumerate(generators)]


def needs_draws(tree: DraftTree) -> None:
    """Raise ValueError where a tree has children but does not carry the distributions of their draws."""
    if tree.trials is None and tree.nodes > 1:
        raise ValueError("residual verification needs the draws and distributions of the draft tree")


def own_mass(p: Float[Tensor, " vocab"], token: int) -> Float[Tensor, ""]:
    """The mass of p that lossless verification credits to a drafted token: p(token)."""
    return p[token]


def walk(
    tree: DraftTree,
    row: int,
    scores: Float[Tensor, "n vocab"],
    generator: torch.Generator,
    claim: Callable[[Tensor, int], Tensor],
) -> Verdict:
    """The verdict of one image: a draft x is accepted with probability min(1, claim(p, x) / q(x))."""
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
    """normalise(max(p - q, 0)) (Hawk, Eq. 7); None where no mass is left (p = q: no draw is rejected)."""
    left = unclaimed(p, q)
    total = left.sum()
    return None if total <= 0 else left / total


def unclaimed(p: Float[Tensor, " vocab"], q: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
    """max(p - q, 0): the mass of p that a draw from q does not cover."""
    return (p - q).clamp_min(0)


def draft_distribution(tree: DraftTree, row: int, draw: Trial, like: Tensor) -> Float[Tensor, " vocab"]:
    """The distribution of a draw: its row of q, or one-hot at its token."""
    if draw.q >= 0:
        assert tree.q is not None
        return tree.q[row][draw.q].to(like)
    one_hot = torch.zeros_like(like)
    one_hot[tree.tokens[row, draw.node]] = 1
    return one_hot


@dataclass(frozen=True)
class Stop:
    """A point where traversal may stop: with this chance it accepts `path` and draws the next token from `p`."""

    path: list[int]
    chance: float
    p: Float[Tensor, " vocab"]


def traversal(tree: DraftTree, scores: Float[Tensor, "b n vocab"], generators: list[torch.Generator]) -> list[Verdict]:
    """Try whole paths, deepest first: the tokens of a path are accepted together, not one by one (arXiv 2505.12398).

    On a chain this is block verification (arXiv 2403.10444), which on average accepts at least as many drafts as
    `residual` or any other lossless verifier. Traversal looks at the whole tree. It is therefore lossless only if each
    draw is independent of the tree's other draws (no draw is shared between branches), and if no rejected draw is used
    again at a later step, since a rejected draw no longer follows its q. Raises as `residual` does.
    """
    needs_draws(tree)
    verdicts = []
    for row, generator in enumerate(generators):
        stop = next(stop for stop in stops(tree, row, scores[row]) if uniform(generator) < stop.chance)
        verdicts.append(Verdict(stop.path, sample(stop.p, generator)))
    return verdicts


def stops(tree: DraftTree, row: int, scores: Float[Tensor, "n vocab"]) -> Iterator[Stop]:
    """The points where traversal of one image's tree may stop, in the order of traversal; the last has chance 1."""
    wide = scores.double() if has_float64(scores.device) else scores.cpu().double()
    return _stops_below(tree, row, wide, [0], 1.0)


def _stops_below(
    tree: DraftTree, row: int, scores: Float[Tensor, "n vocab"], path: list[int], weight: float
) -> Iterator[Stop]:
    """Stops at or below the last node of `path`, which traversal must accept with probability `weight`.

    A draw x from q covers the mass min(weight p(x), q(x)), so its subtree has the weight min(1, weight p(x) / q(x)).
    If the subtree is rejected, the mass max(weight p - q, 0) remains: the next draw is tried against it, and after the
    last draw the token of a stop at this node is drawn from it. A subtree can be rejected only where
    weight p(x) < q(x), and then no mass of x remains: a token that is drawn twice is never accepted at its second
    trial.
    """
    p = scores[path[-1]].exp()
    for draw in tree.draws(row, path[-1]):
        q = draft_distribution(tree, row, draw, p)
        token = int(tree.tokens[row, draw.node])
        left = unclaimed(weight * p, q)
        rest = float(left.sum())
        share = min(1.0, weight * float(p[token]) / float(q[token]))
        if weight == 1 and rest == 0:  # p = q: no draw is rejected
            share = 1.0
        if share > 0:
            yield from _stops_below(tree, row, scores, [*path, draw.node], share)
        if rest == 0:
            return
        weight, p = rest / (rest + (1 - weight)), left / rest
    yield Stop(path, weight, p)


def uniform(generator: torch.Generator) -> float:
    """A uniform number in [0, 1)."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def sample(p: Float[Tensor, " vocab"], generator: torch.Generator) -> int:
    """One token drawn from p."""
    return int(torch.multinomial(p.cpu().double(), 1, generator=generator))
