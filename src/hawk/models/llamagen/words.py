"""Text encoders, which turn prompts into left-padded caption features: their interface, and the bundled model's one.

`StaticTextEncoder` joins static word vectors: those of a word and its neighbours, their mean over the caption, and a
position code. It needs no network and always gives the same features. A word without a vector gets the mean vector of
its longest known pieces. `t5.py` has the other text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from hawk.errors import HawkError, one_line
from hawk.files import read_fields
from hawk.nn.stored import read_safetensors, refuse_not_finite


@dataclass(frozen=True)
class TextFeatures:
    """Caption features, zero in the padding on the left; `mask` is true at real tokens."""

    features: Float[Tensor, "b t d"]
    mask: Bool[Tensor, "b t"]


def left_padded(rows: Sequence[Float[Tensor, "_ d"]], tokens: int) -> TextFeatures:
    """The features of captions with at most `tokens` tokens each, padded on the left to `tokens`."""
    features = torch.stack([F.pad(row, (0, 0, tokens - len(row), 0)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return TextFeatures(features, torch.arange(tokens) >= tokens - lengths[:, None])


@runtime_checkable
class TextEncoder(Protocol):
    """Turns prompts into features `[b, tokens, width]`, which a target reads as its prefix."""

    @property
    def tokens(self) -> int: ...

    @property
    def width(self) -> int: ...

    def encode(self, prompts: list[str]) -> TextFeatures:
        """The features of prompts; raises `HawkError` for a prompt that is empty or too long."""
        ...

    def facts(self) -> dict[str, str | int]:
        """Facts about the encoder, for `hawk info`."""
        ...


_DROPPED = frozenset({"a", "an", "the"})
_WORD = re.compile(r"[a-z0-9]+")


class TextSettings(BaseModel):
    """The fields of text.json: those of `StaticTextEncoder` beside its words and vectors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Annotated[int, Field(ge=1, le=4096)] = 40
    context: Annotated[int, Field(ge=0, le=64)] = 2
    position_channels: Annotated[int, Field(ge=0, le=4096, multiple_of=2)] = 16
    fill: bool = True
    longest: Annotated[int, Field(ge=1)] = 24
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class StaticTextEncoder:
    """A text encoder made of static word vectors (float32), with `context` neighbours on either side of a word.

    `tokens` is the length of the prefix, `longest` the most words of a prompt. With `fill` the caption is repeated
    until the prefix is full: LlamaGen's prefix keys are zero, so that all words get the same attention, and a caption
    of few words would get little. `examples` are words to suggest where the vocabulary holds all that was taught.
    """

    index: dict[str, int]
    vectors: Float[Tensor, "words d"]
    tokens: int = 40
    context: int = 2
    position_channels: int = 16
    fill: bool = True
    longest: int = 24
    examples: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> StaticTextEncoder:
        """Read the encoder from `words.txt`, `words.safetensors` (int8 vectors, each with a scale) and `text.json`."""
        words_file, vectors_file, config_file = (
            folder / name for name in ("words.txt", "words.safetensors", "text.json")
        )
        for path in (words_file, vectors_file, config_file):
            if not path.is_file():
                raise HawkError(f"the text encoder lacks {path}: give a folder that `hawk train target` wrote")
        try:
            words = words_file.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise HawkError(f"{words_file} is damaged ({one_line(error)}): fetch or make it again") from error
        vectors = _read_vectors(vectors_file)
        if len(words) != len(vectors):
            raise HawkError(f"{words_file} has {len(words)} words but {vectors_file} {len(vectors)} vectors")
        settings = read_fields(TextSettings, config_file).model_dump(exclude_unset=True)
        return cls({word: i for i, word in enumerate(words)}, vectors, **settings)

    @property
    def width(self) -> int:
        """The channels of a feature (`caption_dim` of the target)."""
        return self.vectors.shape[1] * (2 * self.context + 2) + self.position_channels

    def facts(self) -> dict[str, str | int]:
        """Facts about the encoder, for `hawk info`."""
        facts: dict[str, str | int] = {"words": len(self.index), "longest_prompt": f"{self._room} words"}
        return facts | ({"knows": ", ".join(self.examples)} if self.examples else {})

    def hint(self, prompts: Sequence[str]) -> str | None:
        """One line on the words of prompts that the model was never taught; None if there are none, or none are known.

        Such words are read by their known pieces, or not at all.
        """
        words = dict.fromkeys(word for prompt in prompts for word in _words(prompt))
        missing = [word for word in words if word not in self.index] if self.examples else []
        if not missing:
            return None
        known = ", ".join(self.examples[:: max(1, len(self.examples) // 16)])
        return f"not taught: {', '.join(missing)}; the model knows, among others: {known} (`hawk info` lists all)"

    def encode(self, prompts: list[str]) -> TextFeatures:
        """Features `[b, tokens, width]` of prompts; raises `HawkError` for an empty or over-long prompt."""
        return left_padded([self._features(prompt) for prompt in prompts], self.tokens)

    @property
    def _room(self) -> int:
        """The most words of a prompt."""
        return min(self.longest, self.tokens)

    @cached_property
    def _longest_piece(self) -> int:
        """The letters of the longest known word: no longer piece is looked for."""
        return max(map(len, self.index), default=0)

    def _features(self, prompt: str) -> Float[Tensor, "n width"]:
        words = _words(prompt)
        if not words:
            raise HawkError(f"the prompt {prompt!r} has no word in it: describe the image, as in 'a red apple'")
        if len(words) > self._room:
            raise HawkError(f"the prompt has {len(words)} words, at most {self._room} fit: shorten it")
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
        """Split a word greedily into its longest known pieces, from left to right; unknown letters are skipped."""
        pieces, start = [], 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest_piece), start + 1, -1):
                piece = word[start:end]
                if piece in self.index and (end - start > 2 or len(word) <= 3):
                    pieces.append(self.index[piece])
                    start = end
                    break
            else:
                start += 1
        return pieces


def _read_vectors(path: Path) -> Float[Tensor, "words d"]:
    """The word vectors of `words.safetensors`, each multiplied by its scale."""
    held = read_safetensors(path)
    if held.keys() != {"vectors", "scales"}:
        raise HawkError(f"{path} holds {', '.join(sorted(held)) or 'nothing'}: it must hold vectors and scales")
    vectors, scales = held["vectors"], held["scales"]
    if vectors.ndim != 2 or scales.shape != vectors.shape[:1]:
        shapes = f"{tuple(vectors.shape)}, scales {tuple(scales.shape)}"
        raise HawkError(f"{path}: vectors has shape {shapes}: (words, channels) and (words,) are needed")
    refuse_not_finite(path, held)
    if not scales.is_floating_point() or not scales.all():
        raise HawkError(f"{path}: scales must be floating-point numbers other than 0: fetch or make it again")
    scaled = vectors.float() * scales.float()[:, None]
    refuse_not_finite(path, {"vectors * scales": scaled})
    return scaled


def _words(prompt: str) -> list[str]:
    """The words of a prompt, in lower case and without articles."""
    return [word for word in _WORD.findall(prompt.lower()) if word not in _DROPPED]


def _position_code(count: int, channels: int) -> Float[Tensor, "count channels"]:
    """Sines and cosines of a word's position in the caption, with wavelengths of 4, 8, 16, ... words."""
    rates = 2 * torch.pi / 4 / 2.0 ** torch.arange(channels // 2)
    angles = torch.arange(count)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1) * 0.1
