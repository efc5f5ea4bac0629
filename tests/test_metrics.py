"""Metrics on features against their definitions, written out in numpy and plain Python; intervals; warnings.

Each mutant is a metric with one wrong expression: the comparison with the definition must fail for it.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hawk import intervals
from hawk.errors import HawkError
from hawk.evaluation import metrics
from hawk.evaluation.intervals import FEWEST_IMAGES, warnings_for
from hawk.evaluation.metrics import (
    METRICS,
    classifier_test,
    density_coverage,
    energy_test,
    frechet_distance,
    pairwise_diversity,
    precision_recall,
    prompt_diversities,
    vendi_score,
)
from hawk.intervals import Interval, bootstrap
from mutant import Mutant


def features(images: int, width: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Random features, correlated across columns; `shift` moves their mean."""
    random = torch.Generator().manual_seed(seed)
    mixed = (
        torch.randn(images, width, generator=random, dtype=torch.float64)
        @ torch.linspace(-1, 1, width**2).reshape(width, width).double()
    )
    return mixed + torch.randn(images, width, generator=random, dtype=torch.float64) + shift


SAMPLES = {
    "more images than columns": (features(30, 5, 1), features(24, 5, 2, 0.4)),
    "fewer images than columns": (features(12, 20, 3), features(15, 20, 4, 0.2)),
    "one more than k": (features(6, 3, 5), features(6, 3, 6)),
}


# --- the definitions


def distance(x, y) -> float:
    return math.sqrt(sum((p - q) ** 2 for p, q in zip(x, y, strict=True)))


def frechet_by_definition(real, drawn) -> float:
    """The eigenvalues of the covariances' product are those of the matrix whose root the formula takes."""
    a, b = np.cov(real.T), np.cov(drawn.T)
    root = np.sqrt(np.clip(np.linalg.eigvals(a @ b).real, 0, None)).sum()
    return float(((real.mean(0) - drawn.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root)


def radii(points, k: int) -> list[float]:
    return [sorted(distance(x, y) for j, y in enumerate(points) if j != i)[k - 1] for i, x in enumerate(points)]


def precision_by_definition(real, drawn, k: int = 3) -> float:
    balls = list(zip(real, radii(real, k), strict=True))
    inside = [any(distance(y, x) <= radius for x, radius in balls) for y in drawn]
    return sum(inside) / len(drawn)


def density_by_definition(real, drawn, k: int = 5) -> float:
    balls = zip(real, radii(real, k), strict=True)
    inside = sum(distance(x, y) <= radius for x, radius in balls for y in drawn)
    return inside / (k * len(drawn))


def coverage_by_definition(real, drawn, k: int = 5) -> float:
    balls = zip(real, radii(real, k), strict=True)
    return sum(any(distance(x, y) <= radius for y in drawn) for x, radius in balls) / len(real)


def nearest_by_definition(real, drawn) -> tuple[np.ndarray, np.ndarray]:
    """The distances to the nearest real image: of drawn images, and of real ones to another."""
    return np.array([min(distance(y, x) for x in real) for y in drawn]), np.array(radii(real, 1))


def ratio_by_definition(real, drawn) -> float:
    nearest, between = nearest_by_definition(real, drawn)
    return float(np.median(nearest) / np.median(between))


def copied_by_definition(real, drawn) -> float:
    nearest, between = nearest_by_definition(real, drawn)
    return float((nearest <= np.quantile(between, 0.01)).mean())


def cosine(x, y) -> float:
    return float(np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))


def vendi_by_definition(points) -> float:
    kernel = np.array([[cosine(x, y) for y in points] for x in points]) / len(points)
    eigenvalues = np.linalg.eigvals(kernel).real
    return math.exp(-sum(value * math.log(value) for value in eigenvalues if value > 1e-12))


def diversity_by_definition(prompts) -> float:
    means = []
    for points in prompts:
        pairs = [(x, y) for i, x in enumerate(points) for y in points[:i]]
        means.append(sum(1 - cosine(x, y) for x, y in pairs) / len(pairs))
    return sum(means) / len(means)


def energy_by_definition(a, b) -> float:
    def mean(first, second) -> float:
        return sum(distance(x, y) for x in first for y in second) / (len(first) * len(second))

    return 2 * mean(a, b) - mean(a, a) - mean(b, b)


def accuracy_by_definition(a, b) -> float:
    """The classifier of the test, fitted anew for each fold: ridge regression with an intercept, in primal form."""
    folds = metrics._folds(len(a), len(b), False, 0).numpy()
    points = np.concatenate([a, b])
    points = (points - points.mean(0)) / points.std(0) / math.sqrt(points.shape[1])
    targets = np.array([1.0] * len(a) + [-1.0] * len(b))
    right = np.zeros(len(points))
    for fold in range(metrics.FOLDS):
        x, y = points[folds != fold], targets[folds != fold]
        gram = (x - x.mean(0)).T @ (x - x.mean(0)) + metrics.RIDGE * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, (x - x.mean(0)).T @ (y - y.mean()))
        scores = (points[folds == fold] - x.mean(0)) @ weights + y.mean() - (len(a) - len(b)) / len(points)
        right[folds == fold] = scores * targets[folds == fold] > 0
    return 0.5 * (right[: len(a)].mean() + right[len(a) :].mean())


