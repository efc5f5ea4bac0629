"""Warnings where there are too few images for a metric."""

from __future__ import annotations

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
