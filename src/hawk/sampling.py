"""Sampling: guidance, filtering and Gumbel noise. Each formula's only home."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from hawk.errors import HawkError


@dataclass(frozen=True)
class SamplingParams:
    """How the target's logits become its distribution `p`.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 filter nothing; `cfg_scale` 1 switches guidance off.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "cfg_scale"):
            if not math.isfinite(getattr(self, name)):
                raise HawkError(f"{name} must be a finite number, not {getattr(self, name)}")
        if self.temperature < 0:
            raise HawkError(f"temperature must be 0 (greedy) or more, not {self.temperature}")
        if self.top_k < 0:
            raise HawkError(f"top_k must be 0 (off) or a number of tokens, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise HawkError(f"top_p must be above 0 and at most 1 (off), not {self.top_p}")
        if self.cfg_scale < 1:
            raise HawkError(f"cfg_scale must be 1 (off) or more, not {self.cfg_scale}")

    @property
    def guided(self) -> bool:
        """Whether an unconditional row is needed for each image."""
        return self.cfg_scale != 1.0


def guide(cond: Float[Tensor, "*b d"], uncond: Float[Tensor, "*b d"], scale: float) -> Float[Tensor, "*b d"]:
    """Classifier-free guidance, `uncond + scale * (cond - uncond)`; of logits, or of states before a linear head."""
    return uncond + scale * (cond - uncond)


def log_probs(logits: Float[Tensor, "*b vocab"], params: SamplingParams) -> Float[Tensor, "*b vocab"]:
    """`log p`: guided logits after temperature, top-k, top-p (in that order), normalised; removed tokens are -inf.

    Computed in at least float32. At temperature 0 all mass is on the first largest logit.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if params.temperature == 0:
        greedy = torch.full_like(logits, -torch.inf)
        return greedy.scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)
    logits = logits / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        threshold = logits.topk(params.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if params.top_p < 1:
        logits = _nucleus(logits, params.top_p)
    return logits.log_softmax(-1)


def _nucleus(logits: Float[Tensor, "*b vocab"], top_p: float) -> Float[Tensor, "*b vocab"]:
    """Keep the smallest set of largest tokens whose probability reaches `top_p` (arXiv 1904.09751)."""
    ordered, index = logits.sort(dim=-1, descending=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs
    ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, index, ordered)


def gumbel_argmax(scores: Float[Tensor, "*b vocab"], noise: Float[Tensor, "*b vocab"]) -> Int[Tensor, "*b"]:
    """The token that `log p` (or a draft's `log q`) and the noise of its position select: argmax(scores + noise)."""
    return (scores + noise).max(-1).indices  # on a CPU half the time of argmax


NOISE_BLOCK = 16
"""Positions whose noise is drawn at once."""


HELD = 8 * NOISE_BLOCK
"""Positions whose noise is held at a time, unless more are asked for together."""


class GumbelNoise:
    """All randomness of a batch of images: `g[position, token]`, standard Gumbel, a function of each image's seed.

    Rows come from a counter-based generator keyed by (seed, position), so that they depend neither on the device nor
    on the batch nor on the order in which positions are asked for. They are drawn when first asked for; those behind
    every image's frontier are forgotten when room is needed (and drawn again if ever asked for).
    """

    def __init__(self, seeds: list[int], positions: int, vocab: int, like: Tensor) -> None:
        self.seeds, self.positions, self.vocab = seeds, positions, vocab
        self._held = torch.empty((len(seeds), min(positions, HELD), vocab), dtype=like.dtype, device=like.device)
        self._first = self._drawn = 0  # the positions that are held
        self._frontier = 0  # of the slowest image

    def rows(self, positions: Int[Tensor, "b n"]) -> Float[Tensor, "b n vocab"]:
        """Noise of each image at its positions; those past the end repeat the last (no token is ever chosen there)."""
        positions = positions.clamp(max=self.positions - 1)
        self._frontier = int(positions.min())
        self._hold(self._frontier, int(positions.max()) + 1)
        images = torch.arange(len(self.seeds), device=positions.device)[:, None]
        return self._held[images, positions - self._first]

    def window(self, row: int, start: int, count: int) -> Float[Tensor, "count vocab"]:
        """Noise of one image at the positions `start` .. `start + count - 1`."""
        self._hold(min(start, self._frontier), start + count)
        return self._held[row, start - self._first :][:count]

    def _hold(self, start: int, until: int) -> None:
        """Hold the positions `start` .. `until - 1`; those before them may be forgotten."""
        if start < self._first:
            self._first = self._drawn = start - start % NOISE_BLOCK
        if until <= self._drawn:
            return
        end = min(until + -until % NOISE_BLOCK, self.positions)
        if end - self._first > self._held.shape[1]:
            first = min(start - start % NOISE_BLOCK, self._drawn)
            kept = self._held[:, first - self._first : self._drawn - self._first].clone()
            if end - first > self._held.shape[1]:
                self._held = kept.new_empty(len(self.seeds), end - first, self.vocab)
            self._held[:, : kept.shape[1]], self._first = kept, first
        while self._drawn < end:
            at, count = self._drawn - self._first, min(NOISE_BLOCK, self.positions - self._drawn)
            for row, seed in enumerate(self.seeds):
                drawn = torch.from_numpy(gumbel_rows(seed, self._drawn, count, self.vocab))
                self._held[row, at : at + count] = drawn
            self._drawn += count


def gumbel_rows(seed: int, first: int, count: int, vocab: int) -> NDArray[np.float64]:
    """Standard Gumbel noise of every token at the positions `first` .. `first + count - 1`, `[count, vocab]`."""
    blocks = -(-vocab // 4)  # of a position: the generator counts in blocks of four numbers
    generator = np.random.Generator(np.random.Philox(key=seed, counter=first * blocks))
    noise = generator.random((count, 4 * blocks))
    np.clip(noise, 1e-300, 1 - 1e-16, out=noise)
    for _ in range(2):
        np.negative(np.log(noise, out=noise), out=noise)
    return noise[:, :vocab]


@dataclass(frozen=True)
class Randomness:
    """The two independent streams of a batch of images: coupled noise, and uniforms for residual drafts and trials."""

    noise: GumbelNoise
    generators: list[torch.Generator]

    @classmethod
    def from_seeds(cls, seeds: list[int], positions: int, vocab: int, like: Tensor) -> Randomness:
        """Both streams of each image follow from its seed alone."""
        generators = [torch.Generator().manual_seed(seed ^ 0x5DEECE66D) for seed in seeds]
        return cls(GumbelNoise(seeds, positions, vocab, like), generators)
