"""The exact law of residual verification: the distribution of the token that the verifier commits.

Nothing is sampled. The verifier is called for every possible draw, and its chance of accepting a draw is found by
bisection on the uniform number that it compares with. So a wrong rule shows as an error of its full size, with no
sampling noise around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hawk.decoding.tree import DraftTree, TreeBuilder, batch_trees
from hawk.decoding.verify import Verdict, residual

DrawLaw = Callable[[tuple[int, ...]], Tensor]
"""The q of a draw, given the tokens that were drawn before it below the same node.

A one-hot q reaches the verifier as `Trial.q = -1`.
"""

Verify = Callable[[DraftTree, Tensor, list[torch.Generator]], list[Verdict]]
"""A verifier of drawn drafts, called with the tree, log p and the generators of its uniform numbers."""

REJECTING = 1 - 2.0**-53
"""The largest uniform number: with it the verifier rejects every draft that it does not accept for certain."""
BISECTIONS = 44
"""Halvings of the interval that an acceptance chance lies in; the chance is then known to 2^-45."""


class Scripted(TorchFunctionMode):
    """A context in which torch.rand returns scripted numbers and torch.multinomial always returns 0.

    `final` is the distribution that torch.multinomial was last called with.
    """

    def __init__(self, uniforms: list[float]) -> None:
        super().__init__()
        self._uniforms: Iterator[float] = iter(uniforms)
        self.final = torch.empty(0)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.rand:
            return torch.full((), next(self._uniforms), dtype=torch.float64)
        if func is torch.multinomial:
            self.final = args[0]
            return torch.zeros(1, dtype=torch.long)
        return func(*args, **kwargs)


def exact_law(
    p: Float[Tensor, " vocab"], draws: Sequence[DrawLaw], verify: Verify = residual
) -> Float[Tensor, " vocab"]:
    """Distribution of the token that `verify` commits below a node with these draws; lossless if it equals p.

    `p` is float64. The result is exact up to the bisection and rounding, whose errors together are below 1e-12.
    """
    law = torch.zeros_like(p)

    def descend(tokens: tuple[int, ...], qs: list[Tensor], weight: float) -> None:
        """Add what the verifier commits after `tokens` were drawn and rejected, which has the probability `weight`."""
        if len(tokens) == len(draws):
            final = _judge(p, drawn_tree(qs, tokens), [REJECTING] * len(tokens), verify)[1]
            law.add_(weight * final / final.sum())
            return
        q = draws[len(tokens)](tokens)
        for token in q.nonzero().flatten().tolist():
            drawn = (*tokens, token)
            accepted = accept_chance(p, [*qs, q], drawn, verify)
            chance = weight * float(q[token])
            law[token] += chance * accepted
            if accepted < 1:
                descend(drawn, [*qs, q], chance * (1 - accepted))

    descend((), [], 1.0)
    return law


def excess(p: Float[Tensor, " vocab"], draws: Sequence[DrawLaw], verify: Verify) -> float:
    """Chance that `verify` accepts a draft that residual verification rejects under the same uniform numbers.

    If the two verifiers differ in nothing else, the law of `verify` is at most this far from p, in total variation.
    """

    def descend(tokens: tuple[int, ...], qs: list[Tensor], weight: float) -> float:
        if len(tokens) == len(draws):
            return 0.0
        q = draws[len(tokens)](tokens)
        total = 0.0
        for token in q.nonzero().flatten().tolist():
            drawn, seen = (*tokens, token), [*qs, q]
            accepted, chance = accept_chance(p, seen, drawn, verify), weight * float(q[token])
            total += chance * (accepted - accept_chance(p, seen, drawn))
            total += descend(drawn, seen, chance * (1 - accepted)) if accepted < 1 else 0.0
        return total

    return descend((), [], 1.0)


def accept_chance(
    p: Float[Tensor, " vocab"], qs: list[Tensor], tokens: tuple[int, ...], verify: Verify = residual
) -> float:
    """Chance that the verifier accepts the last of `tokens` after it rejected those before.

    It is the uniform number below which the verifier accepts and above which it rejects.
    """
    tree = drawn_tree(qs, tokens)

    def accepts(uniform: float) -> bool:
        verdict, _ = _judge(p, tree, [REJECTING] * (len(tokens) - 1) + [uniform], verify)
        return len(verdict.path) > 1

    if accepts(REJECTING):
        return 1.0
    low, high = 0.0, 1.0
    if not accepts(low):
        return 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if accepts(middle) else (low, middle)
    return (low + high) / 2


def drawn_tree(qs: list[Tensor], tokens: tuple[int, ...]) -> DraftTree:
    """A tree of a root and these draws below it, in order, each with its own q."""
    builder = TreeBuilder.rooted(0)
    for index, (token, q) in enumerate(zip(tokens, qs, strict=True)):
        builder.add(0, token, 0, -1 if float(q.max()) == 1 else index)
    return batch_trees([builder], ("draw",), [torch.stack(qs) if qs else torch.empty(0, 0)])


def _judge(
    p: Float[Tensor, " vocab"], tree: DraftTree, uniforms: list[float], verify: Verify
) -> tuple[Verdict, Tensor]:
    """The verdict under these uniform numbers, and the distribution of the recovered or bonus token."""
    with Scripted(uniforms) as script:
        verdict = verify(tree, p.log().expand(1, tree.nodes, -1), [torch.Generator()])[0]
    return verdict, script.final
