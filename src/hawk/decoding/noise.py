"""Noise: all randomness of an image, as a function of its seed.

`g[position, token]` is standard Gumbel noise from the counter-based generator Philox-4x64 (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", 2011). The seed is the generator's key, and its counter follows from position and
token. So a number depends neither on the device, nor on the batch, nor on the order in which positions are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hawk.machine import has_float64

NOISE_BLOCK = 16
"""Number of positions whose noise is drawn together."""

HELD = 8 * NOISE_BLOCK
"""Number of positions of an image whose noise is held at a time, unless a caller needs more together."""

AHEAD = 3 * NOISE_BLOCK
"""Number of positions by which an accelerator draws ahead of need: one call then serves several steps."""

SMALLEST, LARGEST = 1e-300, 1 - 1e-16
"""Bounds to which uniform numbers are clamped, so that their Gumbel numbers are finite."""


class GumbelNoise:
    """The noise of a batch of images: a ring buffer of positions for each image, drawn when first needed.

    The noise has the dtype and the device of `like`. Positions that no longer fit into the ring are dropped, and drawn
    again if they are needed again.
    """

    def __init__(self, seeds: list[int], positions: int, vocab: int, like: Tensor, ring: int = HELD) -> None:
        self.seeds, self.positions, self.vocab = seeds, positions, vocab
        self.held = like.new_empty(len(seeds), whole_noise_blocks(min(ring, positions)), vocab)
        self._from = [0] * len(seeds)  # each image holds the positions _from .. _until - 1, in whole blocks
        self._until = [0] * len(seeds)

    @property
    def ring(self) -> int:
        """How many positions of an image the ring holds."""
        return self.held.shape[1]

    def rows(self, positions: Int[Tensor, "b n"]) -> Float[Tensor, "b n vocab"]:
        """Noise of each image at its positions; positions past the end repeat the last (no token is chosen there)."""
        self.hold_rows({row: (min(asked), max(asked) + 1) for row, asked in enumerate(positions.tolist())})
        return self.at(positions)

    def at(self, positions: Int[Tensor, "b n"]) -> Float[Tensor, "b n vocab"]:
        """The same for positions that are held already, of the first images; the host reads nothing."""
        images = torch.arange(len(positions), device=positions.device)[:, None]
        return self.held[images, positions.clamp(max=self.positions - 1) % self.ring]

    def window(self, row: int, start: int, count: int) -> Float[Tensor, "count vocab"]:
        """Noise of one image at the positions `start` to `start + count - 1`."""
        self.hold(row, start, start + count)
        return self.held[row, torch.arange(start, start + count, device=self.held.device) % self.ring]

    def hold(self, row: int, start: int, until: int) -> None:
        """Draw the noise of an image's positions `start` to `until - 1` that is not held yet (`hold_rows`)."""
        self.hold_rows({row: (start, until)})

    def hold_rows(self, asked: dict[int, tuple[int, int]]) -> None:
        """Draw the noise that is not held yet of the positions `start` to `until - 1` of each row of `asked`.

        Positions past the end count as the last one. An accelerator draws the missing blocks of all rows in one call,
        and further blocks of these rows with them (`AHEAD`), since a call costs about the same for many blocks.
        """
        asked = {row: self._within(*span) for row, span in asked.items()}
        widest = whole_noise_blocks(max(until - start for start, until in asked.values()))
        if widest > self.ring:
            self._widen(widest)
        for row, (start, _) in asked.items():
            if not self._from[row] <= start <= self._until[row]:
                self._from[row] = self._until[row] = start
        if all(self._until[row] >= until for row, (_, until) in asked.items()):
            return
        ahead = AHEAD if self.held.is_cuda else 0
        missing: list[tuple[int, int]] = []
        for row, (start, until) in asked.items():
            end = max(until, min(until + ahead, start + self.ring, self.positions))
            firsts = range(self._until[row], end, NOISE_BLOCK)
            missing += [(row, first) for first in firsts]
            if firsts:
                drawn = firsts[-1] + NOISE_BLOCK
                self._until[row] = min(drawn, self.positions)
                self._from[row] = max(self._from[row], drawn - self.ring)
        self._draw(missing)

    def _within(self, start: int, until: int) -> tuple[int, int]:
        """Positions of the image, from the start of a block."""
        start = min(start, self.positions - 1)
        return start - start % NOISE_BLOCK, min(until, self.positions)

    def _draw(self, missing: list[tuple[int, int]]) -> None:
        """Draw whole blocks, each given by its row and its first position."""
        device, dtype = self.held.device, self.held.dtype
        if drawn_by_host(device):
            for row, first in missing:
                at, drawn = first % self.ring, gumbel_rows(self.seeds[row], first, NOISE_BLOCK, self.vocab)
                self.held[row, at : at + NOISE_BLOCK] = drawn if device.type == "cpu" else drawn.to(dtype).to(device)
            return
        seeds, firsts = [self.seeds[row] for row, _ in missing], [first for _, first in missing]
        drawn = gumbel(uniform_blocks(seeds, firsts, NOISE_BLOCK, self.vocab, device))
        where = torch.tensor([[row, first % self.ring] for row, first in missing], device=device)
        slots = where[:, 1:] + torch.arange(NOISE_BLOCK, device=device)
        self.held[where[:, :1], slots] = drawn.to(dtype)

    def replace(self, row: int, seed: int) -> None:
        """Give a row another seed; its noise is drawn when first needed."""
        self.seeds[row], self._from[row], self._until[row] = seed, 0, 0

    def take(self, row: int, other: GumbelNoise, source: int) -> None:
        """Give a row the seed and the noise of a row of another noise with as large a ring, or of this one."""
        self.held[row] = other.held[source]
        for name in ("seeds", "_from", "_until"):
            getattr(self, name)[row] = getattr(other, name)[source]

    def restart(self, seeds: list[int]) -> None:
        """Drop all noise and hold that of other seeds, in the same memory."""
        self.seeds, self._from, self._until = seeds, [0] * len(seeds), [0] * len(seeds)

    def _widen(self, ring: int) -> None:
        self.held = self.held.new_empty(len(self.seeds), ring, self.vocab)
        self.restart(self.seeds)


