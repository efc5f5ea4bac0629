"""KVCache: preallocated keys and values of a batch whose rows may have committed different numbers of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

KEY_BLOCK = 64
"""Attention reads keys in whole blocks of so many."""


@dataclass
class KVCache:
    """Keys and values `[layers, rows, kv_heads, capacity, head_dim]` and the committed length of each row.

    A forward `append`s its new entries behind each row's length without committing them; `keep` commits the entries
    of one path of nodes and forgets the rest. A node is one entry, or those that were `stage`d for it.
    """

    keys: Float[Tensor, "layers rows kv_heads capacity d"]
    values: Float[Tensor, "layers rows kv_heads capacity d"]
    lengths: list[int]
    staged: list[list[list[int]]] | None = None

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
        """How many entries of a row the forward of `n` new ones reads: whole blocks, what is too much is masked.

        The CPU's kernel sums a last odd piece in an order of its own; over whole blocks a node's state does not depend
        on how many drafts stand beside it.
        """
        return min(self.capacity, whole_blocks(max(self.lengths) + n))

    def append(
        self, layer: int, k: Float[Tensor, "rows kv_heads n d"], v: Float[Tensor, "rows kv_heads n d"]
    ) -> tuple[Tensor, Tensor]:
        """Write `n` new entries behind each row's length; return keys and values up to the longest row's end.

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

    def stage(self, entries: list[list[list[int]]]) -> None:
        """Say which appended entries belong to which node, until the next `keep`: `entries[row][node]`, in order."""
        self.staged = entries

    def keep(self, paths: list[list[int]]) -> None:
        """Commit, for each row, the entries of the nodes `paths[row]` of the forward (in order); drop the others."""
        staged, self.staged = self.staged, None
        for row, path in enumerate(paths):
            if staged is not None:
                path = [entry for node in path for entry in staged[row][node]]
            length = self.lengths[row]
            if path != list(range(len(path))):
                source = torch.tensor(path, device=self.keys.device) + length
                end = length + len(path)
                self.keys[:, row, :, length:end] = self.keys[:, row].index_select(2, source)
                self.values[:, row, :, length:end] = self.values[:, row].index_select(2, source)
            self.lengths[row] = length + len(path)

    def truncate(self, lengths: list[int]) -> None:
        """Forget everything past the given length of each row."""
        self.lengths = [min(old, new) for old, new in zip(self.lengths, lengths, strict=True)]


def whole_blocks(entries: int) -> int:
    """The number of entries, rounded up to blocks of keys."""
    return -(-entries // KEY_BLOCK) * KEY_BLOCK


@dataclass(frozen=True)
class Prefilled:
    """A target after its prompts: the cache, left padding of each row, and the last hidden state of each row."""

    cache: KVCache
    padding: Int[Tensor, " rows"]
    hidden: Float[Tensor, "rows d"]


def visibility(
    lengths: list[int], padding: Int[Tensor, " rows"], ancestors: Tensor, end: int
) -> Float[Tensor, "rows 1 n end"]:
    """Additive mask of a forward: a node sees its row's committed entries, its ancestors and itself, no padding.

    `padding[row]` entries at the row's start are left padding. `ancestors` is bool `[rows, n, n]`, `[r, i, j]` true
    where node j is node i or lies above it. `end` is how many entries are read (`KVCache.reach`).
    """
    rows, n, _ = ancestors.shape
    slots = torch.arange(end, device=padding.device)
    mask = torch.full((rows, n, end), -torch.inf, device=padding.device)
    length = torch.tensor(lengths, device=padding.device)
    committed = (slots >= padding[:, None]) & (slots < length[:, None])
    mask.masked_fill_(committed[:, None], 0.0)
    for row, start in enumerate(lengths):
        mask[row, :, start : start + n].masked_fill_(ancestors[row], 0.0)
    return mask.unsqueeze(1)
