"""T5 as a text encoder, through transformers: captions of FLAN-T5-XL as LlamaGen's checkpoints were trained on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from hawk.errors import HawkError, install, one_line
from hawk.files import refuse_pointers
from hawk.models.checkpoint import check_numbers
from hawk.models.llamagen.cleaning import clean_caption
from hawk.models.llamagen.words import TextFeatures, left_padded

REMEMBERED = 256
"""Captions whose features are kept: each takes 1 MB at 120 tokens of 2048 channels."""


@dataclass(frozen=True)
class LoadedT5:
    """A T5 in memory: transformers' tokenizer and encoder."""

    tokenizer: Any
    encoder: Any


@dataclass(frozen=True)
class T5TextEncoder:
    """A text encoder whose features are the last hidden states of T5 for a cleaned caption.

    `tokens` is the longest caption, its end token included. `source` is a folder or a hub id; the weights are read to
    `device` (None: the CPU) when the first prompt comes. Captions are encoded one by one, so that their features do
    not depend on the batch. Features are cached, so that a prompt is encoded once, even if `unload` comes in between.
    """

    source: str
    width: int = 2048
    tokens: int = 120
    dtype: torch.dtype = torch.bfloat16
    device: torch.device | None = None

    def facts(self) -> dict[str, str | int]:
        """Facts about the encoder, for `hawk info`."""
        return {"encoder": f"T5 from {self.source}", "longest_prompt": f"{self.tokens} tokens"}

    def encode(self, prompts: list[str]) -> TextFeatures:
        """Features `[b, tokens, width]` (float32, on the CPU); raises `HawkError` for an empty or over-long prompt."""
        return left_padded([self._cached_features(self._caption(prompt)) for prompt in prompts], self.tokens)

    def unload(self) -> None:
        """Free the memory of the weights; they are read again when a prompt comes whose features are not cached."""
        self.__dict__.pop("loaded", None)

    @cached_property
    def loaded(self) -> LoadedT5:
        """Tokenizer and encoder, read from `source` on first use; raises `HawkError` where they cannot be read."""
        try:
            import transformers

            from hawk.models.hf.reading import quiet
        except ImportError as error:
            raise HawkError(f"T5 text features need transformers: {install('hf')}") from error
        refuse_pointers(Path(self.source))
        if (Path(self.source) / "config.json").is_file():
            check_numbers(Path(self.source) / "config.json")
        try:
            with quiet():
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.source)
                read: Any = transformers.T5EncoderModel.from_pretrained(
                    self.source, dtype=self.dtype, output_loading_info=True
                )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise HawkError(f"no T5 text encoder could be read from {self.source} ({one_line(error)})") from error
        encoder, report = read
        missing = sorted(report["missing_keys"])
        if missing:
            raise HawkError(
                f"the T5 text encoder in {self.source} lacks {len(missing)} weights, among them {missing[0]}"
            )
        if encoder.config.d_model != self.width:
            raise HawkError(f"the T5 encoder in {self.source} is {encoder.config.d_model} wide, not {self.width}")
        return LoadedT5(tokenizer, encoder.eval().requires_grad_(False).to(self.device))

    @cached_property
    def _cached_features(self) -> Callable[[str], Tensor]:
        return lru_cache(REMEMBERED)(self._features)

    def _caption(self, prompt: str) -> str:
        caption = clean_caption(prompt)
        if not caption:
            raise HawkError(f"the prompt {prompt!r} has no word in it: describe the image, as in 'a red apple'")
        return caption

    @torch.no_grad()
    def _features(self, caption: str) -> Float[Tensor, "n width"]:
        ids = self.loaded.tokenizer(caption, return_tensors="pt").input_ids
        if ids.shape[1] > self.tokens:
            raise HawkError(f"the prompt has {ids.shape[1]} tokens, at most {self.tokens} fit: shorten it")
        return self.loaded.encoder(input_ids=ids.to(self.device)).last_hidden_state[0].float().cpu()
