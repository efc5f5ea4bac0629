"""StaleTarget: what the target itself said of positions that it has scored too early (Jacobi decoding).

The forward that verifies a tree also scores the positions after its rejected nodes, under a prefix that is wrong in one
token or a few. Those distributions are the next step's drafts (SJD, arXiv 2410.01699; SCD, arXiv 2510.24211).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hawk.decoding.canvas import Canvas
from hawk.decoding.tree import first_branch
from hawk.decoding.verify import Scored
from hawk.drafters.source import Draft, Source


@dataclass
class StaleMemory:
    """The target's last word on the positions from `starts` on, `[scored, vocab]` for each image."""

    ahead: list[Tensor]
    starts: list[int]


@dataclass
class StaleSource(Source):
    """log p along the branch that the last verdict broke off and the tree's first branch, then what was said earlier.

    With `window` (Jacobi decoding by itself) the positions that were never scored get the uniform distribution, so that
    the chain always reaches as far.
    """

    vocab: int
    window: int = 0

    name = "stale"

    def start(self, canvas: Canvas) -> StaleMemory:
        """Nothing is scored yet."""
        wide = torch.promote_types(canvas.states.dtype, torch.float32)
        nothing = torch.empty(0, self.vocab, dtype=wide, device=canvas.states.device)
        return StaleMemory([nothing] * canvas.batch, [0] * canvas.batch)

    def see(self, memory: StaleMemory, canvas: Canvas, row: int, scored: Scored) -> None:
        """The scores of the first rejected child of the last kept node, and down its first children.

        If a child holds the committed token, that child's. Beyond them those of the tree's first branch.
        """
        verdict, tree = scored.verdicts[row], scored.tree
        valid = int(tree.valid[row].sum())
        parents, tokens = tree.parents[row, :valid].tolist(), tree.tokens[row, :valid].tolist()
        kept, first = verdict.path, first_branch(parents, 0)
        held = [
            child
            for child in range(kept[-1] + 1, valid)
            if (parents[child], tokens[child]) == (kept[-1], verdict.token)
        ]
        broken = [held[0], *first_branch(parents, held[0])] if held else first_branch(parents, kept[-1])
        fresh = scored.scores[row, broken + first[len(kept) - 1 + len(broken) :]]
        older = memory.ahead[row][canvas.committed[row] - memory.starts[row] + len(fresh) :]
        memory.ahead[row] = torch.cat((fresh, older)) if len(older) else fresh
        memory.starts[row] = canvas.committed[row]

    def draft(self, memory: StaleMemory, row: int, start: int, window: int) -> Draft | None:
        """What was scored, and the uniform distribution for the rest of its own window."""
        said = memory.ahead[row][:window]
        missing = min(window, self.window) - len(said)
        if missing > 0:
            said = torch.cat((said, said.new_full((missing, self.vocab), -math.log(self.vocab))))
        return Draft(0, said) if len(said) else None
