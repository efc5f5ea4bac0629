"""Metrics of fidelity, diversity and sameness on matrices of image features; all are computed in float64.

A feature matrix `[images, width]` holds one image a row. `real` are features of reference pictures, `drawn` those of
images that a model drew. docs/evaluation.md has the formulas and their sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hawk.errors import HawkError

METRICS = (
    "frechet",
    "precision",
    "recall",
    "density",
    "coverage",
    "nearest",
    "copied",
    "vendi",
    "diversity",
    "energy",
    "classifier",
)
"""The names of the metrics in reports."""

FOLDS = 5
"""Parts of the images in the classifier test: a part is judged by a classifier that was fitted to the others."""

RIDGE = 1.0
"""Penalty of the classifier's weights, beside a kernel whose mean diagonal entry is 1."""

COPY_QUANTILE = 0.01
"""A drawn image is as near as a copy if it lies closer to a real one than this share of real images to another."""

BLOCK = 2048
"""Rows of a distance matrix that are held at a time."""


@dataclass(frozen=True)
class PrecisionRecall:
    """The share of drawn images that look real, and the share of real images that the drawn ones cover."""

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """How densely real images surround the drawn ones, about 1 for real ones, and the share of real images met."""

    density: float
    coverage: float


@dataclass(frozen=True)
class Nearest:
    """Distances to the nearest real image: of every drawn image, and of every real image to the nearest other one."""

    drawn: Float[Tensor, " m"]
    real: Float[Tensor, " n"]

    @property
    def ratio(self) -> float:
        """The median of the drawn images over that of the real ones; far below 1 where images are memorised.

        Raises `HawkError` where half of the real images have a copy among them.
        """
        middle = float(self.real.quantile(0.5))
        if middle == 0:
            raise HawkError("half of the real images or more have a copy among them: remove the copies")
        return float(self.drawn.quantile(0.5)) / middle

    @property
    def copied(self) -> float:
        """The share of drawn images as near to a real one as the nearest 1% of the real images to each other."""
        return float((self.drawn <= self.real.quantile(COPY_QUANTILE)).double().mean())


@dataclass(frozen=True)
class TwoSample:
    """A test of whether two samples have one distribution: its statistic, and the p-value by permutation."""

    statistic: float
    p_value: float


def frechet_distance(real: Float[Tensor, "n d"], drawn: Float[Tensor, "m e"]) -> float:
    """Squared Frechet distance between the normal distributions with the samples' means and covariances.

    `|mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2))`, with covariances over n - 1. The trace of the root is the nuclear norm
    of `R R'^T`, where `S = R^T R` and `S' = R'^T R'`: no root of a matrix is taken. Heusel et al. 2017.
    Raises `HawkError` for fewer than two images, other widths, or features that are not finite.
    """
    real, drawn = _pair("the Frechet distance", real, drawn, least=2)
    first, second = _covariance_root(real), _covariance_root(drawn)
    shift = (real.mean(0) - drawn.mean(0)).square().sum()
    overlap = torch.linalg.svdvals(first @ second.T).sum()
    return max(0.0, float(shift + first.square().sum() + second.square().sum() - 2 * overlap))


def precision_recall(real: Float[Tensor, "n d"], drawn: Float[Tensor, "m e"], k: int = 3) -> PrecisionRecall:
    """Improved precision and recall, Kynkäänniemi et al. 2019.

    A ball around every image of one kind reaches to its k-th nearest neighbour of that kind. Precision is the share of
    drawn images in at least one ball of a real image; recall is the share of real images in a ball of a drawn one.
    Raises `HawkError` for k or fewer images of a kind, other widths, or features that are not finite.
    """
    real, drawn = _pair("precision and recall", real, drawn, least=k + 1)
    return PrecisionRecall(_share_inside(drawn, real, k), _share_inside(real, drawn, k))


