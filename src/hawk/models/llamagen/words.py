"""Text encoders: prompts to left-padded caption features, behind one interface (another one is in `t5.py`).

`StaticTextEncoder` is the bundled one: static word vectors, a fixed window of neighbours, the caption's mean and a
position code. It is deterministic and offline; a word it has no vector for is the mean of its longest known pieces.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors import safe_open
from torch import Tensor

from hawk.errors import HawkError


@dataclass(frozen=True)
class TextFeatures:
    """Caption features, zero where padded; `mask` is true at real tokens, which stand at the right end."""

    features: Float[Tensor, "b t d"]
    mask: Bool[Tensor, "b t"]


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts to features `[b, tokens, width]` that a target takes as prefix."""

    @property
    def tokens(self) -> int: ...

    @property
    def width(self) -> int: ...

    def encode(self, prompts: list[str]) -> TextFeatures:
        """Features of prompts; `HawkError` for one that is empty or too long."""
        ...

    def facts(self) -> dict[str, str | int]:
        """What `hawk info` says of it."""
        ...


_DROPPED = frozenset({"a", "an", "the"})
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class StaticTextEncoder:
    """Word vectors `[words, d]` (float32), a window of `context` words either side, and `tokens` positions.

    With `fill` the caption is repeated until the prefix is full: LlamaGen's prefix keys are zero, so that images attend
    to it in proportion to its length. At most `longest` words are taken.
    """

    index: dict[str, int]
    vectors: Float[Tensor, "words d"]
    tokens: int = 40
    context: int = 2
    position_channels: int = 16
    fill: bool = True
    longest: int = 24

    @classmethod
    def load(cls, folder: Path) -> StaticTextEncoder:
        """Read `words.txt`, `words.safetensors` (int8 vectors with a scale each) and `text.json` from a folder."""
        words_file, vectors_file, config_file = (
            folder / name for name in ("words.txt", "words.safetensors", "text.json")
        )
        for path in (words_file, vectors_file, config_file):
            if not path.is_file():
                raise HawkError(f"the text encoder lacks {path}: give a folder that `hawk train target` wrote")
        words = words_file.read_text(encoding="utf-8").split("\n")
        with safe_open(str(vectors_file), framework="pt") as tensors:
            vectors = tensors.get_tensor("vectors").float() * tensors.get_tensor("scales").float()[:, None]
        if len(words) != len(vectors):
            raise HawkError(f"{words_file} has {len(words)} words but {vectors_file} {len(vectors)} vectors")
        settings = json.loads(config_file.read_text(encoding="utf-8"))
        return cls({word: i for i, word in enumerate(words)}, vectors, **settings)

    @property
    def width(self) -> int:
        """Channels of a feature (`caption_dim` of the target)."""
        return self.vectors.shape[1] * (2 * self.context + 2) + self.position_channels

    def facts(self) -> dict[str, str | int]:
        """What `hawk info` says of it."""
        return {"words": len(self.index), "longest_prompt": f"{self.tokens} words"}

    def encode(self, prompts: list[str]) -> TextFeatures:
        """Features `[b, tokens, width]` of prompts; an empty or over-long one raises `HawkError`."""
        rows = [self._prompt(prompt) for prompt in prompts]
        features = torch.stack([F.pad(row, (0, 0, self.tokens - len(row), 0)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(self.tokens) >= self.tokens - lengths[:, None]
        return TextFeatures(features, mask)

    def _prompt(self, prompt: str) -> Float[Tensor, "n width"]:
        words = [word for word in _WORD.findall(prompt.lower()) if word not in _DROPPED]
        if not words:
            raise HawkError(f"the prompt {prompt!r} has no word in it: describe the image, as in 'a red apple'")
        room = min(self.longest, self.tokens)
        if len(words) > room:
            raise HawkError(f"the prompt has {len(words)} words, at most {room} fit: shorten it")
        vectors = torch.stack([self._vector(word) for word in words])
        padded = F.pad(vectors, (0, 0, self.context, self.context))
        windows = padded.unfold(0, 2 * self.context + 1, 1).transpose(1, 2).flatten(1)
        mean = vectors.mean(0).expand(len(words), -1)
        features = torch.cat((windows, mean, _position_code(len(words), self.position_channels)), dim=1)
        return features.repeat(-(-self.tokens // len(words)), 1)[-self.tokens :] if self.fill else features

    def _vector(self, word: str) -> Float[Tensor, " d"]:
        if word in self.index:
            return self.vectors[self.index[word]]
        pieces = self._pieces(word)
        return self.vectors[pieces].mean(0) if pieces else torch.zeros(self.vectors.shape[1])

    def _pieces(self, word: str) -> list[int]:
        """Greedy longest known pieces, left to right; single unknown letters are passed over."""
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start + 1, -1):
                piece = word[start:end]
                if piece in self.index and (end - start > 2 or len(word) <= 3):
                    pieces.append(self.index[piece])
                    start = end
                    break
            else:
                start += 1
        return pieces


def _position_code(count: int, channels: int) -> Float[Tensor, "count channels"]:
    """Sine and cosine of the word's place, wavelengths from 4 words up."""
    rates = 2 * torch.pi / 4 / 2.0 ** torch.arange(channels // 2)
    angles = torch.arange(count)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1) * 0.1
