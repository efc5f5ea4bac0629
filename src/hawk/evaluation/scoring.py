"""The figures of an evaluation: fidelity and diversity of the pictures that each method drew, with intervals.

All metrics read the same features of the same pictures, which are kept in the job's folder. Confidence
intervals are taken over prompts, since the images of one prompt are alike: all of them come into a resample together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from hawk.errors import HawkError
from hawk.evaluation import metrics
from hawk.evaluation.features import FeatureExtractor, read_picture
from hawk.evaluation.intervals import warnings_for
from hawk.evaluation.run import CONTROL, Drawn, EvalJob
from hawk.files import save_tensors
from hawk.intervals import Interval, bootstrap

TOGETHER = 32
"""Pictures whose features are computed together."""
FEW_PROMPTS = 10
"""With fewer prompts, an interval over prompts says little."""

ByPrompt = Float[Tensor, "prompts images d"]
OnStep = Callable[[str], None]
"""Called with the name of each step before it begins."""


@dataclass(frozen=True)
class PairMetric:
    """A metric of drawn pictures beside others, which are real pictures or those of plain AR.

    `closer` says which values mean that the two are alike; the value lies within `bounds`.
    """

    title: str
    meaning: str
    closer: Literal["lower", "higher"]
    score: Callable[[Tensor, Tensor], float]
    bounds: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class OwnMetric:
    """A metric of drawn pictures alone, `[prompts, images, d]`."""

    title: str
    meaning: str
    score: Callable[[Tensor], float]


ABOVE_ZERO = (0.0, float("inf"))
PAIR_METRICS = {
    "frechet": PairMetric("Fréchet distance", "lower is closer", "lower", metrics.frechet_distance, ABOVE_ZERO),
    "precision": PairMetric(
        "Precision",
        "share of drawn images near real ones",
        "higher",
        lambda real, drawn: metrics.precision_recall(real, drawn).precision,
    ),
    "recall": PairMetric(
        "Recall",
        "share of real images near drawn ones",
        "higher",
        lambda real, drawn: metrics.precision_recall(real, drawn).recall,
    ),
    "density": PairMetric(
        "Density",
        "how densely real images surround drawn ones; 1 is as dense as real ones",
        "higher",
        lambda real, drawn: metrics.density_coverage(real, drawn).density,
        ABOVE_ZERO,
    ),
    "coverage": PairMetric(
        "Coverage",
        "share of real images that have a drawn one near",
        "higher",
        lambda real, drawn: metrics.density_coverage(real, drawn).coverage,
    ),
    "nearest": PairMetric(
        "Distance to the nearest reference",
        "median, in medians of the distance between references; far below 1 where images are memorised",
        "higher",
        lambda real, drawn: metrics.nearest_real(real, drawn).ratio,
        ABOVE_ZERO,
    ),
    "copied": PairMetric(
        "As near as copies",
        "share of drawn images as near to a reference as the nearest 1% of references to each other",
        "lower",
        lambda real, drawn: metrics.nearest_real(real, drawn).copied,
    ),
}
"""Metrics of a method's pictures beside the references, or beside those of plain AR."""
OF_REFERENCES = ("nearest", "copied")
"""The metrics that mean nothing without references."""
OWN_METRICS = {
    "vendi": OwnMetric(
        "Vendi score", "effective number of different images", lambda x: metrics.vendi_score(x.flatten(0, 1))
    ),
    "diversity": OwnMetric(
        "Diversity of a prompt",
        "mean of 1 - cosine over pairs of images of one prompt",
        lambda x: metrics.pairwise_diversity(list(x)),
    ),
}
"""Metrics of a method's pictures alone."""
LEVELS = {
    "tokens": "tokens equal to plain AR's",
    "laws": "exact laws on tiny vocabularies",
    "tests": "two-sample tests of the images",
}
"""The levels of losslessness, which `--metrics` names like metrics."""
FAITHFULNESS = "faithfulness"
"""The metric that compares pictures with what their prompts ask for."""
SCENES = "hawk-scenes"
"""The name of the model that draws what `FAITHFULNESS` knows: the bundled one."""
NAMES = (*PAIR_METRICS, *OWN_METRICS, FAITHFULNESS, *LEVELS)
BY_LARGE_NETWORKS = ("clip", "hpsv2", "imagereward", "lpips")
"""The metrics of `hawk.evaluation.learned`, which are computed only where they are asked for by name."""