def density_coverage(real: Float[Tensor, "n d"], drawn: Float[Tensor, "m e"], k: int = 5) -> DensityCoverage:
    """Density and coverage, Naeem et al. 2020.

    A ball around every real image reaches to its k-th nearest real neighbour. Density is the mean number of balls that
    a drawn image lies in, divided by k; coverage is the share of balls that hold a drawn image.
    Raises `HawkError` for k or fewer images of a kind, other widths, or features that are not finite.
    """
    real, drawn = _pair("density and coverage", real, drawn, least=k + 1)
    radii = _radii(real, k)
    inside, met = 0, 0
    for rows, distances in _distances(real, drawn):
        held = distances <= radii[rows, None]
        inside += int(held.sum())
        met += int(held.any(dim=1).sum())
    return DensityCoverage(inside / (k * len(drawn)), met / len(real))


def nearest_real(real: Float[Tensor, "n d"], drawn: Float[Tensor, "m e"]) -> Nearest:
    """The distance of every image to the nearest real image other than itself.

    Raises `HawkError` for fewer than two images, other widths, or features that are not finite.
    """
    real, drawn = _pair("the nearest real image", real, drawn, least=2)
    nearest = torch.cat([distances.min(dim=1).values for _, distances in _distances(drawn, real)])
    return Nearest(nearest, _radii(real, 1))


def vendi_score(features: Float[Tensor, "n d"]) -> float:
    """Vendi score with the cosine kernel, Friedman and Dieng 2022: the effective number of images.

    It is `exp(-sum l log l)` over the eigenvalues l of K / n, where `K[i, j]` is the cosine of the images' features: 1
    if all images look alike, n if all are orthogonal. Raises `HawkError` for no image, features that are not finite or
    all zero.
    """
    unit = _unit("the Vendi score", features, least=1)
    n, width = unit.shape
    kernel = unit @ unit.T if n <= width else unit.T @ unit  # both have the same eigenvalues above 0
    eigenvalues = torch.linalg.eigvalsh(kernel / n).clamp(min=0)
    return float(torch.exp(-torch.xlogy(eigenvalues, eigenvalues).sum()))


def prompt_diversities(features_by_prompt: Sequence[Float[Tensor, "_ d"]]) -> Float[Tensor, " prompts"]:
    """For each prompt the mean of `1 - cosine` over all pairs of its images.

    Raises `HawkError` for a prompt with fewer than two images, features that are not finite or all zero.
    """
    means = []
    for features in features_by_prompt:
        unit = _unit("pairwise diversity", features, least=2)
        n = len(unit)
        means.append(1 - (unit.sum(0).square().sum() - n) / (n * (n - 1)))  # |sum u|^2 is n and twice the pairs
    return torch.stack(means) if means else torch.empty(0, dtype=torch.float64)


def pairwise_diversity(features_by_prompt: Sequence[Float[Tensor, "_ d"]]) -> float:
    """The mean of `prompt_diversities` over the prompts; raises `HawkError` where there is no prompt, too."""
    if not features_by_prompt:
        raise HawkError("pairwise diversity needs at least one prompt with two images")
    return float(prompt_diversities(features_by_prompt).mean())


def energy_test(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m e"], permutations: int = 1000, seed: int = 0, paired: bool = False
) -> TwoSample:
    """Energy distance between two samples and its p-value by permutation, Székely and Rizzo 2004.

    The statistic is `2 E|X - Y| - E|X - X'| - E|Y - Y'|` with means over all pairs of rows, 0 for equal samples.
    `paired` says that row i of both samples has the same prompt: then labels are swapped within such pairs only, which
    tells differences of methods from those of prompts and is far more sensitive.
    Raises `HawkError` for fewer than two images, other widths, unequal numbers of paired rows, or features that are
    not finite.
    """
    a, b = _pair("the energy test", a, b, least=2)
    n, m = len(a), len(b)
    distances = _all_distances(torch.cat([a, b]))
    first = torch.arange(n + m) < n
    labels = torch.cat([first[None], _shuffled(first, _pairs(a, b, paired), permutations, seed)]).double()
    within_a = (labels @ distances * labels).sum(1)
    from_a = labels @ distances.sum(0)  # the distances from the rows of a to all rows
    between = from_a - within_a
    within_b = distances.sum() - 2 * from_a + within_a
    energies = 2 * between / (n * m) - within_a / n**2 - within_b / m**2
    return _tested(energies, slack=1e-12 * float(distances.mean()))


