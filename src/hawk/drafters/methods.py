"""Drafters by the name of their method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from hawk.decoding.arguments import name_of
from hawk.decoding.tree import Window
from hawk.decoding.trees import Drafter, NoDrafter
from hawk.decoding.verify import LOSSLESS
from hawk.drafters.feature import FeatureTree, nodes_of
from hawk.drafters.heads import HorizontalSource, VerticalSource
from hawk.drafters.jacobi import JacobiTree
from hawk.drafters.parts import DraftParts
from hawk.drafters.pool import CartesianPool, fused_drafter
from hawk.drafters.settings import HEAD_SOURCES, FusedSettings, TreeLimits, depth_of
from hawk.drafters.source import Source
from hawk.drafters.spatial import SpatialSource
from hawk.drafters.stale import StaleSource
from hawk.errors import HawkError


@dataclass(frozen=True)
class Method:
    """A named combination of a drafter and a verifier; `verifier` is the method's default.

    `sources` are those of the method's pool; `hawk` takes the sources that its fitted settings name. `window` is the
    number of positions that a Jacobi method drafts past the frontier. It is the window of the method's authors. The
    authors of `sjd` give two, 16 and 96. The default is 16, which takes less time on the CPUs measured here, although
    96 needs fewer forwards.
    """

    name: str
    verifier: str
    sources: tuple[str, ...]
    summary: str
    window: int = 0

    @property
    def lossless(self) -> bool:
        """Whether the method's own verifier keeps the target's distribution."""
        return self.verifier in LOSSLESS

    @property
    def label(self) -> str:
        """The name that people read, which says so where the method is lossy."""
        return self.name if self.lossless else f"{self.name} (lossy)"


JACOBI = ("stale",)
"""The source of Jacobi methods, and of `hawk` where no trained source pays: the target's stale guesses."""

METHODS = {
    method.name: method
    for method in (
        Method("ar", "coupled", (), "plain autoregressive decoding, one token a forward"),
        Method("medusa", "residual", HEAD_SOURCES[:1], "horizontal heads only, Cartesian tree (arXiv 2401.10774)"),
        Method("hawk-vertical", "residual", HEAD_SOURCES[1:], "vertical heads only, Cartesian tree"),
        Method("hawk-paper", "residual", HEAD_SOURCES, "both kinds of heads, Cartesian tree (arXiv 2510.25739)"),
        Method("hawk-spatial", "residual", ("spatial",), "the spatial drafter only, Cartesian tree"),
        Method("eagle", "residual", ("feature",), "a decoder layer on the target's states (arXiv 2401.15077)"),
        Method("eagle-topk", "residual", ("feature",), "the same, its likeliest tokens in place of draws (2406.16858)"),
        Method("lantern", "relaxed", ("feature",), "LOSSY: eagle with relaxed acceptance (arXiv 2410.03355)"),
        Method("sjd", "residual", JACOBI, "speculative Jacobi decoding, no drafter (arXiv 2410.01699)", 16),
        Method("scd", "coupled", JACOBI, "Jacobi decoding coupled by its noise, no drafter (arXiv 2510.24211)", 64),
        Method("scd-maximal", "residual", JACOBI, "the same, coupled maximally, without shared noise", 64),
        Method("sjd-pac", "residual", JACOBI, "maximal coupling, a tree at the frontier (arXiv 2603.18599)", 53),
        Method("hawk", "coupled", JACOBI, "fused sources, best-first tree, refreshed window (default)"),
    )
}


TOKENS_AT = {
    1: 1.63,
    3: 2.49,
    7: 3.65,
    11: 4.49,
    15: 5.66,
    17: 5.98,
    19: 6.2,
    23: 6.62,
    27: 7.13,
    31: 7.51,
    47: 8.42,
    63: 8.81,
}
"""Tokens that a step commits, by the window's reach, measured on the bundled model (48 images)."""

UNTRAINED = DraftParts(
    replace(FusedSettings.unfitted(JACOBI), measured_on="no machine: costs are measured", tokens_at=TOKENS_AT)
)
"""The parts of `hawk` without training: stale guesses of the target, and before them the cell above."""


JACOBI_TREES = {
    "scd-maximal": JacobiTree(0),
    "sjd-pac": JacobiTree(0, branching=3, depth=2),
}
"""Trees of the Jacobi methods with maximal coupling; the target sets the vocabulary, the caller the window.

The tree of `sjd-pac` is its authors': 3 children below the root, 9 below them, and a chain. The authors count the root
as a level of the tree, so their depth is 3. With a chain of 53 drafts the tree has 64 nodes.
"""


def method_named(name: str) -> Method:
    """The method of a name; `HawkError` with all names for an unknown one."""
    return METHODS[name_of("method", name, METHODS)]


