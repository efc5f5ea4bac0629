"""StaleSource: stale guesses, which are the target's own distributions from an earlier forward (Jacobi decoding).

The forward that verifies a tree also scores positions after rejected nodes, under a prefix that is wrong in one or a
few tokens. Those distributions are the next step's drafts (SJD, arXiv 2410.01699; SCD, arXiv 2510.24211).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hawk.decoding.canvas import Canvas
from hawk.decoding.forward import wide
from hawk.decoding.tree import first_branch
from hawk.decoding.verify import Verified
from hawk.drafters.source import Draft, Source


@dataclass
class StaleMemory:
    """The target's newest log p of each image's positions from `starts` on, `[scored, vocab]`."""

    ahead: list[Tensor]
    starts: list[int]


@dataclass
class StaleSource(Source):
    """log p of the positions after the frontier, from the rejected branch, then the first branch, then earlier steps.

    The rejected branch begins with the first rejected child of the last accepted node. With `window` (Jacobi decoding
    by itself), positions that were never scored get the uniform distribution, so that the chain always has that length.
    """

    vocab: int
    window: int = 0

    name = "stale"

    def start(self, canvas: Canvas) -> StaleMemory:
        """A memory without guesses."""
        nothing = torch.empty(0, self.vocab, dtype=wide(canvas.states), device=canvas.states.device)
        return StaleMemory([nothing] * canvas.batch, [0] * canvas.batch)

    def see(self, memory: StaleMemory, canvas: Canvas, row: int, verified: Verified) -> None:
        """Keep the scores of the first rejected child of the last accepted node, and of its first children below.

        If a child holds the committed token, that child's scores are kept instead. After them come the scores of the
        tree's first branch.
        """
        verdict, tree = verified.verdicts[row], verified.tree
        valid = int(tree.valid[row].sum())
        parents, tokens = tree.parents[row, :valid].tolist(), tree.tokens[row, :valid].tolist()
        kept, first = verdict.path, first_branch(parents, 0)
        held = [
            child
            for child in range(kept[-1] + 1, valid)
            if (parents[child], tokens[child]) == (kept[-1], verdict.token)
        ]
        rejected = [held[0], *first_branch(parents, held[0])] if held else first_branch(parents, kept[-1])
        fresh = verified.log_p[row, rejected + first[len(kept) - 1 + len(rejected) :]]
        older = memory.ahead[row][canvas.committed[row] - memory.starts[row] + len(fresh) :]
        memory.ahead[row] = torch.cat((fresh, older)) if len(older) else fresh
        memory.starts[row] = canvas.committed[row]

    def draft(self, memory: StaleMemory, row: int, start: int, window: int) -> Draft | None:
        """The kept scores, and the uniform distribution for the rest of the source's own window."""
        scored = memory.ahead[row][:window]
        missing = min(window, self.window) - len(scored)
        if missing > 0:
            scored = torch.cat((scored, scored.new_full((missing, self.vocab), -math.log(self.vocab))))
        return Draft(0, scored) if len(scored) else None