def classifier_test(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m e"], seed: int = 0, permutations: int = 1000, paired: bool = False
) -> TwoSample:
    """Classifier two-sample test, Lopez-Paz and Oquab 2017: how well a classifier tells the samples apart.

    The statistic is the accuracy on held-out images, 0.5 where nothing tells the samples apart: a linear classifier
    (least squares with a ridge penalty, on features of unit variance) is fitted to four fifths of the images and judged
    on the last fifth, in turn; both samples weigh alike. The p-value is exact: the classifier is fitted again for every
    permutation of the labels, in closed form. `paired` is as in `energy_test`, and the mean of a pair is subtracted
    from both of its images, which are held out together: the classifier sees only how they differ.
    Raises `HawkError` for fewer than `FOLDS` images, other widths, unequal numbers of paired rows, or features that are
    not finite.
    """
    a, b = _pair("the classifier test", a, b, least=FOLDS)
    n, m = len(a), len(b)
    pairs = _pairs(a, b, paired)
    folds = _folds(n, m, paired, seed)
    first = torch.arange(n + m) < n
    # Labels move within pairs or folds: each fold keeps its numbers of both labels, and is judged by as even a fit.
    labels = torch.cat([first[None], _shuffled(first, pairs if paired else folds, permutations, seed)])
    middle = (a + b) / 2 if paired else torch.zeros_like(a[:1])
    scores = _held_out_scores(torch.cat([a - middle, b - middle]), labels.double().T * 2 - 1, folds) - (n - m) / (n + m)
    right = (torch.where(scores.abs() < 1e-9, 0, scores.sign()) * torch.where(labels.T, 1, -1) + 1) / 2
    accuracies = 0.5 * ((right * labels.T).sum(0) / n + (right * ~labels.T).sum(0) / m)
    return _tested(accuracies, slack=1e-12)


# --- parts of the metrics


def _checked(metric: str, features: Float[Tensor, "n d"], least: int) -> Float[Tensor, "n d"]:
    """Features in float64 on the CPU. Raises `HawkError` for fewer than `least` rows or numbers that are not finite."""
    if len(features) < least:
        raise HawkError(f"{metric} needs at least {least} images of each kind, not {len(features)}: draw more images")
    if not bool(features.isfinite().all()):
        raise HawkError(f"{metric} needs finite features: a picture's features are not, so its weights are damaged")
    return features.detach().to("cpu", torch.float64)