def whole_noise_blocks(positions: int) -> int:
    """A number of positions, rounded up to whole blocks of noise."""
    return -(-positions // NOISE_BLOCK) * NOISE_BLOCK


def gumbel_rows(
    seed: int, first: int, count: int, vocab: int, device: torch.device | None = None
) -> Float[Tensor, "count vocab"]:
    """Standard Gumbel noise of every token at the positions `first` to `first + count - 1`, in float64.

    It lies on the device, or on the CPU where the device has no float64.
    """
    if device is None or drawn_by_host(device):
        blocks = counters(vocab)
        generator = np.random.Generator(np.random.Philox(key=seed, counter=first * blocks))
        uniform = torch.from_numpy(generator.random((count, 4 * blocks)))[:, :vocab]
    else:
        uniform = uniform_rows(seed, first, count, vocab, device)
    return gumbel(uniform)


def drawn_by_host(device: torch.device) -> bool:
    """Whether the host draws a device's noise: numpy is faster on a CPU, and Apple GPUs have no float64."""
    return device.type == "cpu" or not has_float64(device)


def gumbel(uniform: Float[Tensor, "*b vocab"]) -> Float[Tensor, "*b vocab"]:
    """Gumbel numbers from uniform numbers, in the memory of these."""
    return uniform.clamp_(SMALLEST, LARGEST).log_().neg_().log_().neg_()


def counters(vocab: int) -> int:
    """Counter values of a position: the generator makes four numbers from each."""
    return -(-vocab // 4)


# --- the same numbers on an accelerator -------------------------------------------------------------------------

ROUNDS = 10
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
LOW = 0xFFFFFFFF


def uniform_rows(seed: int, first: int, count: int, vocab: int, device: torch.device) -> Float[Tensor, "count vocab"]:
    """Uniform numbers in [0, 1) of the positions `first` to `first + count - 1` of one image (`uniform_blocks`)."""
    return uniform_blocks([seed], [first], count, vocab, device)[0]


def uniform_blocks(
    seeds: list[int], firsts: list[int], count: int, vocab: int, device: torch.device
) -> Float[Tensor, "k count vocab"]:
    """Uniform numbers in [0, 1) by Philox-4x64-10 in integer tensors, bit for bit those of numpy's generator.

    Block i holds the positions `firsts[i]` to `firsts[i] + count - 1` of the image with the seed `seeds[i]`. The
    integers are signed and wrap at 64 bits; only a right shift depends on the sign, which `high` takes care of.
    numpy increments its counter before the first draw, hence the counter starts at 1.
    """
    blocks = counters(vocab)
    given = torch.tensor([seeds, firsts], device=device)[:, :, None]
    start = given[1] * blocks + torch.arange(1, count * blocks + 1, device=device)
    zero = torch.zeros_like(start)
    words, keys = [start, zero, zero, zero], [given[0], torch.zeros_like(given[0])]
    for _ in range(ROUNDS):
        wide = [wide_product(word, factor) for word, factor in zip(words[::2], MULTIPLIERS, strict=True)]
        words = [
            wide[1][0] ^ words[1] ^ keys[0],
            wide[1][1],
            wide[0][0] ^ words[3] ^ keys[1],
            wide[0][1],
        ]
        keys = [key + signed(step) for key, step in zip(keys, KEY_STEPS, strict=True)]
    numbers = torch.stack(words, dim=-1).view(len(seeds), count, -1)[:, :, :vocab]
    return ((numbers >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def wide_product(word: Int[Tensor, "k n"], factor: int) -> tuple[Int[Tensor, "k n"], Int[Tensor, "k n"]]:
    """The upper and lower 64 bits of an unsigned product of 64-bit numbers."""
    low, up = word & LOW, high(word)
    below, above = factor & LOW, factor >> 32
    first, second, third = low * below, low * above, up * below
    middle = high(first) + (second & LOW) + (third & LOW)
    return up * above + high(second) + high(third) + high(middle), word * signed(factor)


def high(word: Int[Tensor, "k n"]) -> Int[Tensor, "k n"]:
    """The upper 32 bits, as a number without sign."""
    return (word >> 32) & LOW


def signed(word: int) -> int:
    """The signed 64-bit number with the same bits as an unsigned one."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)


@dataclass(frozen=True)
class Randomness:
    """Two independent streams for each image: Gumbel noise for coupled choices, uniform numbers for drawn drafts."""

    noise: GumbelNoise
    generators: list[torch.Generator]

    @classmethod
    def from_seeds(cls, seeds: list[int], positions: int, vocab: int, like: Tensor) -> Randomness:
        """Make both streams; each image's streams are a function of its seed alone."""
        generators = [torch.Generator().manual_seed(seed ^ 0x5DEECE66D) for seed in seeds]
        return cls(GumbelNoise(seeds, positions, vocab, like), generators)