def metrics_of(model: str) -> tuple[str, ...]:
    """The metrics that are computed where none are named, of the images of the model of that name."""
    return tuple(name for name in NAMES if name != FAITHFULNESS or model == SCENES)


def metrics_named(names: str | None) -> tuple[str, ...]:
    """The metrics of names with commas between them; None names all but
    those by large networks. `HawkError` for an unknown name."""
    if names is None:
        return NAMES
    known = (*NAMES, *BY_LARGE_NETWORKS)
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in chosen:
        if name not in known:
            raise HawkError(f"unknown metric {name!r}: choose from {', '.join(known)}")
    if not chosen:
        raise HawkError(f"no metric given: choose from {', '.join(known)}")
    return chosen


@dataclass(frozen=True)
class Figure:
    """A metric of one method, with the ends of its 95% interval.

    Attributes:
        against: "references" or "ar", what a `PairMetric` compares with; "" for an `OwnMetric`.
        inside: whether the value lies inside what chance alone does to plain AR; None for `ar` and `ar~` themselves.
        warning: why the value says little; None where nothing is wrong.
    """

    metric: str
    title: str
    meaning: str
    against: str
    method: str
    value: float
    low: float
    high: float
    images: int
    inside: bool | None = None
    warning: str | None = None


@dataclass(frozen=True)
class ReferenceSample:
    """The features of the reference pictures.

    `paired` says that row i is the reference of prompt i: then a resample holds a prompt with its own reference.
    """

    features: Float[Tensor, "n d"]
    paired: bool = False


@dataclass(frozen=True)
class Band:
    """The AR-AR interval of a metric: what plain AR gives with one choice of seeds or another."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value lies inside."""
        return self.low <= value <= self.high


def features_of(drawn: Drawn, job: EvalJob, extractor: FeatureExtractor, out: Path) -> ByPrompt:
    """The features of a method's pictures; they are kept in the job's folder and computed once."""
    mark = hashlib.sha256(drawn.tokens.to(torch.int32).numpy().tobytes()).hexdigest()
    path = out / "features" / extractor.name / f"{drawn.method}.safetensors"
    flat = kept_features(path, mark, lambda: extracted(drawn.paths, extractor))
    return flat.double().unflatten(0, (len(job.prompts.items), job.images))


def kept_features(path: Path, mark: str, compute: Callable[[], Tensor]) -> Float[Tensor, "n d"]:
    """The features in a file that was written with the same mark; else they are computed and written."""
    from safetensors import SafetensorError, safe_open

    if path.is_file():
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("mark") == mark:
                    kept: Tensor = file.get_tensor("features")
                    return kept
        except (SafetensorError, OSError):
            pass  # a damaged file of what can be computed again
    found = compute().float().cpu().contiguous()
    save_tensors(path, {"features": found}, {"mark": mark})
    return found


