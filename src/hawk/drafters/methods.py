"""Drafters by the name of their method."""

from __future__ import annotations

from dataclasses import dataclass

from hawk.drafters.heads import DraftHeads, HorizontalSource, VerticalSource
from hawk.drafters.left import LeftFactor
from hawk.drafters.pool import CartesianPool, FusedPool, FusedSettings, OutputHead
from hawk.errors import HawkError


@dataclass(frozen=True)
class Method:
    """A named point in the space of drafters and verifiers; `verifier` is the one it is run with by default."""

    name: str
    verifier: str
    horizontal: bool
    vertical: int
    summary: str


METHODS = {
    method.name: method
    for method in (
        Method("ar", "coupled", False, 0, "plain autoregressive decoding, one token a forward"),
        Method("medusa", "residual", True, 0, "horizontal heads only, Cartesian tree (arXiv 2401.10774)"),
        Method("hawk-vertical", "residual", False, 2, "vertical heads only, Cartesian tree"),
        Method(
            "hawk-paper",
            "residual",
            True,
            2,
            "horizontal and vertical heads, Cartesian tree (arXiv 2510.25739)",
        ),
        Method(
            "hawk",
            "coupled",
            True,
            2,
            "the same sources fused, best-first tree, coupled verification (default)",
        ),
    )
}


def method_named(name: str) -> Method:
    """The method of a name; raises `HawkError` with the names there are."""
    if name not in METHODS:
        raise HawkError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


def build_drafter(
    method: Method,
    heads: DraftHeads,
    head: OutputHead,
    vocab: int,
    fused: FusedSettings,
    left: LeftFactor | None = None,
) -> CartesianPool | FusedPool:
    """The drafter of any method but `ar`; `fused` (weights, acceptance, tree limits) and `left` are for `hawk`."""
    horizontal = HorizontalSource(heads) if method.horizontal else None
    depths = range(1, min(method.vertical, heads.config.vertical) + 1)
    vertical = [VerticalSource(heads, depth, vocab) for depth in depths]
    if method.name == "hawk":
        return FusedPool(horizontal, vertical, head, fused, left)
    return CartesianPool(horizontal, vertical, head, draws=2 if len(vertical) + method.horizontal == 1 else 1)
