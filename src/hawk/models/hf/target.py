"""The `Target` around any transformers image model: it runs the model's own modules over Hawk's KV cache and masks.

There is no modelling code here. The backbone is called with embeddings, an additive float mask and explicit position
ids, and its attention writes keys and values into a `KVCache`. All that differs between models (embeddings, head,
prompts, pixels) is in their `Family`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache

from hawk.decoding.cache import FixedCache, KVCache, Prefilled, cache_room
from hawk.decoding.grid import Grid
from hawk.decoding.structure import lay_out
from hawk.errors import HawkError
from hawk.models.hf.family import Family, SharedVocabulary
from hawk.nn.layers import WholeBlocks, at_least_float32, causal_visibility


@dataclass(frozen=True)
class TokenPrompt:
    """Token ids of a batch of images of one grid: each image's prompt, and its negative prompt for guidance."""

    prompts: tuple[tuple[int, ...], ...]
    negatives: tuple[tuple[int, ...], ...]
    grid: Grid

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, rows: slice) -> TokenPrompt:
        """The prompts of some images of the batch."""
        return TokenPrompt(self.prompts[rows], self.negatives[rows], self.grid)


class TreeCache(Cache):
    """The cache that transformers' attention modules are given: it hands their keys and values to a `KVCache`."""

    def __init__(self, entries: KVCache) -> None:
        super().__init__(layers=[])
        self.entries = entries

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Append a layer's new keys and values without committing them; return all that its queries may attend to."""
        return self.entries.append(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of committed entries of the longest row."""
        return max(self.entries.lengths)


class TransformersTarget:
    """A transformers model as decoder and drafters use it; its tokens are image codes, 0 .. `vocab_size` - 1.

    `parameter_count` is the number of parameters that draw tokens: those of backbone, image embeddings and image head.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        shape = family.shape
        self.vocab_size, self.hidden_size, self.linear_head = family.codes, shape.hidden_size, family.linear_head
        modules = nn.ModuleList(family.drawing_modules)
        # Counted before the family packs them.
        self.parameter_count = sum(parameter.numel() for parameter in modules.parameters())
        self.packed_in: torch.dtype | None = None
        self.made_for = self.place

    def pack(self, dtype: torch.dtype) -> None:
        """Pack the linear layers that draw tokens for decoding on a CPU, with their weights in `dtype`."""
        self.family.pack(dtype)
        self.packed_in, self.made_for = dtype, self.place

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, which hold nearly all weights."""
        return self.family.backbone.layers  # type: ignore[return-value]

    @property
    def weight_dtype(self) -> torch.dtype:
        """The dtype of the weights of the linear layers."""
        return self.packed_in or self.dtype

    @property
    def place(self) -> tuple[torch.dtype, torch.device]:
        """Where the backbone's weights are, and in which dtype."""
        return self.dtype, self.device

    @property
    def grid(self) -> Grid:
        """The grid of an image when a call names no size."""
        return self.family.grid

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the backbone, and so of keys and values."""
        return self.family.text_embeddings.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the backbone."""
        return self.family.text_embeddings.weight.device

    @cached_property
    def end_of_row(self) -> Int[Tensor, " tokens"]:
        """The structure tokens after each row of the image, on the device."""
        return torch.tensor(self.family.structure.end_of_row, dtype=torch.long, device=self.device)

    def prefill(self, prompt: TokenPrompt, guided: bool, capacity: int) -> Prefilled:
        """Run a batch of prompts, left-padded; rows are [cond], or [cond; uncond] if guided.

        The cache gets room for `capacity` nodes and the structure tokens among them. Raises `HawkError` where the
        caller's model has another dtype or device than when this target was made.
        """
        if self.place != self.made_for:
            dtype, device = str(self.dtype).removeprefix("torch."), self.device
            raise HawkError(f"the model was moved to {dtype} on {device} after hawk.accelerate: call it again")
        if isinstance(self.family, SharedVocabulary):
            self.family.follow_weights()
        sequences = prompt.prompts + (prompt.negatives if guided else ())
        rows, longest = len(sequences), max(map(len, sequences))
        ids = torch.zeros(rows, longest, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, longest - len(sequence) :] = torch.tensor(sequence)
        ids = ids.to(self.device)
        padding = torch.tensor([longest - len(sequence) for sequence in sequences], device=self.device)
        offsets = torch.arange(longest, device=self.device) - padding[:, None]
        real = offsets >= 0
        shape, trees = self.family.shape, max(capacity - prompt.grid.size, 0)
        room = cache_room(longest, capacity + self.family.structure.extra(prompt.grid, trees), self.device)
        layers, heads = shape.num_hidden_layers, shape.num_key_value_heads
        width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        cache = KVCache.empty(layers, rows, heads, room, width, like)
        embedded, visible = self.family.text_embeddings(ids), causal_visibility(real)
        hidden = self._run(embedded, offsets.clamp(min=0), torch.zeros_like(padding), visible, cache)
        cache.keep([list(range(longest))] * rows)
        return Prefilled(cache, padding, hidden[:, -1])

    def forward_nodes(
        self,
        tokens: Int[Tensor, "rows n"],
        positions: Int[Tensor, "rows n"],
        ancestors: Bool[Tensor, "rows n n"],
        padding: Int[Tensor, " rows"],
        cache: KVCache,
        grid: Grid,
    ) -> Float[Tensor, "rows n dim"]:
        """Last hidden states of tree nodes; their keys and values are in the cache, uncommitted until `keep`.

        The first node of a row is the tree's root, which comes right after the committed entries. A node that ends a
        row of the image is run together with the structure tokens after it; its state is that of the last of them.
        """
        structure = self.family.structure
        if not structure.end_of_row:
            position_ids = cache.committed()[:, None] - padding[:, None] + positions - positions[:, :1]
            return self._run(self.embed(tokens), position_ids.clamp(min=0), padding, ancestors, cache)
        chain = structure.of_chain(positions.shape[1], grid) if isinstance(cache, FixedCache) else None
        layout = lay_out(structure, positions, ancestors, grid, chain)
        embedded = self.embed(tokens).gather(1, _wide(layout.owner.clamp(min=0), self.hidden_size))
        cache.stage(layout)
        ends = self.end_of_row[(layout.offset - 1).clamp(min=0)]
        embedded = torch.where((layout.offset > 0)[..., None], self.family.text_embeddings(ends), embedded)
        committed = cache.committed() - padding
        position_ids = committed[:, None] + layout.before - structure.before(positions[:, :1], grid)
        hidden = self._run(embedded, position_ids.clamp(min=0), padding, layout.ancestors, cache)
        return hidden.gather(1, _wide(layout.last, self.hidden_size))

    def head(self, hidden: Float[Tensor, "*b dim"]) -> Float[Tensor, "*b vocab"]:
        """Logits of image codes from last hidden states, in at least float32."""
        with self._blocks():
            return at_least_float32(self.family.head(hidden))

    def embed(self, tokens: Int[Tensor, "*b"]) -> Float[Tensor, "*b dim"]:
        """Embeddings of image codes."""
        with self._blocks():
            return self.family.embed(tokens)

    def draft_head(self, states: Float[Tensor, "*b dim"]) -> Float[Tensor, "*b vocab"]:
        """Logits of draft states."""
        return self.head(states)

    def blank_prompt(self) -> TokenPrompt:
        """A prompt of one image that says nothing, to time the target with: 32 times the token 0."""
        blank = ((0,) * 32,)
        return TokenPrompt(blank, blank, self.grid)

    def _run(
        self,
        embedded: Float[Tensor, "rows m dim"],
        position_ids: Int[Tensor, "rows m"],
        padding: Int[Tensor, " rows"],
        ancestors: Bool[Tensor, "rows m m"],
        cache: KVCache,
    ) -> Float[Tensor, "rows m dim"]:
        """Last hidden states of new entries; `position_ids` are their positions in the sequence without its padding."""
        with self._blocks():
            return self.family.backbone(
                inputs_embeds=embedded,
                attention_mask=cache.mask(padding, ancestors).to(embedded.dtype),
                position_ids=position_ids,
                past_key_values=TreeCache(cache),
                use_cache=True,
                return_dict=True,
            ).last_hidden_state

    def _blocks(self) -> AbstractContextManager[object]:
        """The context in which transformers' modules give a row the same bits however many rows are beside it."""
        return WholeBlocks() if self.device.type == "cpu" else nullcontext()


def _wide(index: Int[Tensor, "rows m"], dim: int) -> Int[Tensor, "rows m dim"]:
    """An index for `gather` along the second axis of `[rows, n, dim]`."""
    return index[..., None].expand(-1, -1, dim)
