"""Jacobi decoding with maximal coupling: a window of drafts that stay the same as long as the target allows it.

Every step scores the whole window under the drafts before each position. Each draft after the first rejection is then
coupled to the target's new distribution p: it stays with probability min(1, p(x) / q(x)), and otherwise it is redrawn
from normalise(max(p - q, 0)). Either way the draft follows p, which is its q at the next step. (SCD's maximal coupling,
arXiv 2510.24211; adaptive continuation and the K-ary tree at the frontier: SJD-PAC, arXiv 2603.18599.)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hawk.decoding.canvas import Canvas
from hawk.decoding.noise import Randomness
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import DraftTree, TreeBuilder, batch_trees
from hawk.decoding.verify import Verified, residual_distribution, sample, uniform


@dataclass
class LiveDrafts:
    """The drafts of one image past the frontier, the distribution of each, and their nodes in the last tree."""

    tokens: list[int] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)


@dataclass
class JacobiMemory:
    """The drafts of each image, and the randomness of its draws."""

    randomness: Randomness
    drafts: list[LiveDrafts]


@dataclass
class JacobiTree:
    """A chain of `window` drafts; its first `depth` positions have `branching` candidates each, multiplied to a tree.

    `traversal` cannot verify it: traversal can reject any draft, and a rejected draft no longer follows its q, but this
    tree uses drafts again at the next step.
    """

    vocab: int
    window: int = 16
    branching: int = 1
    depth: int = 0
    lossless_with: tuple[str, ...] = ("residual", "coupled")

    @property
    def max_nodes(self) -> int:
        """Nodes of the full tree, root included."""
        return 1 + self.window + sum(self.branching**d - 1 for d in range(1, min(self.depth, self.window) + 1))

    def within(self, most: int | None) -> JacobiTree:
        """The tree reduced to at most `most` drafts: first fewer candidates at each position, then a shorter window."""
        tree = self
        while most is not None and tree.max_nodes - 1 > most:
            wide = tree.branching > 1
            tree = replace(tree, branching=tree.branching - 1) if wide else replace(tree, window=tree.window - 1)
        return tree

    def start(self, canvas: Canvas, params: SamplingParams, randomness: Randomness) -> JacobiMemory:
        """A memory without drafts; `observe` fills it with uniform draws."""
        return JacobiMemory(randomness, [LiveDrafts() for _ in range(canvas.batch)])

    def observe(self, memory: JacobiMemory, canvas: Canvas, verified: Verified) -> None:
        """Drop the committed drafts, couple the others to their new distribution, and append uniform draws."""
        for row, live in enumerate(memory.drafts):
            generator, passed = memory.randomness.generators[row], len(verified.verdicts[row].path)
            fresh = LiveDrafts()
            for offset in range(passed, len(live.tokens)):
                p = verified.log_p[row, live.nodes[offset - 1]].exp()
                fresh.tokens.append(coupled_draw(live.tokens[offset], live.q[offset], p, generator))
                fresh.q.append(p)
            flat = verified.log_p.new_full((self.vocab,), 1.0 / self.vocab)
            while len(fresh.tokens) < min(self.window, canvas.room(row)):
                fresh.tokens.append(sample(flat, generator))
                fresh.q.append(flat)
            memory.drafts[row] = fresh

    def propose(self, memory: JacobiMemory, canvas: Canvas) -> DraftTree:
        """One tree for each image, with every draw's q."""
        builders, q = [], []
        for row, live in enumerate(memory.drafts):
            builder = TreeBuilder.rooted(int(canvas.tokens[row, canvas.committed[row] - 1]))
            q.append(self._grow(builder, live, memory.randomness.generators[row]))
            builders.append(builder)
        return batch_trees(builders, ("stale",), q, canvas.tokens.device)

    def _grow(self, builder: TreeBuilder, live: LiveDrafts, generator: torch.Generator) -> Float[Tensor, "draws vocab"]:
        rows: list[Tensor] = []
        level, main = [0], 0
        live.nodes = []
        for offset, token in enumerate(live.tokens):
            wide = offset < self.depth
            trials = siblings(token, live.q[offset], self.branching if wide else 1, generator)
            below = [
                [builder.add(parent, trial, 0, len(rows) + i) for i, (trial, _) in enumerate(trials)]
                for parent in (level if wide else [main])
            ]
            rows += [q for _, q in trials]
            main = below[level.index(main) if wide else 0][0]
            level = [node for nodes in below for node in nodes]
            live.nodes.append(main)
        return torch.stack(rows) if rows else torch.empty(0, self.vocab)


def coupled_draw(token: int, q: Float[Tensor, " vocab"], p: Float[Tensor, " vocab"], generator: torch.Generator) -> int:
    """A draw from p that equals `token`, which was drawn from q, as often as possible (maximal coupling)."""
    left = residual_distribution(p, q)
    return token if left is None or uniform(generator) * q[token] < p[token] else sample(left, generator)


def siblings(
    first: int, q: Float[Tensor, " vocab"], count: int, generator: torch.Generator
) -> list[tuple[int, Float[Tensor, " vocab"]]]:
    """`first`, which was drawn from q, and further draws without replacement; each with its own distribution."""
    drawn = [(first, q)]
    while len(drawn) < count:
        token, before = drawn[-1]
        rest = before.clone()
        rest[token] = 0
        total = rest.sum()
        if total <= 1e-12:
            break
        drawn.append((sample(rest / total, generator), rest / total))
    return drawn
