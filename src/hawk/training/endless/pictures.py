"""What an endless training set of captioned pictures offers: batches of whole pictures, and cut-outs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from hawk.training.captioned import Captioned


@runtime_checkable
class Pictures(Protocol):
    """An endless set of pictures; a picture follows from its split, its place in the split's row, and the seed."""

    @property
    def checks(self) -> tuple[str, ...]:
        """The splits that are measured while a target is trained, the plainest first; `train` is none of them."""
        ...

    @property
    def vocabulary(self) -> Mapping[str, str]:
        """Every word of the captions, and the word whose meaning it shares (itself, or a synonym)."""
        ...

    @property
    def examples(self) -> Sequence[str]:
        """Words to suggest to people whose prompts hold unknown ones."""
        ...

    def batch(self, split: str, places: Sequence[int], seed: int = 0) -> Captioned:
        """The pictures at some places of a split's row."""
        ...

    def crops(self, places: Sequence[int], seed: int = 0) -> UInt8[np.ndarray, "b crop crop 3"]:
        """Cut-outs of training pictures, of a whole number of token cells, for a tokenizer to learn from."""
        ...