def _pair(
    metric: str, first: Float[Tensor, "n d"], second: Float[Tensor, "m e"], least: int
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Both samples, checked, and of one width."""
    if first.shape[1] != second.shape[1]:
        raise HawkError(
            f"{metric} needs features of one extractor, not {first.shape[1]} and {second.shape[1]} numbers an image"
        )
    return _checked(metric, first, least), _checked(metric, second, least)


def _unit(metric: str, features: Float[Tensor, "n d"], least: int) -> Float[Tensor, "n d"]:
    """Features of length 1."""
    features = _checked(metric, features, least)
    lengths = features.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise HawkError(f"{metric} needs features that are not all zero: cosines with such an image are undefined")
    return features / lengths


def _covariance_root(features: Float[Tensor, "n d"]) -> Float[Tensor, "r d"]:
    """A matrix R with `R^T R` the covariance of the rows, of at most d rows."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred


def _distances(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Iterator[tuple[slice, Float[Tensor, "rows m"]]]:
    """Euclidean distances from the rows of a to those of b, some rows of a at a time."""
    for start in range(0, len(a), BLOCK):
        rows = slice(start, min(start + BLOCK, len(a)))
        yield rows, torch.cdist(a[rows], b)


def _all_distances(features: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Euclidean distances between all rows, exactly symmetric, and exactly 0 between equal rows."""
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")  # 0 for equal rows
    return ((distances + distances.T) / 2).fill_diagonal_(0)


def _radii(features: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """The distance of every row to its k-th nearest other row."""
    radii = []
    for rows, distances in _distances(features, features):
        distances[:, rows].fill_diagonal_(torch.inf)
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def _share_inside(points: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], k: int) -> float:
    """The share of points that lie in the ball of at least one centre, which reaches to its k-th nearest centre."""
    radii = _radii(centres, k)
    return sum(int((distances <= radii).any(dim=1).sum()) for _, distances in _distances(points, centres)) / len(points)


def _pairs(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], paired: bool) -> Int[Tensor, " rows"]:
    """For every row of both samples the group that its label may move in: its pair, or all rows."""
    if not paired:
        return torch.zeros(len(a) + len(b), dtype=torch.long)
    if len(a) != len(b):
        raise HawkError(f"paired samples need as many images of each, not {len(a)} and {len(b)}")
    return torch.arange(len(a)).repeat(2)


def _folds(n: int, m: int, paired: bool, seed: int) -> Int[Tensor, " rows"]:
    """A random fold for every row of both samples; each sample is spread evenly, and a pair lies in one fold."""
    random = torch.Generator().manual_seed(seed)
    first = torch.randperm(n, generator=random) % FOLDS
    return torch.cat([first, first if paired else torch.randperm(m, generator=random) % FOLDS])


def _shuffled(
    labels: Bool[Tensor, " rows"], groups: Int[Tensor, " rows"], permutations: int, seed: int
) -> Bool[Tensor, "permutations rows"]:
    """The labels in random orders; a label moves within its group only."""
    random = torch.Generator().manual_seed(seed)
    keys = torch.rand(permutations, len(labels), generator=random, dtype=torch.float64)
    shuffled = torch.empty(permutations, len(labels), dtype=torch.bool)
    # Sorting by group and key lists the rows of every group in random order; by group alone, in their own order.
    shuffled[:, groups.argsort(stable=True)] = labels[(keys + groups).argsort(dim=1)]
    return shuffled


def _tested(statistics: Float[Tensor, " permutations_and_1"], slack: float) -> TwoSample:
    """The test whose statistic comes first, before those of its permutations; larger ones speak against equality.

    Statistics that differ by at most `slack`, by rounding, count as equal. Phipson and Smyth 2010.
    """
    observed, permuted = statistics[0], statistics[1:]
    reached = int((permuted >= observed - slack).sum())
    return TwoSample(float(observed), (1 + reached) / (1 + len(permuted)))


def _held_out_scores(
    features: Float[Tensor, "rows d"], targets: Float[Tensor, "rows fits"], folds: Int[Tensor, " rows"]
) -> Float[Tensor, "rows fits"]:
    """What ridge regression predicts for every row when it is fitted to the other folds; one fit for each target.

    The fit to all rows is `H y`, with an intercept and kernel `X X^T / d` of standardised columns. The residuals of a
    fold under the fit to the others are `(I - H_FF)^-1 (y - H y)_F`, exactly.
    """
    spread = features.std(dim=0, correction=0)
    columns = (features - features.mean(0))[:, spread > 0] / spread[spread > 0]
    kernel = columns @ columns.T / max(1, columns.shape[1])
    rows = len(features)
    ridge = torch.linalg.solve(kernel + RIDGE * torch.eye(rows, dtype=torch.float64), kernel)
    hat = ridge + 1 / rows
    residuals = targets - hat @ targets
    scores = torch.empty_like(targets)
    for fold in range(FOLDS):
        own = (folds == fold).nonzero().flatten()
        inverse = torch.eye(len(own), dtype=torch.float64) - hat[own][:, own]
        scores[own] = targets[own] - torch.linalg.solve(inverse, residuals[own])
    return scores
