"""`hawk bench`: methods side by side in one process, by turns prompt by prompt, each compared with plain AR."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hawk import __version__
from hawk.decoding.stats import Stats
from hawk.drafters.methods import METHODS, lacking, method_named
from hawk.drafters.parts import DraftParts
from hawk.errors import HawkError
from hawk.machine import processor, synchronize
from hawk.measure.prompts import BENCH_PROMPTS
from hawk.pipeline import HawkPipeline, PipelineOutput

DEPTHS = 3
OnProgress = Callable[[int, int, str], None]
"""Called after each batch with (images done, images in all, method)."""


@dataclass(frozen=True)
class Trial:
    """One method on one batch: seconds an image, counts, and the tokens it drew `[images, n]`."""

    seconds: float
    stats: Stats
    tokens: Int[Tensor, "images n"]


@dataclass(frozen=True)
class MethodRow:
    """One line of the table. Counts are means over images; times are medians over batches.

    `speedup_vs_ar` is the ratio of the medians, `identical_to_ar` the share of images with the very tokens of AR (the
    residual verifier keeps the distribution, not the tokens), `acceptance_rate` accepted / verified at depths 1, 2, 3.
    Not `lossless`: it draws from another distribution than AR, so its speed-up is no equal's.
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
    """All rows, AR first, and what they were measured on."""

    rows: list[MethodRow]
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The JSON document that `hawk bench` ends with."""
        return asdict(self)


SUITES = {"paper": ("ar", "medusa", "hawk-vertical", "hawk-paper", "hawk"), "peers": tuple(METHODS)}


def bench_methods(suite: str, methods: str | None, parts: DraftParts | None) -> tuple[list[str], dict[str, str]]:
    """The names in `methods`, with commas between, or those of the suite; and of a suite what a model cannot run.

    The latter by name, with the kind of drafter that is missing. Raises `HawkError` for an unknown suite or method.
    """
    if suite not in SUITES:
        raise HawkError(f"unknown suite {suite!r}: choose one of {', '.join(SUITES)}, scaling, steps")
    if methods is not None:
        return [method_named(name.strip()).name for name in methods.split(",") if name.strip()], {}
    missing = {name: lacking(METHODS[name], parts) for name in SUITES[suite]}
    return [name for name, kind in missing.items() if not kind], {n: kind for n, kind in missing.items() if kind}


def bench_prompts(wanted: str) -> list[str]:
    """The first N built-in prompts for a number, else the lines of a file; `HawkError` for neither."""
    if wanted.isdecimal():
        count = int(wanted)
        if not 1 <= count <= len(BENCH_PROMPTS):
            raise HawkError(
                f"there are {len(BENCH_PROMPTS)} built-in prompts, {count} were asked for: name a file for more"
            )
        return list(BENCH_PROMPTS[:count])
    path = Path(wanted)
    if not path.is_file():
        raise HawkError(f"no file of prompts at {wanted}: give a number or a text file with one prompt a line")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise HawkError(f"{path} is not UTF-8 text") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise HawkError(f"{path} holds no prompt: write one a line")
    return prompts


def run_benchmark(
    pipe: HawkPipeline,
    methods: Sequence[str],
    prompts: Sequence[str],
    seeds: int = 1,
    batch: int = 1,
    overrides: dict[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> BenchResult:
    """Draw every prompt with seeds 0 .. `seeds` - 1 by every method, by turns after a warm-up.

    Args:
        methods: names; `ar` is run in any case, since the others are compared with it.
        batch: images decoded together.
        overrides: sampling arguments of the pipeline in place of the model's defaults.
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
    pipe.condition(prompts, **size)  # a bad prompt fails before an hour of measuring
    for name in names:
        measure(pipe, name, batches[0], settings)
    trials: dict[str, list[Trial]] = {name: [] for name in names}
    done, total = 0, len(jobs) * len(names)
    for turn, pairs in enumerate(batches):
        # Each method goes first in its turn, so that none always runs on what another left in the caches.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            trials[name].append(measure(pipe, name, pairs, settings))
            done += len(pairs)
            if on_progress:
                on_progress(done, total, name)
    rows = [summarise(name, trials[name], trials["ar"]) for name in names]
    return BenchResult(rows, environment(pipe, len(prompts), seeds, batch, settings))


