"""Confidence intervals of measured figures, by resampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hawk.errors import HawkError


@dataclass(frozen=True)
class Interval:
    """A figure, and the interval that its sampling error lies in with the stated confidence."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[..., float],
    *samples: Tensor,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """The statistic of the samples, with an interval from resampled halves of their rows; deterministic for a seed.

    A resample draws half of each sample's rows without replacement, and so holds no row twice: a second copy of an
    image would be its own nearest neighbour, which would spoil precision, recall, density, coverage and the Vendi
    score. The error of a half around the whole has the spread of the whole's own error around the truth (Shao and Wu
    1989; Politis and Romano 1994). The interval is `value` and the quantiles of the resampled statistics
    around their median, so that the bias that a half has more than the whole, as with the Frechet distance, drops out.

    Args:
        statistic: takes as many tensors as there are samples and returns a number; rows are images, or prompts.
        samples: tensors `[rows, ...]` of at least two rows each; independent of each other.
        resamples: the number of halves.
        level: the confidence.
        bounds: the least and the greatest value that the statistic can have; the interval is cut there.

    Raises:
        HawkError: a sample has fewer than two rows, or half of the rows are too few for the statistic.
    """
    if not 0 < level < 1 or resamples < 2:
        raise HawkError(f"level is {level} and resamples is {resamples}: choose a level in (0, 1) and 2 or more")
    if any(len(sample) < 2 for sample in samples):
        raise HawkError(f"an interval needs at least 2 images, not {min(map(len, samples))}: draw more images")
    value = float(statistic(*samples))
    random = torch.Generator().manual_seed(seed)
    try:
        drawn = [float(statistic(*(_half(sample, random) for sample in samples))) for _ in range(resamples)]
    except HawkError as error:
        raise HawkError(f"too few images for an interval, which looks at half of them: {error}") from error
    found = torch.tensor(drawn, dtype=torch.float64)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = (value + (found.quantile(tails) - found.median())).tolist()
    least, most = bounds or (-torch.inf, torch.inf)
    return Interval(value, max(least, low), min(most, high))


def _half(sample: Tensor, random: torch.Generator) -> Tensor:
    """Half of the rows, in random order; of an odd number the half is rounded up or down by chance."""
    count = len(sample) // 2
    if len(sample) % 2:
        count += int(torch.randint(2, (), generator=random))
    return sample[torch.randperm(len(sample), generator=random)[:count].to(sample.device)]