M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class DraftedTarget(Protocol):
    """The parts of a target that drafters use: its frozen embeddings and output head, `hidden_size` wide."""

    vocab_size: int
    hidden_size: int

    def embed(self, tokens: Int[Tensor, "*b"]) -> Float[Tensor, "*b d"]: ...

    def draft_head(self, states: Float[Tensor, "*b d"]) -> Float[Tensor, "*b vocab"]: ...


def build_drafter(
    method: Method,
    parts: DraftParts | None,
    target: DraftedTarget,
    limits: TreeLimits | None = None,
    verifier: str | None = None,
) -> Drafter | Window:
    """The drafter of a method; `HawkError` where a part is missing that it needs.

    `verifier` (None: the method's own) is the one that the drafts must carry enough for.
    """
    limits, own_draws = limits or TreeLimits(), verifier == "traversal"
    if method.name == "ar":
        return Window(0) if verifier in (None, "coupled") else NoDrafter()
    if method.name in JACOBI_TREES:
        tree = replace(JACOBI_TREES[method.name], vocab=target.vocab_size, window=limits.window or method.window)
        return tree.within(limits.num_draft_tokens)
    if method.window:
        window = min(filter(None, (limits.window, limits.num_draft_tokens)), default=method.window)
        if method.verifier == "coupled":
            return Window(window, above=False)
        jacobi: list[Source] = [StaleSource(target.vocab_size, window)]
        return CartesianPool(jacobi, target.draft_head, depth=window, max_nodes=window + 1, own_draws=own_draws)
    if method.name == "hawk":
        parts = parts or UNTRAINED
        sources = [source_named(name, parts, target) for name in parts.fused.sources]
        return fused_drafter(sources, target.draft_head, parts.fused.limited(limits), parts.left)
    if parts is None:
        raise HawkError(
            f"method {method.name!r} needs a trained drafter, which this model has not: train one with `hawk train "
            "drafter --kind heads`, or choose one of ar, sjd, scd, sjd-pac, hawk"
        )
    if method.sources == ("feature",):
        drafter, one_hot = needed(parts.feature, "feature"), method.name == "eagle-topk"
        return FeatureTree(drafter, target.embed, target.draft_head, draws_within(limits), one_hot)
    sources = [source_named(name, parts, target) for name in method.sources if not beyond(name, parts)]
    nodes = CartesianPool.max_nodes if limits.num_draft_tokens is None else limits.num_draft_tokens + 1
    depth, draws = limits.window or CartesianPool.depth, 2 if len(sources) == 1 else 1
    return CartesianPool(sources, target.draft_head, depth, draws, nodes, own_draws)


def lacking(method: Method, parts: DraftParts | None) -> str | None:
    """The kind of drafter that a method needs and the model lacks; None where the method can run."""
    if method.name == "ar" or method.window:
        return None
    if method.name == "hawk":
        parts = parts or UNTRAINED
    if parts is None:
        return "heads"
    trained = {"heads": parts.heads, "spatial": parts.spatial, "feature": parts.feature}
    named = parts.fused.sources if method.name == "hawk" else method.sources
    kinds = [name if name in trained else "heads" for name in named if name != "stale"]
    return next((kind for kind in kinds if trained[kind] is None), None)


def draws_within(limits: TreeLimits, draws: tuple[int, ...] = FeatureTree.draws) -> tuple[int, ...]:
    """The draws of a static tree at each depth, reduced to a caller's limits: depth first, then width at the root."""
    draws = draws[: limits.window or len(draws)]
    most = limits.num_draft_tokens
    while most is not None and nodes_of(draws) - 1 > most:
        draws = draws[:-1] if len(draws) > 1 else (most,)
    return draws


def source_named(name: str, parts: DraftParts, target: DraftedTarget) -> Source:
    """The source of a pool with that name; `HawkError` where a part that it needs is not trained."""
    if name == "stale":
        return StaleSource(target.vocab_size)
    if name == "spatial":
        return SpatialSource(needed(parts.spatial, "spatial"), target.embed)
    heads = needed(parts.heads, "heads")
    return HorizontalSource(heads) if name == "horizontal" else VerticalSource(heads, depth_of(name), target.vocab_size)


def needed(part: M | None, kind: str) -> M:
    """The part itself; `HawkError` where it is not trained."""
    if part is None:
        there_is = "are no draft heads: train them" if kind == "heads" else f"is no {kind} drafter: train one"
        raise HawkError(f"there {there_is} with `hawk train drafter --kind {kind}`")
    return part


def beyond(name: str, parts: DraftParts) -> bool:
    """Whether a vertical source looks further up than there are vertical heads."""
    return parts.heads is not None and depth_of(name) > parts.heads.config.vertical