def measure(pipe: HawkPipeline, method: str, jobs: Sequence[tuple[str, int]], settings: dict[str, Any]) -> Trial:
    """One batch of (prompt, seed) by one method; the seconds are wall-clock, from prompts to pixels."""
    prompts, seeds = [prompt for prompt, _ in jobs], [seed for _, seed in jobs]
    synchronize(pipe.device)
    started = time.perf_counter()
    output = pipe(prompts, seed=seeds, method=method, batch_size=len(jobs), **settings)
    synchronize(pipe.device)
    assert isinstance(output, PipelineOutput)
    return Trial((time.perf_counter() - started) / len(jobs), output.stats[0], output.tokens)


def summarise(method: str, trials: Sequence[Trial], plain: Sequence[Trial]) -> MethodRow:
    """A method's row from its trials and those of plain AR on the same batches."""
    images = sum(trial.stats.images for trial in trials)
    image_forwards = sum(trial.stats.nfe * trial.stats.images for trial in trials)
    seconds = statistics.median(trial.seconds for trial in trials)
    identical = sum(
        int((ours.tokens == theirs.tokens).all(1).sum()) for ours, theirs in zip(trials, plain, strict=True)
    )
    by_source: dict[str, int] = {}
    for trial in trials:
        for source, count in trial.stats.accepted_by_source.items():
            by_source[source] = by_source.get(source, 0) + count
    return MethodRow(
        method=method,
        verifier=method_named(method).verifier,
        lossless=method_named(method).lossless,
        nfe=image_forwards / images,
        accept_length=sum(trial.stats.committed for trial in trials) / image_forwards,
        acceptance_rate=acceptance_by_depth([trial.stats for trial in trials]),
        seconds_per_image=seconds,
        speedup_vs_ar=statistics.median(trial.seconds for trial in plain) / seconds,
        identical_to_ar=identical / images,
        ms_per_forward=1000 * statistics.median(each.seconds * each.stats.images / each.stats.nfe for each in trials),
        nodes_per_forward=sum(trial.stats.nodes for trial in trials) / image_forwards,
        accepted_by_source=by_source,
        images=images,
    )


def acceptance_by_depth(stats: Sequence[Stats]) -> list[float]:
    """accepted / verified at depths 1 .. `DEPTHS` over several batches; shorter where nothing was verified so deep."""
    merged = Stats()
    for depth in range(DEPTHS):
        verified = sum(each.verified_by_depth[depth] for each in stats if depth < len(each.verified_by_depth))
        if not verified:
            break
        accepted = sum(each.accepted_by_depth[depth] for each in stats if depth < len(each.accepted_by_depth))
        merged.verified_by_depth.append(verified)
        merged.accepted_by_depth.append(accepted)
    return merged.acceptance_rate


def environment(pipe: HawkPipeline, prompts: int, seeds: int, batch: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """What a figure depends on: model, machine, versions, settings."""
    names = {"guidance_scale": "cfg_scale"}
    sampling = asdict(pipe.defaults) | {names.get(name, name): value for name, value in overrides.items()}
    return {
        "model": pipe.model.name,
        "target_parameters": pipe.model.target.parameter_count,
        "grid": [pipe.model.grid.height, pipe.model.grid.width],
        "seed": 0,
        "dtype": pipe.dtype,
        "device": pipe.device.type,
        "processor": processor(pipe.device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "hawk": __version__},
        "date": time.strftime("%Y-%m-%d"),
        "settings": {"prompts": prompts, "seeds": seeds, "batch": batch, **sampling},
    }


def identical_images(pipe: HawkPipeline, prompts: Sequence[str], seed: int = 0) -> int:
    """How many prompts `hawk` draws with the very tokens of plain AR."""
    jobs = [(prompt, seed + i) for i, prompt in enumerate(prompts)]
    pairs = [(measure(pipe, "ar", [job], {}).tokens, measure(pipe, "hawk", [job], {}).tokens) for job in jobs]
    return sum(bool(torch.equal(plain, hawk)) for plain, hawk in pairs)
