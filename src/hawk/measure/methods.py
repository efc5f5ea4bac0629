"""The method suites of `hawk bench`: several methods draw the same images and are compared with plain AR.

All of it runs in one process. The methods take turns on every batch of prompts, so that a change in the machine's
speed affects all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from hawk.decoding.stats import Stats, together
from hawk.drafters.methods import METHODS, lacking, method_named
from hawk.drafters.parts import DraftParts
from hawk.errors import HawkError
from hawk.files import read_prompts
from hawk.machine import synchronize
from hawk.measure.environment import environment
from hawk.measure.prompts import BENCH_PROMPTS
from hawk.pipeline import HawkPipeline, PipelineOutput

DEPTHS = 3
"""The acceptance rate is reported at depths 1 to this one."""
OnProgress = Callable[[int, int, str], None]
"""Called after each batch with (images done, images in all, method)."""


@dataclass(frozen=True)
class TimedBatch:
    """One batch that one method drew: seconds per image, the decoder's counts, and the tokens."""

    seconds: float
    stats: Stats
    tokens: Int[Tensor, "images n"]


@dataclass(frozen=True)
class MethodRow:
    """One row of the table. Counts are means over images; times are medians over batches.

    Attributes:
        lossless: False where the method draws from another distribution than AR; its speed-up is then not comparable.
        acceptance_rate: accepted / verified at depths 1, 2, 3.
        speedup_vs_ar: AR's median seconds per image over the method's.
        identical_to_ar: share of images with the same tokens as AR's. The residual and traversal verifiers keep the
            distribution, not the tokens.
    """

    method: str
    verifier: str
    lossless: bool
    nfe: float
    accept_length: float
    acceptance_rate: list[float]
    seconds_per_image: float
    speedup_vs_ar: float
    identical_to_ar: float
    ms_per_forward: float
    nodes_per_forward: float
    accepted_by_source: dict[str, int]
    images: int