def with_copies(real, drawn):
    """Drawn images, of which the first three differ very little from real ones; tensors or arrays."""
    join = torch.cat if isinstance(real, torch.Tensor) else np.concatenate
    return join([real[:3] + 1e-3, drawn[3:]])


def by_prompt(real, drawn) -> list:
    return [real[:3], real[3:], drawn]


Compared = Callable[[torch.Tensor, torch.Tensor], float]
COMPARED: dict[str, tuple[Compared, Compared]] = {
    # `metrics.` and not the names that are imported above: a mutant is put in the place of the module's function
    "frechet": (lambda r, d: metrics.frechet_distance(r, d), frechet_by_definition),
    "precision": (lambda r, d: metrics.precision_recall(r, d).precision, precision_by_definition),
    "recall": (lambda r, d: metrics.precision_recall(r, d).recall, lambda r, d: precision_by_definition(d, r)),
    "density": (lambda r, d: metrics.density_coverage(r, d).density, density_by_definition),
    "coverage": (lambda r, d: metrics.density_coverage(r, d).coverage, coverage_by_definition),
    "nearest": (lambda r, d: metrics.nearest_real(r, d).ratio, ratio_by_definition),
    "copied": (
        lambda r, d: metrics.nearest_real(r, with_copies(r, d)).copied,
        lambda r, d: copied_by_definition(r, with_copies(r, d)),
    ),
    "vendi": (lambda r, d: metrics.vendi_score(r), lambda r, d: vendi_by_definition(r)),
    "diversity": (
        lambda r, d: metrics.pairwise_diversity(by_prompt(r, d)),
        lambda r, d: diversity_by_definition(by_prompt(r, d)),
    ),
    "energy": (lambda r, d: metrics.energy_test(r, d, permutations=3).statistic, energy_by_definition),
    "classifier": (lambda r, d: metrics.classifier_test(r, d, permutations=3).statistic, accuracy_by_definition),
}
"""Every metric, and its definition on arrays of numpy."""


def gap(name: str, sample: str) -> float:
    """The difference between a metric and its definition on a sample, relative to values above 1."""
    real, drawn = SAMPLES[sample]
    metric, definition = COMPARED[name]
    expected = definition(real.numpy(), drawn.numpy())
    return abs(metric(real, drawn) - expected) / max(1.0, abs(expected))


def test_every_metric_is_compared():
    assert COMPARED.keys() == set(METRICS)


@pytest.mark.parametrize("name", COMPARED)
def test_a_metric_is_what_its_definition_says(name):
    # numpy's eigenvalues of a singular product of covariances are right to half the digits only
    assert max(gap(name, sample) for sample in SAMPLES) < (1e-6 if name == "frechet" else 1e-12)


MUTANTS = {
    "frechet": [
        Mutant(metrics, "_covariance_root", "(len(features) - 1)", "len(features)", ()),
        Mutant(metrics, "frechet_distance", "- 2 * overlap", "- overlap", ()),
        Mutant(metrics, "frechet_distance", "shift + first", "0 * shift + first", ()),
    ],
    "precision": [
        Mutant(metrics, "precision_recall", "_share_inside(drawn, real, k)", "_share_inside(drawn, real, k - 1)", ()),
        Mutant(metrics, "_radii", ".fill_diagonal_(torch.inf)", ".diagonal()", ()),  # an image is its own neighbour
    ],
    "recall": [
        Mutant(metrics, "precision_recall", "_share_inside(real, drawn, k)", "_share_inside(drawn, real, k)", ())
    ],
    "density": [Mutant(metrics, "density_coverage", "(k * len(drawn))", "(k * len(real))", ())],
    "coverage": [Mutant(metrics, "density_coverage", "held.any(dim=1)", "held.any(dim=0)", ())],
    "nearest": [
        Mutant(metrics, "nearest_real", "_radii(real, 1)", "_radii(real, 2)", ()),
        Mutant(metrics, "nearest_real", "_distances(drawn, real)", "_distances(real, drawn)", ()),
    ],
    "copied": [Mutant(metrics, "nearest_real", "_distances(drawn, real)", "_distances(drawn, drawn)", ())],
    "vendi": [
        Mutant(metrics, "vendi_score", "kernel / n", "kernel / (n - 1)", ()),
        Mutant(metrics, "_unit", "features / lengths", "features", ()),
    ],
    "diversity": [Mutant(metrics, "prompt_diversities", "n * (n - 1)", "n * n", ())],
    "energy": [Mutant(metrics, "energy_test", "2 * between", "between", ())],
    "classifier": [
        Mutant(metrics, "_held_out_scores", "inverse, residuals[own])", "inverse, inverse @ residuals[own])", ()),
        Mutant(metrics, "_held_out_scores", "ridge + 1 / rows", "ridge", ()),
    ],
}


