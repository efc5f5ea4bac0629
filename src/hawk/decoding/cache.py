"""KVCache: preallocated keys and values of a batch whose rows may have committed different numbers of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hawk.decoding.structure import Layout
from hawk.nn.layers import additive_mask

KEY_BLOCK = 64
"""Attention reads keys in whole blocks of so many."""

SPLIT, WHOLE, HALVED_BELOW = 512, 192, 384
"""The CPU's kernel takes keys in splits of 512. MKL adds the products of a split in parts of 192 keys, but halves a
split of more than 192 and fewer than 384 keys (seen with float32 on an AMD EPYC with AVX-512, torch 2.13)."""

PROMPT_BLOCK = 128
"""A cache has room for whole blocks of so many entries of prompts, so that most prompts need a cache of one shape.

A recorded step fits caches of its own shape only."""


@dataclass
class KVCache:
    """Keys and values `[layers, rows, kv_heads, capacity, head_dim]` and the committed length of each row.

    A forward `append`s its new entries after each row's length without committing them; `keep` commits the entries
    of one path of nodes and drops the others. A node is one entry, or the entries that were `stage`d for it.
    """

    keys: Float[Tensor, "layers rows kv_heads capacity d"]
    values: Float[Tensor, "layers rows kv_heads capacity d"]
    lengths: list[int]
    staged: Layout | None = None

    @classmethod
    def empty(cls, layers: int, rows: int, kv_heads: int, capacity: int, head_dim: int, like: Tensor) -> KVCache:
        """A cache with no entries, in the dtype and on the device of `like`."""
        shape = (layers, rows, kv_heads, capacity, head_dim)
        zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return cls(zeros, torch.zeros_like(zeros), [0] * rows)

    @property
    def capacity(self) -> int:
        """How many entries a row can hold."""
        return self.keys.shape[3]

    def reach(self, n: int) -> int:
        """How many entries of a row a forward of `n` new entries reads: whole blocks; the mask hides the excess.

        The CPU's kernel sums an incomplete last block, and some numbers of blocks, in another order. Over the numbers
        of `whole_key_blocks` the state of a node does not depend on the number of drafts beside it.
        """
        return min(self.capacity, whole_key_blocks(max(self.lengths) + n, self.keys.device))

    def append(
        self, layer: int, k: Float[Tensor, "rows kv_heads n d"], v: Float[Tensor, "rows kv_heads n d"]
    ) -> tuple[Tensor, Tensor]:
        """Write `n` new entries after each row's length; return keys and values up to the longest row's end.

        Raises IndexError where a row's capacity would be exceeded.
        """
        n = k.shape[2]
        end = max(self.lengths) + n
        if end > self.capacity:
            raise IndexError(f"the cache holds {self.capacity} entries a row, {end} are needed")
        keys, values = self.keys[layer], self.values[layer]
        if min(self.lengths) == max(self.lengths):
            keys[:, :, end - n : end] = k
            values[:, :, end - n : end] = v
        else:
            for row, length in enumerate(self.lengths):
                keys[row, :, length : length + n] = k[row]
                values[row, :, length : length + n] = v[row]
        end = self.reach(n)
        return keys[:, :, :end], values[:, :, :end]

    def committed(self) -> Int[Tensor, " rows"]:
        """Committed entries of each row, on the device."""
        return torch.tensor(self.lengths, device=self.keys.device)

    def mask(self, padding: Int[Tensor, " rows"], ancestors: Bool[Tensor, "rows n n"]) -> Float[Tensor, "rows 1 n end"]:
        """Which of the entries that `append` will return each of the `n` new entries sees (`visibility`)."""
        return visibility(self.committed(), padding, ancestors, self.reach(ancestors.shape[1]))

    def advance(self, counts: Int[Tensor, " rows"]) -> None:
        """Commit the first `counts[row]` nodes of the forward; drop the others."""
        self.keep([list(range(count)) for count in counts.tolist()])

    def stage(self, layout: Layout) -> None:
        """Say which appended entries belong to which node, until the next `keep` or `advance`."""
        self.staged = layout

    def keep(self, paths: list[list[int]]) -> None:
        """Commit, for each row, the entries of the nodes `paths[row]` of the forward (in order); drop the others."""
        layout, self.staged = self.staged, None
        entries = None if layout is None else layout.entries()
        for row, path in enumerate(paths):
            if entries is not None:
                path = [entry for node in path for entry in entries[row][node]]
            length = self.lengths[row]
            if path != list(range(len(path))):
                source = torch.tensor(path, device=self.keys.device) + length
                end = length + len(path)
                self.keys[:, row, :, length:end] = self.keys[:, row].index_select(2, source)
                self.values[:, row, :, length:end] = self.values[:, row].index_select(2, source)
            self.lengths[row] = length + len(path)

    def rewind(self, lengths: list[int]) -> None:
        """Set the committed length of each row; entries after it are dropped."""
        self.lengths = list(lengths)


def whole_key_blocks(entries: int, device: torch.device) -> int:
    """A number of entries, rounded up to whole blocks of keys; on a CPU to a number that the kernel sums in one order.

    The sum over fewer keys then has the bits of the sum over more keys of which the mask hides the rest.
    """
    keys = rounded_up(entries, KEY_BLOCK)
    last = keys % SPLIT
    halved = device.type == "cpu" and WHOLE < last < HALVED_BELOW
    return keys - last + HALVED_BELOW if halved else keys


def cache_room(prompt: int, image: int, device: torch.device) -> int:
    """The entries of a row that a cache needs for the longest prompt of a batch and for an image, in whole blocks."""
    return whole_key_blocks(rounded_up(prompt, PROMPT_BLOCK) + image, device)


def rounded_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below the number."""
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class Prefilled:
    """A target after its prompts: the cache, left padding of each row, and the last hidden state of each row."""

    cache: KVCache
    padding: Int[Tensor, " rows"]
    hidden: Float[Tensor, "rows d"]


