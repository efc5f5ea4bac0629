"""Verifiers: which drafts of a tree the target keeps, and the token that follows them. Pure, at least float32.

Both are lossless: `coupled` returns exactly the tokens that plain AR returns for the same noise; `residual` keeps the
joint distribution (arXiv 2211.17192; Hawk, Eq. 6-7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hawk.sampling import gumbel_argmax
from hawk.tree import DraftTree


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
    if tree.trials is None and tree.nodes > 1:
        raise ValueError("residual verification needs the draws and distributions of the draft tree")
    return [_walk(tree, row, scores[row], generator) for row, generator in enumerate(generators)]


def _walk(tree: DraftTree, row: int, scores: Float[Tensor, "n vocab"], generator: torch.Generator) -> Verdict:
    path = [0]
    while True:
        p = scores[path[-1]].exp()
        draws = tree.trials[row].get(path[-1], []) if tree.trials else []
        for draw in draws:
            q = _draft_distribution(tree, row, draw.node, draw.q, p)
            token = int(tree.tokens[row, draw.node])
            left = residual_distribution(p, q)
            if left is None or uniform(generator) * q[token] < p[token]:
                path.append(draw.node)
                break
            p = left
        else:
            return Verdict(path, sample(p, generator))


def residual_distribution(p: Float[Tensor, " vocab"], q: Float[Tensor, " vocab"]) -> Tensor | None:
    """normalise(max(p - q, 0)) (Hawk, Eq. 7); None where nothing is left (p = q: no draw is rejected)."""
    left = (p - q).clamp_min(0)
    total = left.sum()
    return None if total <= 0 else left / total


def _draft_distribution(tree: DraftTree, row: int, node: int, q: int, like: Tensor) -> Float[Tensor, " vocab"]:
    if q >= 0:
        assert tree.q is not None
        return tree.q[row][q].to(like)
    one_hot = torch.zeros_like(like)
    one_hot[tree.tokens[row, node]] = 1
    return one_hot


def uniform(generator: torch.Generator) -> float:
    """A number between 0 and 1."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def sample(p: Float[Tensor, " vocab"], generator: torch.Generator) -> int:
    """One token drawn from p."""
    return int(torch.multinomial(p.double().cpu(), 1, generator=generator))


Verifier = Callable[[DraftTree, Bool[Tensor, "b n n"], Float[Tensor, "b n vocab"], Int[Tensor, "b n"]], list[Verdict]]
"""What `decode.step` calls, bound to its randomness: tree, ancestors, log p, positions of the nodes' next tokens."""