@pytest.mark.parametrize(("name", "mutant"), [(name, mutant) for name, found in MUTANTS.items() for mutant in found])
def test_a_mutated_formula_is_seen(name, mutant, monkeypatch):
    mutant.install(monkeypatch)
    assert max(gap(name, sample) for sample in SAMPLES) > 1e-4


# --- values known beforehand


def test_figures_of_plain_cases():
    points = features(40, 4, 1)
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(points, points + 3) == pytest.approx(4 * 9)
    assert precision_recall(points, points) == metrics.PrecisionRecall(1.0, 1.0)
    assert precision_recall(points, points + 1e6) == metrics.PrecisionRecall(0.0, 0.0)
    assert density_coverage(points, points).coverage == 1
    assert vendi_score(torch.eye(7)) == pytest.approx(7)
    assert vendi_score(torch.ones(7, 3)) == pytest.approx(1)
    assert pairwise_diversity([torch.eye(3), torch.ones(4, 3)]) == pytest.approx(0.5)
    assert prompt_diversities([]).shape == (0,)


def test_distances_do_not_depend_on_the_block(monkeypatch):
    real, drawn = SAMPLES["more images than columns"]
    whole = precision_recall(real, drawn), density_coverage(real, drawn)
    monkeypatch.setattr(metrics, "BLOCK", 7)
    assert (precision_recall(real, drawn), density_coverage(real, drawn)) == whole


# --- two-sample tests


Test = Callable[..., metrics.TwoSample]
TESTS = [energy_test, classifier_test]


def p_values(test: Test, shift: float, paired: bool, prompts: float, runs: int = 80) -> list[float]:
    """The p-values of samples of 16 images, whose features vary by `prompts` between prompts and by 1 within one."""
    random = torch.Generator().manual_seed(9)
    found = []
    for run in range(runs):
        of_prompt = prompts * torch.randn(16, 3, generator=random)
        a, b = (of_prompt + torch.randn(16, 3, generator=random) for _ in range(2))
        found.append(test(a, b + shift, permutations=40, seed=run, paired=paired).p_value)
    return found


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("paired", [False, True])
def test_equal_samples_are_rejected_as_often_as_the_level_says(test, paired):
    found = p_values(test, 0.0, paired, prompts=2.0 if paired else 0.0)
    assert sum(p <= 0.1 for p in found) / len(found) <= 0.2  # three standard errors over 0.1
    assert sum(p <= 0.5 for p in found) / len(found) <= 0.67


@pytest.mark.parametrize("test", TESTS)
def test_shifted_samples_are_found_out_and_pairs_find_out_more(test):
    def found_out(shift: float, paired: bool, prompts: float) -> int:
        return sum(p <= 0.05 for p in p_values(test, shift, paired, prompts, runs=20))

    assert found_out(1.5, paired=True, prompts=6.0) >= 16
    assert found_out(1.5, paired=False, prompts=6.0) <= 5
    assert found_out(1.5, paired=False, prompts=0.0) >= 17


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("paired", [False, True])
def test_a_test_is_deterministic_and_equal_images_are_no_evidence(test, paired):
    a, b = features(20, 6, 1), features(20, 6, 2, 0.5)
    assert test(a, b, seed=3, paired=paired) == test(a, b, seed=3, paired=paired)
    same = test(a, a.clone(), paired=True)
    assert same.p_value == 1
    assert same.statistic == pytest.approx(0.5 if test is classifier_test else 0, abs=1e-9)


def test_labels_move_within_their_groups_only():
    labels, groups = torch.tensor([True, True, False, False, True, False]), torch.tensor([0, 1, 0, 1, 2, 2])
    shuffled = metrics._shuffled(labels, groups, 200, 0)
    for group in range(3):
        assert (shuffled[:, groups == group].sum(1) == labels[groups == group].sum()).all()
    assert shuffled[:, 0].double().mean() == pytest.approx(0.5, abs=0.15)