@dataclass
class FixedCache(KVCache):
    """A cache for chains whose steps a GPU replays: only the device knows where a row ends.

    Every forward reads all entries of a row. `ends` are the committed lengths; `lengths` are their values at the start.
    """

    ends: Int[Tensor, " rows"] = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @classmethod
    def of(cls, cache: KVCache) -> FixedCache:
        """A copy of a cache in memory of its own."""
        return cls.around(KVCache(cache.keys.clone(), cache.values.clone(), cache.lengths))

    @classmethod
    def around(cls, cache: KVCache) -> FixedCache:
        """A cache that takes over the memory of another cache, which must not be used any more."""
        return cls(cache.keys, cache.values, list(cache.lengths), None, cache.committed())

    def load(self, cache: KVCache) -> None:
        """Copy the entries and lengths of another cache of the same shape.

        The slots without entries become zero: a NaN that an earlier image left there would pass through the mask.
        """
        filled = max(cache.lengths)
        for mine, others in ((self.keys, cache.keys), (self.values, cache.values)):
            if mine is not others:
                mine[:, :, :, :filled] = others[:, :, :, :filled]
            mine[:, :, :, filled:] = 0
        self.lengths = list(cache.lengths)
        self.ends.copy_(cache.committed())

    def append(
        self, layer: int, k: Float[Tensor, "rows kv_heads n d"], v: Float[Tensor, "rows kv_heads n d"]
    ) -> tuple[Tensor, Tensor]:
        """Write `n` new entries after each row's end; return the keys and values of the whole capacity."""
        rows = torch.arange(len(k), device=k.device)[:, None]
        slots = self.ends[:, None] + torch.arange(k.shape[2], device=k.device)
        self.keys[layer].transpose(1, 2)[rows, slots] = k.transpose(1, 2)
        self.values[layer].transpose(1, 2)[rows, slots] = v.transpose(1, 2)
        return self.keys[layer], self.values[layer]

    def rewind(self, lengths: list[int]) -> None:
        """Set the committed length of each row; entries after it are dropped."""
        self.ends.copy_(torch.tensor(lengths))

    def committed(self) -> Int[Tensor, " rows"]:
        """Committed entries of each row, on the device."""
        return self.ends

    def reach(self, n: int) -> int:
        """Every forward reads all of a row."""
        return self.capacity

    def advance(self, counts: Int[Tensor, " rows"]) -> None:
        """Commit the first `counts[row]` nodes of the forward, which are a chain; drop the others."""
        layout, self.staged = self.staged, None
        if layout is not None:
            through = layout.last.gather(1, (counts - 1).clamp(min=0)[:, None])[:, 0] + 1
            counts = through * (counts > 0)
        self.ends += counts


def visibility(
    lengths: Int[Tensor, " rows"], padding: Int[Tensor, " rows"], ancestors: Bool[Tensor, "rows n n"], end: int
) -> Float[Tensor, "rows 1 n end"]:
    """Additive mask of a forward: a node sees its row's committed entries, its ancestors and itself, but no padding.

    The first `padding[row]` entries of a row are left padding. `ancestors[r, i, j]` is true where node j is node i or
    an ancestor of node i. `end` is the number of entries that the forward reads (`KVCache.reach`).
    """
    n = ancestors.shape[1]
    slots = torch.arange(end, device=padding.device)
    node = slots - lengths[:, None]  # the new entry in each slot
    old = (slots >= padding[:, None]) & (node < 0)
    new = ((node >= 0) & (node < n))[:, None]
    seen = ancestors.gather(2, node.clamp(0, n - 1)[:, None].expand(-1, n, -1))
    return additive_mask(old[:, None] | (new & seen))
