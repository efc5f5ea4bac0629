"""LlamaGen's text-to-image transformer, the target of the official checkpoints and of the bundled model.

Architecture and parameter names are those of the public LlamaGen T2I checkpoints (arXiv 2406.06525): RMSNorm, SwiGLU,
2D rotary positions, an MLP that turns caption features into prefix tokens, a null caption for classifier-free guidance.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hawk.decoding.cache import KVCache, Prefilled, cache_room
from hawk.decoding.grid import Grid
from hawk.errors import HawkError
from hawk.nn.layers import (
    RMSNorm,
    SwiGLU,
    WholeBlocks,
    additive_mask,
    at_least_float32,
    attend,
    causal_visibility,
    rotary_angles,
    rotated_heads,
    swiglu_width,
    whole_query_blocks,
)
from hawk.nn.packed import pack_after_norm, pack_linears, packed_linear, products_in


@dataclass(frozen=True)
class LlamaGenConfig:
    """The shape of a LlamaGen T2I transformer; `caption_tokens` is the fixed length of the prefix.

    The official code rotates the caption's keys by a table of zeros, which makes the keys zero: an image token gives
    all words of the caption the same attention. With `caption_keys` (the bundled model) the keys are kept, and an
    image token can attend to one word more than to another.
    """

    dim: int = 1280
    n_layer: int = 36
    n_head: int = 20
    n_kv_head: int | None = None
    multiple_of: int = 256
    ffn_hidden: int | None = None
    vocab_size: int = 16384
    caption_dim: int = 2048
    caption_tokens: int = 120
    height: int = 16
    width: int = 16
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    caption_keys: bool = False

    @property
    def head_dim(self) -> int:
        """The channels of one attention head."""
        return self.dim // self.n_head

    @property
    def kv_heads(self) -> int:
        """The number of key/value heads; fewer than `n_head` means grouped-query attention."""
        return self.n_kv_head or self.n_head

    @property
    def hidden(self) -> int:
        """The hidden width of the SwiGLU blocks, rounded up to `multiple_of`."""
        if self.ffn_hidden is None:
            return swiglu_width(self.dim, self.multiple_of)
        return -(-self.ffn_hidden // self.multiple_of) * self.multiple_of

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class CaptionPrompt:
    """Left-padded caption features of a batch; `negative_features`, if given, replace the null caption in guidance."""

    features: Float[Tensor, "b t caption_dim"]
    mask: Bool[Tensor, "b t"]
    negative_features: Float[Tensor, "b t caption_dim"] | None = None
    negative_mask: Bool[Tensor, "b t"] | None = None

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, rows: slice) -> CaptionPrompt:
        """The prompts of some images of the batch."""
        negative, negative_mask = self.negative_features, self.negative_mask
        if negative is None or negative_mask is None:
            return CaptionPrompt(self.features[rows], self.mask[rows])
        return CaptionPrompt(self.features[rows], self.mask[rows], negative[rows], negative_mask[rows])


class Attention(nn.Module):
    """Self-attention with 2D rotary positions; it writes keys and values to a `KVCache` if one is given."""

    def __init__(self, config: LlamaGenConfig, dropout: float) -> None:
        super().__init__()
        self.n_head, self.kv_heads = config.n_head, config.kv_heads
        self.wqkv = nn.Linear(config.dim, (config.n_head + 2 * config.kv_heads) * config.head_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.resid_dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "rows n dim"],
        angles: Float[Tensor, "#rows queries half 2"],
        mask: Float[Tensor, "rows 1 whole m"] | None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "rows n dim"]:
        q, k, v = rotated_heads(self.wqkv(x), self.n_head, self.kv_heads, angles)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        return self.resid_dropout(self.wo(attend(q, k, v, mask, nodes=x.shape[1])))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: LlamaGenConfig, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(config, dropout)
        self.feed_forward = SwiGLU(config.dim, config.hidden)
        self.ffn_dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def pack(self, dtype: torch.dtype) -> None:
        """Pack the block for decoding on a CPU: matrix products in `dtype`, the residual stream in float32."""
        pack_after_norm(self, "attention_norm", "attention.wqkv", dtype)
        pack_after_norm(self, "ffn_norm", "feed_forward", dtype)
        pack_linears(self, dtype)

    def forward(
        self,
        x: Float[Tensor, "rows n dim"],
        angles: Float[Tensor, "#rows queries half 2"],
        mask: Float[Tensor, "rows 1 whole m"] | None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "rows n dim"]:
        x = x + self.attention(self.attention_norm(x), angles, mask, cache, layer)
        return x + self.ffn_dropout(self.feed_forward(self.ffn_norm(x)))


class CaptionEmbedder(nn.Module):
    """An MLP from caption features to prefix tokens, and the null caption (`uncond_embedding`) of guidance."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.cap_proj = nn.ModuleDict(
            {
                "fc1": nn.Linear(config.caption_dim, config.dim, bias=False),
                "fc2": nn.Linear(config.dim, config.dim, bias=False),
            }
        )
        null = torch.randn(config.caption_tokens, config.caption_dim) / config.caption_dim**0.5
        self.uncond_embedding = nn.Parameter(null)

    def forward(self, features: Float[Tensor, "rows t caption_dim"]) -> Float[Tensor, "rows t dim"]:
        hidden = F.gelu(self.cap_proj["fc1"](features), approximate="tanh")
        return self.cap_proj["fc2"](hidden)