# --- refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(torch.ones(1, 3), torch.ones(5, 3)), "needs at least 2 images of each kind, not 1"),
        (lambda: frechet_distance(torch.ones(4, 3), torch.ones(4, 2)), "features of one extractor, not 3 and 2"),
        (lambda: frechet_distance(torch.full((4, 3), torch.nan), torch.ones(4, 3)), "needs finite features"),
        (lambda: precision_recall(torch.ones(3, 3), torch.ones(9, 3)), "needs at least 4 images of each kind, not 3"),
        (lambda: density_coverage(torch.ones(9, 3), torch.ones(5, 3)), "needs at least 6 images of each kind, not 5"),
        (lambda: vendi_score(torch.zeros(4, 3)), "features that are not all zero"),
        (lambda: pairwise_diversity([]), "at least one prompt with two images"),
        (lambda: pairwise_diversity([torch.ones(1, 3)]), "needs at least 2 images of each kind, not 1"),
        (lambda: energy_test(torch.ones(4, 3), torch.ones(5, 3), paired=True), "as many images of each, not 4 and 5"),
        (lambda: classifier_test(torch.ones(4, 3), torch.ones(5, 3)), "needs at least 5 images of each kind, not 4"),
        (lambda: bootstrap(vendi_score, torch.ones(1, 3)), "an interval needs at least 2 images, not 1"),
        (lambda: bootstrap(frechet_distance, torch.ones(2, 3), torch.ones(8, 3)), "too few images for an interval"),
        (lambda: bootstrap(vendi_score, torch.ones(4, 3), level=1.0), "choose a level in"),
        (lambda: warnings_for("fid", 10, 10), "unknown metric 'fid': choose one of frechet, precision"),
    ],
)
def test_what_cannot_be_measured_is_one_line(call, message):
    with pytest.raises(HawkError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# --- intervals and warnings


def mean(sample: torch.Tensor) -> float:
    return float(sample.mean())


def test_intervals_of_a_mean_hold_the_truth_as_often_as_they_say():
    random = torch.Generator().manual_seed(2)
    found = [bootstrap(mean, torch.randn(30, 1, generator=random), resamples=60, seed=run) for run in range(100)]
    held = sum(interval.low <= 0 <= interval.high for interval in found) / len(found)
    assert 0.87 <= held <= 1
    assert np.mean([i.high - i.low for i in found]) == pytest.approx(2 * 1.96 / math.sqrt(30), rel=0.1)


@pytest.mark.parametrize(
    "statistic",
    [frechet_distance, lambda a, b: precision_recall(a, b).precision, lambda a, b: vendi_score(b)],
    ids=["frechet", "precision", "vendi"],
)
def test_intervals_are_as_wide_as_the_figures_of_fresh_samples_spread(statistic):
    """The statistics look at pairs of images: resampling with copies would move and narrow these intervals."""
    random = torch.Generator().manual_seed(3)

    def samples() -> list[torch.Tensor]:
        return [torch.randn(40, 4, generator=random, dtype=torch.float64) + shift for shift in (0.0, 0.5)]

    spread = np.std([statistic(*samples()) for _ in range(100)])
    found = [bootstrap(statistic, *samples(), resamples=50, seed=run) for run in range(8)]
    assert np.mean([interval.high - interval.low for interval in found]) / (2 * 1.96) == pytest.approx(spread, rel=0.35)
    assert all(interval.low <= interval.value <= interval.high for interval in found)


def test_an_interval_is_deterministic_and_cut_at_its_bounds():
    sample = torch.rand(21, 1)
    assert bootstrap(mean, sample, seed=1) == bootstrap(mean, sample, seed=1)
    assert bootstrap(mean, sample, seed=1) != bootstrap(mean, sample, seed=2)
    cut = bootstrap(mean, sample, bounds=(mean(sample) - 1e-3, mean(sample) + 1e-3))
    assert cut == Interval(mean(sample), mean(sample) - 1e-3, mean(sample) + 1e-3)


def test_a_resample_holds_no_row_twice():
    random = torch.Generator().manual_seed(0)
    halves = [intervals._half(torch.arange(7), random) for _ in range(40)]
    assert {len(half) for half in halves} == {3, 4}
    assert all(len(half.unique()) == len(half) for half in halves)


def test_too_few_images_are_warned_of():
    assert {"frechet", *FEWEST_IMAGES} == set(METRICS)
    for metric in METRICS:
        fewest = FEWEST_IMAGES.get(metric, 1281)
        assert warnings_for(metric, fewest, 1280) is None
        line = warnings_for(metric, fewest - 1, 1280)
        assert line.startswith(f"{metric} from {fewest - 1} images, fewer than {fewest}: ")
        assert "\n" not in line
