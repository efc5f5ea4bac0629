"""Control tokens: the tokens that only a family itself may write, and that a user's text must not hold."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any

MARKUP = re.compile(r"<[^<>]+>")
"""How control tokens are written in the `vocabulary_map` of config.json, such as <eoss> and <|extra_200|>."""


def added_tokens(tokenizer: Any) -> dict[int, str]:
    """The special and added tokens of a tokenizer, by id.

    Some tokenizers add plain letters, such as ü in DeepSeek's. They are text, so they are left out.
    """
    added = {
        token_id: str(token.content)
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special or not is_text(str(token.content))
    }
    return {**added, **dict(zip(tokenizer.all_special_ids, map(str, tokenizer.all_special_tokens), strict=True))}


def mapped_tokens(vocabulary: Mapping[str, int], image_ids: Container[int]) -> dict[int, str]:
    """The image tokens and the control tokens in a `vocabulary_map`, by id."""
    return {token_id: name for name, token_id in vocabulary.items() if token_id in image_ids or MARKUP.fullmatch(name)}


def is_text(token: str) -> bool:
    """Whether an added token reads as ordinary text: a single sign, blanks, or words of letters and digits."""
    return len(token.strip()) <= 1 or all(word.isalnum() for word in token.split())
