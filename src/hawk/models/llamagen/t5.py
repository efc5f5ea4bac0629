"""T5 encoders as text encoders, through transformers: FLAN-T5-XL with the conventions of LlamaGen's checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from hawk.errors import HawkError, one_line
from hawk.models.llamagen.cleaning import clean_caption
from hawk.models.llamagen.words import TextFeatures

REMEMBERED = 256  # captions; 1 MB each at 120 tokens of 2048 channels


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """No progress bars and no warnings of transformers: what there is to say, missing weights, is said as an error."""
    said, barred = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(said)
        if barred:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class LoadedT5:
    """A tokenizer and an encoder of transformers."""

    tokenizer: Any
    encoder: Any


@dataclass(frozen=True)
class T5TextEncoder:
    """Last hidden states of a T5 encoder for cleaned captions of at most `tokens` tokens, the end token included.

    `source` is a folder or hub id; it is read when the first prompt comes, to `device` (None: the CPU). Captions are
    encoded one by one, so that their features do not depend on the batch, and remembered, so that a prompt is encoded
    once however often it is drawn, also after `unload`.
    """

    source: str
    width: int = 2048
    tokens: int = 120
    dtype: torch.dtype = torch.bfloat16
    device: torch.device | None = None

    def facts(self) -> dict[str, str | int]:
        """What `hawk info` says of it."""
        return {"encoder": f"T5 from {self.source}", "longest_prompt": f"{self.tokens} tokens"}

    def encode(self, prompts: list[str]) -> TextFeatures:
        """Features `[b, tokens, width]` (float32, on the CPU); an empty or over-long prompt raises `HawkError`."""
        rows = [self._remembered(self._caption(prompt)) for prompt in prompts]
        features = torch.stack([F.pad(row, (0, 0, self.tokens - len(row), 0)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return TextFeatures(features, torch.arange(self.tokens) >= self.tokens - lengths[:, None])

    def unload(self) -> None:
        """Free the memory of the weights; a prompt that is not remembered reads them again."""
        self.__dict__.pop("loaded", None)

    @cached_property
    def loaded(self) -> LoadedT5:
        """Tokenizer and encoder, read from `source` on first use."""
        try:
            import transformers
        except ImportError as error:
            raise HawkError("T5 text features need transformers: pip install 'hawk-t2i[hf]'") from error
        try:
            with _quiet(transformers.logging):
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
    def _remembered(self) -> Callable[[str], Tensor]:
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
