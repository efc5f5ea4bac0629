"""DraftTree: proposed tokens and their parents, for a batch of images; Window: a chain that keeps its length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hawk.decoding.pacing import Rung, in_batch


@dataclass(frozen=True)
class Trial:
    """One draw that residual verification tries: `node` is the child with its token, `q` its row of `DraftTree.q`.

    Several trials may share a node (the same token drawn twice). `q = -1` means a one-hot draft.
    """

    node: int
    q: int


@dataclass(frozen=True)
class DraftTree:
    """Nodes in topological order; node 0 is the root: the last committed token, which no forward has scored yet.

    `tokens`, `parents`, `sources`, `valid`: `[batch, nodes]`. A root is its own parent; padding nodes are not valid.
    `sources` index `source_names`. `trials[row][node]` lists the draws below a node in the order in which they are
    tried, and `q[row]` holds the distributions of those draws, `[draws, vocab]`. Only residual verifiers need both.
    `broken` names the sources that gave no distribution somewhere in this image or batch, and drafted uniformly there.
    """

    tokens: Int[Tensor, "b n"]
    parents: Int[Tensor, "b n"]
    sources: Int[Tensor, "b n"]
    valid: Bool[Tensor, "b n"]
    source_names: tuple[str, ...]
    trials: list[dict[int, list[Trial]]] | None = None
    q: list[Float[Tensor, "_ vocab"]] | None = None
    broken: frozenset[str] = frozenset()

    @property
    def nodes(self) -> int:
        """Nodes per image, root and padding included."""
        return self.tokens.shape[1]

    def draws(self, row: int, node: int) -> list[Trial]:
        """The draws below a node of one image, in the order in which they are tried."""
        return self.trials[row].get(node, []) if self.trials else []

    def deepest(self, row: int) -> int:
        """Depth of an image's deepest node; the root's is 0."""
        depths = [0]
        for parent in self.parents[row, 1 : int(self.valid[row].sum())].tolist():
            depths.append(depths[parent] + 1)
        return max(depths)

    def ancestors(self) -> Bool[Tensor, "b n n"]:
        """`[b, i, j]`: whether node j is node i or an ancestor of node i."""
        parents = self.parents.cpu().numpy()
        batch, n = parents.shape
        reach = np.zeros((batch, n, n), dtype=bool)
        for row in range(batch):
            for node in range(n):
                reach[row, node] = reach[row, parents[row, node]]
                reach[row, node, node] = True
        return torch.from_numpy(reach).to(self.parents.device)


@dataclass(frozen=True)
class Window:
    """A chain of `reach` drafts past the frontier, all replaced at every step by what the target says (0: plain AR).

    A draft is the token that the target would have drawn at its position one step ago, with the same noise. At a
    position that the target has not scored yet, the draft repeats the cell `above`; with `above` False it is the token
    with the largest noise (SCD, arXiv 2510.24211). With `keeps` False a step accepts no draft: that is plain AR at
    the window's shape, the reference for the rounding of a GPU's kernels.

    With a `ladder` each step has the reach of one of its rungs (`pacing.Pace`), and `reach` is that of the widest;
    `skill` is what an earlier image taught about the drafts. If not `paced`, all steps of a drawing have the reach of
    the rung that is best for the number of images.
    """

    reach: int
    above: bool = True
    keeps: bool = True
    lossless_with: tuple[str, ...] = ("coupled",)
    ladder: tuple[Rung, ...] = ()
    skill: float = field(default=0.0, compare=False)
    paced: bool = True

    @property
    def max_nodes(self) -> int:
        """Nodes of the chain, root included."""
        return self.reach + 1

    def for_images(self, images: int) -> Window:
        """The window for so many images together, whose steps cost more (`pacing.in_batch`)."""
        ladder = in_batch(self.ladder, images)
        if self.paced or not ladder:
            return replace(self, ladder=ladder)
        best = max(ladder, key=lambda rung: rung.tokens / rung.seconds)
        return replace(self, reach=best.reach, ladder=())


def first_branch(parents: list[int], node: int) -> list[int]:
    """The first child of a node, its first child, and so on; `parents` lists all valid nodes of one image's tree."""
    branch: list[int] = []
    for child in range(node + 1, len(parents)):
        if parents[child] == node:
            branch.append(child)
            node = child
    return branch


@dataclass
class TreeBuilder:
    """Grows the tree of one image node by node; `add` merges equal siblings."""

    tokens: list[int]
    parents: list[int]
    sources: list[int]
    depths: list[int]
    trials: dict[int, list[Trial]]
    _children: dict[tuple[int, int], int]

    @classmethod
    def rooted(cls, token: int) -> TreeBuilder:
        """A tree of the root alone."""
        return cls([token], [0], [0], [0], {}, {})

    def first_branch_first(self) -> TreeBuilder:
        """The same tree of one-hot drafts, with the nodes of its first branch directly after the root.

        The rounding of a state depends on the order of the keys that attention sums over. This order gives the first
        branch the keys of plain AR, in the order of plain AR.
        """
        first = [0, *first_branch(self.parents, 0)]
        order = first + sorted(set(range(len(self.tokens))) - set(first))
        place = {node: i for i, node in enumerate(order)}
        return TreeBuilder(
            tokens=[self.tokens[node] for node in order],
            parents=[place[self.parents[node]] for node in order],
            sources=[self.sources[node] for node in order],
            depths=[self.depths[node] for node in order],
            trials={},
            _children={(place[parent], token): place[node] for (parent, token), node in self._children.items()},
        )

    def add(self, parent: int, token: int, source: int, q: int | None = None) -> int:
        """Return the child of `parent` with `token`, made if it is not there; with `q`, also record a trial of it."""
        node = self._children.get((parent, token))
        if node is None:
            node = len(self.tokens)
            self._children[parent, token] = node
            self.tokens.append(token)
            self.parents.append(parent)
            self.sources.append(source)
            self.depths.append(self.depths[parent] + 1)
        if q is not None:
            self.trials.setdefault(parent, []).append(Trial(node, q))
        return node


def batch_trees(
    builders: list[TreeBuilder],
    source_names: tuple[str, ...],
    q: list[Tensor] | None = None,
    device: torch.device | None = None,
    broken: Iterable[str] = (),
) -> DraftTree:
    """One `DraftTree` from the trees of each image, padded to the largest."""
    n = max(len(builder.tokens) for builder in builders)

    def padded(values: list[int]) -> list[int]:
        return values + [0] * (n - len(values))

    def matrix(columns: list[list[int]]) -> Tensor:
        return torch.tensor([padded(column) for column in columns], device=device)

    sizes = torch.tensor([len(builder.tokens) for builder in builders], device=device)
    return DraftTree(
        tokens=matrix([builder.tokens for builder in builders]),
        parents=matrix([builder.parents for builder in builders]),
        sources=matrix([builder.sources for builder in builders]),
        valid=torch.arange(n, device=device) < sizes[:, None],
        source_names=source_names,
        trials=None if q is None else [builder.trials for builder in builders],
        q=q,
        broken=frozenset(broken),
    )