@dataclass(frozen=True)
class BenchResult:
    """All rows, AR's first, and the environment that they were measured in."""

    rows: list[MethodRow]
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The JSON document that `hawk bench` prints last."""
        return asdict(self)


SUITES = {
    "paper": ("ar", "medusa", "hawk-vertical", "hawk-paper", "hawk"),
    "peers": tuple(METHODS),
    "fair": tuple(METHODS),
}
"""The suites that compare methods, and their methods."""


def bench_methods(suite: str, methods: str | None, parts: DraftParts | None) -> tuple[list[str], dict[str, str]]:
    """The methods to measure, and those that are left out because a drafter is missing.

    Args:
        suite: the name of a suite; its methods are measured unless `methods` names others.
        methods: method names with commas between them. They are returned as given, and nothing is left out.
        parts: the model's trained drafters; None where it has none.

    Returns:
        The names of the methods to measure, and a dict from the name of each method left out to the kind of drafter
        that it lacks.

    Raises:
        HawkError: unknown suite or method.
    """
    if suite not in SUITES:
        raise HawkError(f"unknown suite {suite!r}: choose one of {', '.join(SUITES)}, scaling, steps, targets")
    if methods is not None:
        return [method_named(name.strip()).name for name in methods.split(",") if name.strip()], {}
    missing = {name: lacking(METHODS[name], parts) for name in SUITES[suite]}
    return [name for name, kind in missing.items() if not kind], {n: kind for n, kind in missing.items() if kind}


def bench_prompts(wanted: str) -> list[str]:
    """The first N built-in prompts where `wanted` is a number N, else the prompts in the file of that name.

    Raises:
        HawkError: there are fewer than N built-in prompts, no such file, or no prompt in it.
    """
    if wanted.isdecimal():
        count = int(wanted)
        if not 1 <= count <= len(BENCH_PROMPTS):
            raise HawkError(
                f"choose 1 to {len(BENCH_PROMPTS)} built-in prompts, not {count}, or name a file of prompts"
            )
        return list(BENCH_PROMPTS[:count])
    path = Path(wanted)
    if not path.is_file():
        raise HawkError(f"no file of prompts at {wanted}: give a number or a text file with one prompt a line")
    return read_prompts(path)


def run_benchmark(
    pipe: HawkPipeline,
    methods: Sequence[str],
    prompts: Sequence[str],
    seeds: int = 1,
    batch: int = 1,
    overrides: dict[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> BenchResult:
    """Draw every prompt with the seeds 0 .. `seeds` - 1 by every method.

    Every method draws the first batch of each size once as a warm-up, which is not timed. Then the methods take turns
    on each batch.

    Args:
        methods: method names; `ar` is always run, because the others are compared with it.
        batch: number of images decoded together.
        overrides: arguments of the pipeline's call that replace the model's defaults.

    Raises:
        HawkError: unknown method, `seeds` or `batch` below 1, or a prompt that the model cannot read.
    """
    if seeds < 1 or batch < 1:
        raise HawkError(f"seeds is {seeds} and batch is {batch}: both must be 1 or more")
    names = list(dict.fromkeys(("ar", *methods)))
    for name in names:
        method_named(name)
    settings = dict(overrides or {})
    jobs = [(prompt, seed) for prompt in prompts for seed in range(seeds)]
    batches = [jobs[start : start + batch] for start in range(0, len(jobs), batch)]
    size = {side: settings[side] for side in ("height", "width") if side in settings}
    pipe.condition(prompts, **size)  # fail on a bad prompt before measuring, which may take an hour
    # A GPU records the steps of a method once for each batch size. The last batch may be smaller than the others.
    sizes = {len(pairs): pairs for pairs in reversed(batches)}
    for name in names:
        for pairs in sizes.values():
            time_batch(pipe, name, pairs, settings)
    timed: dict[str, list[TimedBatch]] = {name: [] for name in names}
    done, total = 0, len(jobs) * len(names)
    for turn, pairs in enumerate(batches):
        # The order rotates, so that no method always runs on the CPU caches that the same other method left behind.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            timed[name].append(time_batch(pipe, name, pairs, settings))
            done += len(pairs)
            if on_progress:
                on_progress(done, total, name)
    rows = [summarise(name, timed[name], timed["ar"]) for name in names]
    return BenchResult(rows, environment(pipe, len(prompts), seeds, batch, settings))


def time_batch(
    pipe: HawkPipeline, method: str, jobs: Sequence[tuple[str, int]], settings: dict[str, Any]
) -> TimedBatch:
    """Draw one batch of (prompt, seed) pairs by one method; its wall-clock seconds run from prompts to pixels."""
    prompts, seeds = [prompt for prompt, _ in jobs], [seed for _, seed in jobs]
    synchronize(pipe.device)
    started = time.perf_counter()
    with pipe.timed():
        output = pipe(prompts, seed=seeds, method=method, batch_size=len(jobs), **settings)
    synchronize(pipe.device)
    assert isinstance(output, PipelineOutput)
    return TimedBatch((time.perf_counter() - started) / len(jobs), together(output.stats), output.tokens)


def summarise(method: str, batches: Sequence[TimedBatch], plain: Sequence[TimedBatch]) -> MethodRow:
    """The row of a method from its batches and the same batches drawn by plain AR (`plain`)."""
    images = sum(batch.stats.images for batch in batches)
    image_forwards = sum(batch.stats.nfe * batch.stats.images for batch in batches)
    seconds = statistics.median(batch.seconds for batch in batches)
    identical = sum(
        int((ours.tokens == theirs.tokens).all(1).sum()) for ours, theirs in zip(batches, plain, strict=True)
    )
    by_source: dict[str, int] = {}
    for batch in batches:
        for source, count in batch.stats.accepted_by_source.items():
            by_source[source] = by_source.get(source, 0) + count
    return MethodRow(
        method=method,
        verifier=method_named(method).verifier,
        lossless=method_named(method).lossless,
        nfe=image_forwards / images,
        accept_length=sum(batch.stats.committed for batch in batches) / image_forwards,
        acceptance_rate=acceptance_by_depth([batch.stats for batch in batches]),
        seconds_per_image=seconds,
        speedup_vs_ar=statistics.median(batch.seconds for batch in plain) / seconds,
        identical_to_ar=identical / images,
        ms_per_forward=1000
        * statistics.median(batch.seconds * batch.stats.images / batch.stats.nfe for batch in batches),
        nodes_per_forward=sum(batch.stats.nodes for batch in batches) / image_forwards,
        accepted_by_source=by_source,
        images=images,
    )


def acceptance_by_depth(stats: Sequence[Stats]) -> list[float]:
    """accepted / verified over several batches, at depths 1 .. `DEPTHS` or up to the deepest that was verified."""
    merged = Stats()
    for depth in range(DEPTHS):
        verified = sum(each.verified_by_depth[depth] for each in stats if depth < len(each.verified_by_depth))
        if not verified:
            break
        accepted = sum(each.accepted_by_depth[depth] for each in stats if depth < len(each.accepted_by_depth))
        merged.verified_by_depth.append(verified)
        merged.accepted_by_depth.append(accepted)
    return merged.acceptance_rate
