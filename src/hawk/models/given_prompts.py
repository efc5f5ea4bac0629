"""Prompts that a caller gives as token ids, as to `hawk_generate`: read without padding, and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hawk.decoding.arguments import shown
from hawk.decoding.grid import Grid
from hawk.errors import HawkError


@dataclass(frozen=True)
class PromptNames:
    """What errors call the prompts of a `generate` call: the prompts themselves, and the argument with their mask."""

    prompt: str
    mask: str


PROMPT = PromptNames("prompt", "attention_mask")
NEGATIVE = PromptNames("negative prompt", "negative_prompt_attention_mask")


def without_padding(ids: Tensor, mask: Tensor | None, named: PromptNames) -> tuple[tuple[int, ...], ...]:
    """The token ids of each row of `ids`, `[rows, tokens]`, without those that the mask marks as padding.

    Raises `HawkError` for ids that are no rows of whole numbers, and for a mask of another shape.
    """
    if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise HawkError(f"the ids of a {named.prompt} must be whole numbers in rows, not {shown(ids)}")
    real = torch.ones_like(ids) if mask is None else mask
    if real.shape != ids.shape:
        raise HawkError(f"{named.mask} must have the shape {tuple(ids.shape)}, as the ids, not {tuple(real.shape)}")
    return tuple(tuple(row[seen.bool()].tolist()) for row, seen in zip(ids, real, strict=True))


def check_prompts(prompts: tuple[tuple[int, ...], ...], named: PromptNames, family: Any, grid: Grid) -> None:
    """Raise `HawkError` for a prompt without tokens, with an id that the model lacks, or with another image size."""
    most = family.text_embeddings.num_embeddings - 1
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise HawkError(f"{named.prompt} {number} has no token: {named.mask} must be 1 at the tokens of each row")
        wrong = next((token for token in prompt if not 0 <= token <= most), None)
        if wrong is not None:
            raise HawkError(f"{named.prompt} {number} holds the token id {wrong}: the model's ids are 0 to {most}")
        said = family.grid_in(prompt)
        if said is not None and said != grid:
            raise HawkError(
                f"{named.prompt} {number} asks for an image of {said.height}x{said.width} tokens, and height and width "
                f"for {grid.height}x{grid.width}: give height={said.height} and width={said.width}"
            )
