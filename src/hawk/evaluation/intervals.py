"""Confidence intervals of metrics, and warnings where there are too few images for a metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hawk.errors import HawkError

FEWEST_IMAGES = {
    "precision": 1000,
    "recall": 1000,
    "density": 1000,
    "coverage": 1000,
    "nearest": 100,
    "copied": 1000,
    "vendi": 200,
    "diversity": 50,
    "energy": 100,
    "classifier": 100,
}
"""For each metric the number of images below which a report warns. The Frechet distance goes by the features' width."""

_WHY = {
    "precision": "the balls around so few real images reach far, so that the share is too high",
    "recall": "the balls around so few drawn images reach far, so that the share is too high",
    "density": "the balls around so few real images reach far",
    "coverage": "a few images decide the share",
    "nearest": "a few images decide the medians",
    "copied": "the nearest 1% of the real images are fewer than ten",
    "vendi": "the score cannot be higher than the number of images, and grows with it",
    "diversity": "a few prompts decide the mean",
    "energy": "only large differences can be seen",
    "classifier": "only large differences can be seen",
}


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


def warnings_for(metric: str, images: int, width: int) -> str | None:
    """A line that says why `images` images a kind are too few for a metric on features `width` wide; None if enough.

    Raises `HawkError` for an unknown metric.
    """
    if metric == "frechet":
        fewest, why = width + 1, "the covariance is singular, so that the distance is too large; compare only figures "
        why += "from the same number of images"
    elif metric in FEWEST_IMAGES:
        fewest, why = FEWEST_IMAGES[metric], _WHY[metric]
    else:
        raise HawkError(f"unknown metric {metric!r}: choose one of frechet, {', '.join(FEWEST_IMAGES)}")
    return f"{metric} from {images} images, fewer than {fewest}: {why}" if images < fewest else None


def _half(sample: Tensor, random: torch.Generator) -> Tensor:
    """Half of the rows, in random order; of an odd number the half is rounded up or down by chance."""
    count = len(sample) // 2
    if len(sample) % 2:
        count += int(torch.randint(2, (), generator=random))
    return sample[torch.randperm(len(sample), generator=random)[:count].to(sample.device)]
