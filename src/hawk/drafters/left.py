"""The left factor: what the token in the cell to the left says about a candidate.

All drafts of a step are made at once, so a draft does not know which token its parent in the tree holds, and the parent
is its left neighbour in the image. A low-rank term of log q adds that knowledge without a second pass of the drafter
(as Hydra does, arXiv 2402.05109).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hawk.errors import HawkError
from hawk.files import save_tensors
from hawk.nn.stored import read_safetensors, refuse_not_finite, shapes_in

FILE = "left.safetensors"

Table = NDArray[np.float32]


@dataclass(frozen=True)
class LeftFactor:
    """Adds `left[t] . here[c]` to the score of candidate c beside token t; multiplies the sources' score by `base`.

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
        again = "train the drafter again"
        try:
            shapes = shapes_in(path)
            if shapes.keys() != {"left", "here", "base"} or shapes["base"] != (1,):
                raise HawkError(f"{path} must hold the tables left and here, and one number, base")
            held = read_safetensors(path)
            refuse_not_finite(path, held)
        except HawkError as error:
            raise HawkError(f"{path} is damaged: {again} ({error})") from error
        shape = shapes["left"]
        if shape != shapes["here"] or len(shape) != 2 or shape[0] != vocab:
            found = f"left has shape {shape}, here {shapes['here']}"
            raise HawkError(f"{path} does not fit a target of {vocab} tokens: {again} ({found})")
        tables = {name: tensor.float().numpy() for name, tensor in held.items()}
        return cls(tables["left"], tables["here"], float(tables["base"][0]))