def extracted(paths: Sequence[Path], extractor: FeatureExtractor, size: tuple[int, int] | None = None) -> Tensor:
    """The features of picture files, all of one size; `size` (height, width) crops each to it first.

    Raises `HawkError` for a file that is no picture, and for pictures of different sizes.
    """
    found = []
    first: tuple[int, ...] | None = None
    for start in range(0, len(paths), TOGETHER):
        pictures = []
        for path in paths[start : start + TOGETHER]:
            pixels = read_picture(path)
            if size is not None:
                pixels = cropped(pixels, size)
            first = first or tuple(pixels.shape)
            if tuple(pixels.shape) != first:
                raise HawkError(
                    f"the pictures beside {paths[0].name} ({first[2]}x{first[1]}) differ in size: {path} has "
                    f"{pixels.shape[2]}x{pixels.shape[1]}; give pictures of one size, or add --crop-references"
                )
            pictures.append(pixels)
        with torch.no_grad():
            found.append(extractor.features(torch.stack(pictures)))
    return torch.cat(found)


def cropped(pixels: UInt8[Tensor, "3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "3 height width"]:
    """The middle of a picture in the shape of `size` (height, width), resized to it (bicubic, antialiased)."""
    height, width = size
    scale = min(pixels.shape[1] / height, pixels.shape[2] / width)
    tall, wide = max(round(height * scale), 1), max(round(width * scale), 1)
    top, left = (pixels.shape[1] - tall) // 2, (pixels.shape[2] - wide) // 2
    middle = pixels[None, :, top : top + tall, left : left + wide].float()
    resized = interpolate(middle, size, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def reference_features(
    paths: Sequence[Path], extractor: FeatureExtractor, out: Path, crop: tuple[int, int] | None
) -> Float[Tensor, "n d"]:
    """The features of the reference pictures, kept in the job's folder; `crop` as in `extracted`."""
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    mark = hashlib.sha256(repr((facts, crop)).encode()).hexdigest()
    kept = out / "features" / extractor.name / "references.safetensors"
    return kept_features(kept, mark, lambda: extracted(paths, extractor, crop)).double()


def rows_of(count: int) -> Float[Tensor, "count 1"]:
    """Row numbers as a sample, by which `bootstrap` draws prompts with all their images."""
    return torch.arange(count, dtype=torch.float64)[:, None]


def over_prompts(
    score: Callable[[Tensor], float],
    features: Tensor,
    resamples: int,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """A statistic of features by prompt, `[prompts, ...]`, with its interval over prompts.

    The ends are not finite where there are too few prompts for an interval. Raises `HawkError` where there are too few
    for the statistic itself.
    """
    value = float(score(features))
    try:
        return bootstrap(
            lambda rows: score(features[rows[:, 0].long()]), rows_of(len(features)), resamples=resamples, bounds=bounds
        )
    except HawkError:
        return Interval(value, float("nan"), float("nan"))


def figures(
    names: Sequence[str],
    drawn: Mapping[str, ByPrompt],
    references: ReferenceSample | None,
    resamples: int,
    on_step: OnStep | None = None,
) -> tuple[list[Figure], list[str]]:
    """The chosen metrics of all methods, and a line for each metric that was left out because images are too few.

    Metrics of pairs compare with the references, or with plain AR's images where there are none.
    """
    found: list[Figure] = []
    left_out: list[str] = []
    for name in names:
        if name not in PAIR_METRICS and name not in OWN_METRICS:
            continue
        if name in OF_REFERENCES and references is None:
            continue
        rows = []
        for method, features in drawn.items():
            if name in PAIR_METRICS and references is None and method == "ar":
                continue
            if on_step is not None:
                on_step(f"{name} of {method}")
            try:
                if name in OWN_METRICS:
                    rows.append(own_figure(name, method, features, resamples))
                else:
                    rows.append(pair_figure(name, method, features, drawn["ar"], references, resamples))
            except HawkError as error:
                left_out.append(f"{(PAIR_METRICS | OWN_METRICS)[name].title} was left out: {error}")
        found += judged(rows)
    return found, list(dict.fromkeys(left_out))


def own_figure(name: str, method: str, features: ByPrompt, resamples: int) -> Figure:
    """A metric of a method's pictures alone; `HawkError` where there are too few images for it."""
    metric = OWN_METRICS[name]
    interval = over_prompts(metric.score, features, resamples, (0.0, float("inf")))
    return figure_of(name, metric, "", method, interval, features)


def pair_figure(
    name: str, method: str, features: ByPrompt, plain: ByPrompt, references: ReferenceSample | None, resamples: int
) -> Figure:
    """A metric of a method's pictures beside the references or plain AR's; `HawkError` where there are too few."""
    metric = PAIR_METRICS[name]
    if references is None:
        both = torch.stack((plain, features), dim=1)
        interval = over_prompts(
            lambda pairs: metric.score(pairs[:, 0].flatten(0, 1), pairs[:, 1].flatten(0, 1)),
            both,
            resamples,
            metric.bounds,
        )
        return figure_of(name, metric, "ar", method, interval, features)
    real = references.features
    if references.paired:
        interval = over_prompts(
            lambda rows: metric.score(real[rows[:, 0]], features[rows[:, 0]].flatten(0, 1)),
            torch.arange(len(real))[:, None],
            resamples,
            metric.bounds,
        )
        return figure_of(name, metric, "references", method, interval, features, len(real))
    value = metric.score(real, features.flatten(0, 1))
    try:
        interval = bootstrap(
            lambda a, b: metric.score(real[a[:, 0].long()], features[b[:, 0].long()].flatten(0, 1)),
            rows_of(len(real)),
            rows_of(len(features)),
            resamples=resamples,
            bounds=metric.bounds,
        )
    except HawkError:
        interval = Interval(value, float("nan"), float("nan"))
    return figure_of(name, metric, "references", method, interval, features, len(real))


def figure_of(
    name: str,
    metric: PairMetric | OwnMetric,
    against: str,
    method: str,
    interval: Interval,
    features: ByPrompt,
    others: int | None = None,
) -> Figure:
    """A figure with its warning, not yet judged by the AR-AR interval; `others` is the number of references."""
    images = features.shape[0] * features.shape[1]
    # Pairwise diversity rests on prompts, the other metrics on images.
    fewest = features.shape[0] if name == "diversity" else min(images, others or images)
    warning = warnings_for(name, fewest, features.shape[-1])
    if not isfinite(interval.low):
        warning = "an interval needs more prompts: the value says little"
    ends = (interval.value, interval.low, interval.high)
    return Figure(name, metric.title, metric.meaning, against, method, *ends, images, warning=warning)


def band_of(rows: Sequence[Figure]) -> Band | None:
    """The AR-AR interval of a metric, from the figures of `ar` and `ar~`; None without one of them or its interval.

    Beside plain AR's own pictures it begins at the control's interval and is open towards closer values; else it is
    the smallest interval that holds the intervals of both.
    """
    by = {row.method: row for row in rows}
    control, plain = by.get(CONTROL), by.get("ar")
    if control is None:
        return None
    if not all(isfinite(row.low) and isfinite(row.high) for row in (control, plain) if row is not None):
        return None
    if control.against == "ar":
        if PAIR_METRICS[control.metric].closer == "lower":
            return Band(float("-inf"), max(control.high, control.value))
        return Band(min(control.low, control.value), float("inf"))
    if plain is None:
        return None
    ends = [end for row in (control, plain) for end in (row.low, row.value, row.high)]
    return Band(min(ends), max(ends))


def bands_of(found: Sequence[Figure]) -> dict[str, Band]:
    """The AR-AR interval of every metric that has one."""
    names = dict.fromkeys(row.metric for row in found)
    bands = {name: band_of([row for row in found if row.metric == name]) for name in names}
    return {name: band for name, band in bands.items() if band is not None}


def judged(rows: Sequence[Figure]) -> list[Figure]:
    """The figures of one metric, each with whether it lies inside the AR-AR interval."""
    band = band_of(rows)
    if band is None:
        return list(rows)
    return [row if row.method in ("ar", CONTROL) else replace(row, inside=band.holds(row.value)) for row in rows]
