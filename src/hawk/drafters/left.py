"""What a cell's left neighbour says about it.

All drafts of a step are made at once, so none knows which token the node above it in the tree holds: its left
neighbour in the image. A low-rank factor of log q puts that right without a second pass (as Hydra does, 2402.05109).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hawk.errors import HawkError
from hawk.files import save_tensors

FILE = "left.safetensors"

Table = NDArray[np.float32]
Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class LeftFactor:
    """Adds `left[t] . here[c]` to the score of candidate c beside token t, and weighs the other sources by `base`.

    Tables are `[vocab, rank]`, on the host, where trees are grown.
    """

    left: Table
    here: Table
    base: float

    def scaled(self, scale: float) -> LeftFactor:
        """The same factor, that many times as strong."""
        return LeftFactor(self.left, self.here * np.float32(scale), self.base)

    def save(self, folder: Path) -> None:
        """Write `left.safetensors`."""
        tables = {"left": self.left, "here": self.here, "base": np.array([self.base], np.float32)}
        save_tensors(folder / FILE, {name: torch.from_numpy(table) for name, table in tables.items()})

    @classmethod
    def load(cls, folder: Path, vocab: int) -> LeftFactor | None:
        """Read `left.safetensors`; None where there is none. Raises `HawkError` where it is damaged."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            tables = load_file(path)
            factor = cls(tables["left"], tables["here"], float(tables["base"][0]))
        except (SafetensorError, KeyError, IndexError) as error:
            raise HawkError(f"{path} is damaged: train the drafter again") from error
        if factor.left.shape != factor.here.shape or factor.left.ndim != 2 or len(factor.left) != vocab:
            raise HawkError(f"{path} does not fit a target of {vocab} tokens: train the drafter again")
        return factor


@dataclass(frozen=True)
class Shortlist:
    """Best candidates of each offset after the root, `[offsets, candidates]`: tokens, log q + g, and g, best first.

    The left token counts where `told`: not right after the root, whose token the sources know, and not in the first
    column.
    """

    tokens: NDArray[np.int64]
    scores: Scores
    noise: Scores
    told: list[bool]
    factor: LeftFactor | None

    def __len__(self) -> int:
        return len(self.tokens)

    def ranked(self, offset: int, left: int, ranks: int) -> tuple[list[int], float]:
        """The best `ranks` tokens beside token `left`, best first, and how far the first leads."""
        tokens, scores = self.tokens[offset], self.scores[offset]
        if self.factor is not None and self.told[offset]:
            log_q, noise = scores - self.noise[offset], self.noise[offset]
            scores = self.factor.base * log_q + self.factor.here[tokens] @ self.factor.left[left] + noise
            order = np.argsort(-scores, kind="stable")[: max(ranks, 2)]
            tokens, scores = tokens[order], scores[order]
        return tokens[:ranks].tolist(), float(scores[0] - scores[1]) if len(scores) > 1 else float("inf")

    def best(self, offset: int, left: int) -> int:
        """The best token beside token `left`."""
        return self.ranked(offset, left, 1)[0][0]
