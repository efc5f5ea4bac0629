"""The exact law of residual verification: the verifier itself, integrated over its draws and its uniforms.

Nothing is sampled. Every possible draw is tried, and the chance that the verifier keeps it is found by bisection on
the uniform number it compares with, so that a wrong rule shows up at the size of its error, not of sampling noise.
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
"""q of a draw given the tokens drawn before it below the same node; a one-hot q is handed on as `Trial.q = -1`."""

Verify = Callable[[DraftTree, Tensor, list[torch.Generator]], list[Verdict]]
"""A verifier of drawn drafts: tree, log p, uniforms."""

REJECTING = 1 - 2.0**-53
"""The largest uniform number: it rejects whatever is not certain."""
BISECTIONS = 44


class Scripted(TorchFunctionMode):
    """In this context torch.rand returns the scripted numbers, torch.multinomial 0; `final` is what that drew from."""

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
    """Distribution of the token that `verify` commits below a node with these draws; lossless where it is p.

    `p` is float64. Exact but for the bisection and for rounding (together below 1e-12).
    """
    law = torch.zeros_like(p)

    def descend(tokens: tuple[int, ...], qs: list[Tensor], weight: float) -> None:
        """Add what follows once `tokens` were drawn and rejected, an event of probability `weight`."""
        if len(tokens) == len(draws):
            final = _judge(p, drawn_tree(qs, tokens), [REJECTING] * len(tokens), verify)[1]
            law.add_(weight * final / final.sum())
            return
        q = draws[len(tokens)](tokens)
        for token in q.nonzero().flatten().tolist():
            drawn = (*tokens, token)
            kept = keep_chance(p, [*qs, q], drawn, verify)
            chance = weight * float(q[token])
            law[token] += chance * kept
            if kept < 1:
                descend(drawn, [*qs, q], chance * (1 - kept))

    descend((), [], 1.0)
    return law


def excess(p: Float[Tensor, " vocab"], draws: Sequence[DrawLaw], verify: Verify) -> float:
    """Chance that `verify` keeps a draft that residual verification would have rejected, under the same uniforms.

    A verifier that otherwise does the same drifts from p by at most this, in total variation.
    """

    def descend(tokens: tuple[int, ...], qs: list[Tensor], weight: float) -> float:
        if len(tokens) == len(draws):
            return 0.0
        q = draws[len(tokens)](tokens)
        total = 0.0
        for token in q.nonzero().flatten().tolist():
            drawn, seen = (*tokens, token), [*qs, q]
            kept, chance = keep_chance(p, seen, drawn, verify), weight * float(q[token])
            total += chance * (kept - keep_chance(p, seen, drawn))
            total += descend(drawn, seen, chance * (1 - kept)) if kept < 1 else 0.0
        return total

    return descend((), [], 1.0)


def keep_chance(
    p: Float[Tensor, " vocab"], qs: list[Tensor], tokens: tuple[int, ...], verify: Verify = residual
) -> float:
    """Chance that the verifier keeps the last of `tokens` after rejecting the others: where its mind changes."""
    tree = drawn_tree(qs, tokens)

    def keeps(uniform: float) -> bool:
        verdict, _ = _judge(p, tree, [REJECTING] * (len(tokens) - 1) + [uniform], verify)
        return len(verdict.path) > 1

    if keeps(REJECTING):
        return 1.0
    low, high = 0.0, 1.0
    if not keeps(low):
        return 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return (low + high) / 2


def drawn_tree(qs: list[Tensor], tokens: tuple[int, ...]) -> DraftTree:
    """A root and these draws below it, in order, each with its own q."""
    builder = TreeBuilder.rooted(0)
    for index, (token, q) in enumerate(zip(tokens, qs, strict=True)):
        builder.add(0, token, 0, -1 if float(q.max()) == 1 else index)
    return batch_trees([builder], ("draw",), [torch.stack(qs) if qs else torch.empty(0, 0)])


def _judge(
    p: Float[Tensor, " vocab"], tree: DraftTree, uniforms: list[float], verify: Verify
) -> tuple[Verdict, Tensor]:
    """What the verifier says under these uniforms, and the distribution that it drew its own token from."""
    with Scripted(uniforms) as script:
        verdict = verify(tree, p.log().expand(1, tree.nodes, -1), [torch.Generator()])[0]
    return verdict, script.final
