"""The exact joint law of whole images that a decoder with drawn drafts commits, over all its steps.

The decoder is the real one, `generate`. Its target looks up p in a table, and all its draws are enumerated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hawk.decoding.cache import KVCache, Prefilled
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.trees import Drafter
from hawk.drafters.jacobi import JacobiTree
from hawk.drafters.pool import CartesianPool
from hawk.drafters.source import Draft, Source
from hawk.proofs.enumeration import Choices, Chosen, law_of, total_variation
from hawk.proofs.tree_law import Continuation, TokenPath, random_continuation


class NoPrompt:
    """The condition of one image of a target that reads no prompt."""

    def __len__(self) -> int:
        return 1

    def rows(self, rows: slice) -> NoPrompt:
        """The same."""
        return self


@dataclass
class TableTarget:
    """A target whose p is a function of the tokens so far. Its cache holds these tokens, its hidden state is log p."""

    p: Continuation
    vocab_size: int = field(init=False)
    hidden_size: int = field(init=False)
    linear_head: bool = True

    def __post_init__(self) -> None:
        self.vocab_size = self.hidden_size = len(self.p(()))

    def prefill(self, prompt: Any, guided: bool, capacity: int) -> Prefilled:
        """An empty cache, and log p of the first token."""
        like = torch.empty(0, dtype=torch.float64)
        nothing = torch.zeros(1, dtype=torch.long)
        return Prefilled(KVCache.empty(1, 1, 1, capacity, 1, like), nothing, self.p(()).log()[None])

    def forward_nodes(
        self,
        tokens: Int[Tensor, "rows n"],
        positions: Int[Tensor, "rows n"],
        ancestors: Bool[Tensor, "rows n n"],
        padding: Int[Tensor, " rows"],
        cache: KVCache,
        grid: Grid,
    ) -> Float[Tensor, "rows n vocab"]:
        """Log p after each node: of the committed tokens, then those of its ancestors, then its own."""
        entries = tokens.to(cache.keys)[:, None, :, None]
        held, _ = cache.append(0, entries, entries)
        committed = held[0, 0, : cache.lengths[0], 0].long().tolist()
        paths = [(*committed, *tokens[0, seen].tolist()) for seen in ancestors[0]]
        return torch.stack([self.p(path) for path in paths]).log()[None]

    def head(self, hidden: Float[Tensor, "*b vocab"]) -> Float[Tensor, "*b vocab"]:
        """The hidden states themselves."""
        return hidden


@dataclass
class FixedSource(Source):
    """A source with the same q at every position."""

    q: Float[Tensor, " vocab"]

    name = "fixed"

    def draft(self, memory: Any, row: int, start: int, window: int) -> Draft | None:
        """log q at every offset of the window."""
        return Draft(0, self.q.log().expand(window, -1)) if window else None


@dataclass(frozen=True)
class Drawing:
    """Images of `length` tokens with the law p, and a drafter for them."""

    p: Continuation
    length: int
    drafter: Drafter

    def law(self) -> dict[TokenPath, float]:
        """The law of the images that the decoder commits under residual verification."""
        request = Request(NoPrompt(), Grid(1, self.length), SamplingParams(), [0], "residual")
        target = TableTarget(self.p)

        def draw(choices: Choices) -> TokenPath:
            with Chosen(choices):
                return tuple(generate(target, request, self.drafter).tokens[0].tolist())

        return law_of(draw)

    def plain_law(self) -> dict[TokenPath, float]:
        """The law of plain AR."""

        def draw(choices: Choices) -> TokenPath:
            tokens: TokenPath = ()
            while len(tokens) < self.length:
                tokens = (*tokens, choices.draw(self.p(tokens).tolist()))
            return tokens

        return law_of(draw)

    def drift(self) -> float:
        """Total variation between the two laws: 0, up to rounding, if the decoder is lossless."""
        return total_variation(self.law(), self.plain_law())


def certain_at_first(p: Continuation) -> Continuation:
    """p with token 0 at the start of every image: no draft is verified there, and fewer images are possible."""

    def after(path: TokenPath) -> Tensor:
        return p(path) if path else torch.eye(len(p(())), dtype=torch.float64)[0]

    return after


def drawing_cases(seed: int = 7) -> dict[str, Drawing]:
    """Drafters of each kind, on images so small that all draws can be enumerated, by name.

    With these lengths some steps keep a whole tree and draw a bonus token, and some drafts live for several steps.
    """
    p = {vocab: certain_at_first(random_continuation(seed, vocab)) for vocab in (2, 3)}

    def pool(vocab: int, depth: int, sources: int) -> CartesianPool:
        fixed: list[Source] = [FixedSource(random_continuation(seed + 1 + k, vocab)(())) for k in range(sources)]
        return CartesianPool(fixed, TableTarget(p[vocab]).head, depth)

    return {
        "one draft a step": Drawing(p[3], 3, pool(3, depth=1, sources=1)),
        "trees of two sources": Drawing(p[2], 3, pool(2, depth=2, sources=2)),
        "drafts that live for several steps": Drawing(p[2], 4, JacobiTree(2, window=2)),
        "the same, two candidates at the frontier": Drawing(p[3], 3, JacobiTree(3, 2, branching=2, depth=1)),
    }