class LlamaGen(nn.Module):
    """The transformer. It is a `Target` for decoding, and `forward` is for training."""

    linear_head = True

    def __init__(self, config: LlamaGenConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.hidden_size = config.vocab_size, config.dim
        self.packed_in: torch.dtype | None = None
        self.angle_tables: dict[tuple[Grid, torch.device], Tensor] = {}
        self.cls_embedding = CaptionEmbedder(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.tok_dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block(config, dropout) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.draft_output: nn.Module | None = None

    @property
    def grid(self) -> Grid:
        """The grid that the checkpoint was trained for; `forward_nodes` takes any other, too."""
        return Grid(self.config.height, self.config.width)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the layers' matrix products, and so of keys and values."""
        return products_in(self.packed_in) if self.packed_in else self.tok_embeddings.weight.dtype

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, which hold nearly all weights."""
        return self.layers

    @property
    def weight_dtype(self) -> torch.dtype:
        """The dtype of the layers' weights."""
        return self.packed_in or self.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.tok_embeddings.weight.device

    @cached_property
    def parameter_count(self) -> int:
        """The number of parameters of the trained model; packing does not change it."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in LlamaGen(self.config).parameters())

    def pack(self, dtype: torch.dtype) -> None:
        """Pack a frozen float32 model for decoding on a CPU, with the layers' weights in `dtype`.

        Matrix products are in `dtype`, too, but for float16, where they are in float32.
        """
        self.packed_in = dtype
        if dtype == torch.bfloat16:  # else the output head itself serves drafts
            self.draft_output = packed_linear(self.output.weight, dtype)
        for block in self.layers:
            block.pack(dtype)  # type: ignore[operator]
        pack_linears(self, torch.float32 if dtype == torch.bfloat16 else dtype)

    def initialize(self, std: float = 0.02) -> None:
        """Draw new weights for training.

        Matrices are normal with `std`, those of the caption MLP with 1 / sqrt(fan-in); the matrices that write to the
        residual stream are scaled down by depth. The output head is zero.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and "uncond" not in name:
                scale = (2 * self.config.n_layer) ** -0.5 if name.endswith(("wo.weight", "w2.weight")) else 1.0
                own = parameter.shape[1] ** -0.5 if "cap_proj" in name else std * scale
                nn.init.normal_(parameter, std=own)
        nn.init.zeros_(self.output.weight)

    # --- training ---------------------------------------------------------------------------------------------

    def forward(
        self,
        tokens: Int[Tensor, "b n"],
        features: Float[Tensor, "b t caption_dim"],
        feature_mask: Bool[Tensor, "b t"],
        grid: Grid,
        seen: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n dim"]:
        """Teacher forcing: the last hidden states (after the final norm) from which tokens 0 .. n-1 are predicted.

        A token's embedding is zero where `seen` is false (context dropout in training).
        """
        prefix = self.cls_embedding(features)
        embedded = self.tok_embeddings(tokens[:, :-1])
        if seen is not None:
            embedded = embedded * seen[:, :-1, None]
        x = self.tok_dropout(torch.cat((prefix, embedded), dim=1))
        t, total = prefix.shape[1], x.shape[1]
        positions = torch.arange(total - t, device=tokens.device)
        angles = torch.cat((self._prefix_angles(t, x), self._angles(positions, grid)), dim=0).unsqueeze(0)
        mask = additive_mask(causal_visibility(F.pad(feature_mask, (0, total - t), value=True)))
        for block in self.layers:
            x = block(x, angles, mask)
        return self.norm(x[:, t - 1 :])

    # --- decoding ---------------------------------------------------------------------------------------------

    def prefill(self, prompt: CaptionPrompt, guided: bool, capacity: int) -> Prefilled:
        """Run the left-padded captions of a batch; rows are [cond], or [cond; uncond] if guided.

        The cache gets room for `capacity` nodes. Raises `HawkError` for features of another shape than the config's.
        """
        config = self.config
        for given in (prompt.features, prompt.negative_features):
            if given is not None and given.shape[1:] != (config.caption_tokens, config.caption_dim):
                raise HawkError(
                    f"caption features are {given.shape[1]}x{given.shape[2]}, "
                    f"this model takes {config.caption_tokens}x{config.caption_dim}"
                )
        features, real = self._prefix_rows(prompt) if guided else (prompt.features, prompt.mask)
        # Padding that all rows share is cut off: no token sees it, and captions have no positions.
        longest = max(1, int(real.sum(1).max()))
        features, real = features[:, -longest:], real[:, -longest:]
        rows, t = real.shape
        x = self.cls_embedding(features.to(self.tok_embeddings.weight))
        real = real.to(x.device)
        shape = (config.n_layer, rows, config.kv_heads, cache_room(t, capacity, x.device), config.head_dim)
        cache = KVCache.empty(*shape, like=x.new_empty(0, dtype=self.dtype))
        none = torch.zeros(rows, dtype=torch.long, device=x.device)
        hidden = self._run(x, self._prefix_angles(t, x).unsqueeze(0), none, causal_visibility(real), cache)
        cache.keep([list(range(t))] * rows)
        return Prefilled(cache, t - real.sum(1), hidden[:, -1])

    def forward_nodes(
        self,
        tokens: Int[Tensor, "rows n"],
        positions: Int[Tensor, "rows n"],
        ancestors: Bool[Tensor, "rows n n"],
        padding: Int[Tensor, " rows"],
        cache: KVCache,
        grid: Grid,
    ) -> Float[Tensor, "rows n dim"]:
        """Last hidden states of tree nodes; their keys and values are in the cache, uncommitted until `keep`."""
        angles = self._angles(positions, grid)
        return self._run(self.tok_embeddings(tokens), angles, padding, ancestors, cache)

    def head(self, hidden: Float[Tensor, "*b dim"]) -> Float[Tensor, "*b vocab"]:
        """Logits of last hidden states, in at least float32."""
        with self._blocks():
            return at_least_float32(self.output(hidden))

    def embed(self, tokens: Int[Tensor, "*b"]) -> Float[Tensor, "*b dim"]:
        """Embeddings of image tokens."""
        return self.tok_embeddings(tokens)

    def draft_head(self, states: Float[Tensor, "*b dim"]) -> Float[Tensor, "*b vocab"]:
        """Logits of draft states, in the layers' precision: an inexact draft costs speed, not quality."""
        return self.head(states) if self.draft_output is None else self.draft_output(states).float()

    def blank_prompt(self) -> CaptionPrompt:
        """A caption of one image that says nothing (all features are zero), to time the target with."""
        shape, weight = (1, self.config.caption_tokens), self.tok_embeddings.weight
        features = torch.zeros(*shape, self.config.caption_dim, dtype=weight.dtype, device=weight.device)
        return CaptionPrompt(features, torch.ones(shape, dtype=torch.bool, device=weight.device))

    def null_features(self, features: Float[Tensor, "b t caption_dim"]) -> Float[Tensor, "b t caption_dim"]:
        """The null caption for each row. As in the official code, it is used with the padding mask of the caption."""
        return self.cls_embedding.uncond_embedding.to(features.dtype).expand_as(features)

    def _prefix_rows(self, prompt: CaptionPrompt) -> tuple[Tensor, Tensor]:
        """Features and masks of [cond; uncond]; uncond is the negative prompt, or else the null caption."""
        if prompt.negative_features is not None and prompt.negative_mask is not None:
            null, null_mask = prompt.negative_features, prompt.negative_mask
        else:
            null, null_mask = self.null_features(prompt.features), prompt.mask
        return torch.cat((prompt.features.to(null), null)), torch.cat((prompt.mask, null_mask))

    def _run(
        self, x: Tensor, angles: Tensor, padding: Tensor, ancestors: Tensor, cache: KVCache
    ) -> Float[Tensor, "rows n dim"]:
        mask = whole_query_blocks(cache.mask(padding, ancestors).to(self.dtype))
        if x.shape[1] == 1:  # plain AR: copies of the one query fill its block at the price of a broadcast
            angles = angles.expand(-1, mask.shape[2], -1, -1)
        with self._blocks():
            for i, block in enumerate(self.layers):
                x = block(x, angles, mask, cache, i)
            return self.norm(x)

    def _blocks(self) -> AbstractContextManager[object]:
        """The context in which nodes are scored; packed layers need none to give a row the same bits beside others."""
        return nullcontext() if self.packed_in or self.device.type != "cpu" else WholeBlocks()

    def _angles(self, positions: Int[Tensor, "*b"], grid: Grid) -> Float[Tensor, "*b half 2"]:
        """(cos, sin) of grid positions, from a table that is computed once for each grid and device."""
        key = (grid, positions.device)
        if key not in self.angle_tables:
            everywhere = torch.arange(grid.size, device=positions.device)
            angles = rotary_angles(grid.coordinates(everywhere), self.config.head_dim, self.config.rope_base)
            self.angle_tables[key] = angles
        return self.angle_tables[key][positions]

    def _prefix_angles(self, tokens: int, like: Tensor) -> Float[Tensor, "t half 2"]:
        """(cos, sin) for the caption: (1, 0) leaves its keys as they are (`caption_keys`), (0, 0) makes them zero."""
        cosine = float(self.config.caption_keys)
        return torch.tensor((cosine, 0.0), device=like.device).expand(tokens, self.config.head_dim // 2, 2)
