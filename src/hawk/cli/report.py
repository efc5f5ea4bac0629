"""`hawk report`: proofs, step costs, methods and evaluation of one model, in one page and one JSON document."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hawk.cli.options import (
    MOST_OF_A_PROMPT,
    CfgScaleOption,
    DeviceOption,
    DrafterOption,
    DtypeOption,
    EngineOption,
    ModelOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    check_printable,
    load_pipeline,
)
from hawk.errors import HawkError

if TYPE_CHECKING:
    from hawk.evaluation.run import EvalJob
    from hawk.pipeline import HawkPipeline


@dataclass(frozen=True)
class Extent:
    """How much a report measures.

    Attributes:
        prompts: prompts of the evaluation, with `images` images each; the first `bench_prompts` of them are those of
            the methods' table.
        evaluated: the methods that are evaluated beside plain AR and its control.
        verified: images by which the model itself is checked.
    """

    name: str
    prompts: int
    images: int
    bench_prompts: int
    evaluated: tuple[str, ...]
    verified: int
    resamples: int


QUICK = Extent("quick", 12, 2, 3, ("hawk", "lantern"), 2, 100)
"""Meant to take less than 20 minutes with the bundled model on two CPU cores; not measured yet."""
FULL = Extent("full", 32, 16, 16, ("hawk", "hawk-paper", "medusa", "eagle", "scd", "sjd", "lantern"), 8, 200)


def report(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the report; a rerun continues there.")],
    full: Annotated[
        bool,
        typer.Option(
            "--full/--quick", help="Measure much more, for hours; --quick does the least that says something."
        ),
    ] = False,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", help="Number of built-in prompts, or a file with one prompt a line (default: 12)."),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images", "-n", min=1, max=MOST_OF_A_PROMPT, help="Images of each prompt in the evaluation (default: 2)."
        ),
    ] = None,
    model: ModelOption = "bundled",
    drafter: DrafterOption = None,
    cfg_scale: CfgScaleOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    engine: EngineOption = "auto",
) -> None:
    """Prove, measure and evaluate one model, and write one page and one JSON document to publish.

    The parts are: proofs of losslessness, costs of a step, a table of all methods, and the evaluation of images. A
    stopped report is continued by the same command: finished parts are kept, and the evaluation loses one batch at
    most. OUT/report.html and OUT/report.json hold the result. The exit code is 1 if a proof fails.
    """
    from hawk.cli.evaluate import prompt_set
    from hawk.drafters.methods import METHODS, lacking
    from hawk.evaluation.locking import sole_owner
    from hawk.evaluation.model_page import model_page
    from hawk.evaluation.report import pictures_of
    from hawk.evaluation.run import drawn_by, eval_job, eval_methods, open_job
    from hawk.files import write_bytes, write_json
    from hawk.machine import machine_facts
    from hawk.models.arguments import OPTIONS, sampling_params

    check_printable(str(out))
    command = shlex.join(["hawk", *sys.argv[1:]])
    extent = FULL if full else QUICK
    chosen = prompt_set(str(extent.prompts) if prompts is None else prompts, None)
    pipe = load_pipeline(model, device, dtype, drafter, threads, engine)
    params = sampling_params(pipe.model, cfg_scale, temperature, top_k, top_p, OPTIONS)
    parts = pipe.model.drafting
    can = [name for name in METHODS if not lacking(METHODS[name], parts)]
    evaluated = eval_methods(",".join(name for name in extent.evaluated if name in can), parts)
    job = eval_job(pipe, evaluated, chosen, images or extent.images, 1, params)
    open_job(job, out)
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "verify": partial(verify_part, pipe, [item.prompt for item in chosen.items[: extent.verified]]),
        "steps": partial(steps_part, pipe),
        "methods": partial(methods_part, pipe, job, can, extent.bench_prompts),
        "eval": partial(eval_part, pipe, job, out / "eval", extent.resamples, command),
    }
    found: dict[str, Any] = {}
    with sole_owner(out):
        for name, make in makers.items():
            found[name] = kept_part(out, name, mark_of(job, extent), make)
            print(f"{name}: {found[name]['summary']} ({found[name]['seconds']:.0f} s)", flush=True)
        document = {
            "command": command,
            "extent": asdict(extent),
            "job": job.identity(),
            "environment": {"model": pipe.model.name} | machine_facts(pipe.device, pipe.dtype),
            **found,
        }
        write_json(out / "report.json", document)
        pictures = pictures_of(job, {name: drawn_by(job, out / "eval", name) for name in job.methods})
        write_bytes(out / "report.html", model_page(document, pictures).encode())
    print(f"wrote {out / 'report.json'} and {out / 'report.html'}")
    if not found["verify"]["passed"]:
        raise typer.Exit(1)


def mark_of(job: EvalJob, extent: Extent) -> dict[str, Any]:
    """What a kept part must have been measured with, as JSON values."""
    from hawk import __version__

    mark: dict[str, Any] = json.loads(json.dumps({"hawk": __version__, **job.identity(), "extent": asdict(extent)}))
    return mark


def kept_part(out: Path, name: str, mark: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A part of the report: what a finished run kept with the same mark, or a new one, which is kept at once.

    A new part that cannot be kept, as on a full disk, is printed as one line of JSON.
    """
    from hawk.evaluation.report import only_finite
    from hawk.files import read_cache, write_json

    path = out / "parts" / f"{name}.json"
    kept = read_cache(path)
    if kept.get("mark") == mark:
        part: dict[str, Any] = kept["part"]
        return part
    started = time.monotonic()
    part = only_finite(make())
    part["seconds"] = time.monotonic() - started
    try:
        write_json(path, {"mark": mark, "part": part})
    except OSError:
        print(json.dumps({name: part}))
        raise
    return part


def verify_part(pipe: HawkPipeline, prompts: list[str]) -> dict[str, Any]:
    """Every proof of losslessness, and which level the model itself keeps."""
    from hawk.cli.measure import all_checks
    from hawk.proofs.suite import LEVELS, level_held

    checks = all_checks(pipe, prompts)
    failed, level = sum(not check.passed for check in checks), level_held(checks)
    proven = f"all {len(checks)} checks passed" if not failed else f"{failed} of {len(checks)} checks FAILED"
    return {
        "summary": f"{proven}; level {level}: {LEVELS[level]}",
        "passed": not failed,
        "level": level,
        "checks": [asdict(check) for check in checks],
    }


def steps_part(pipe: HawkPipeline) -> dict[str, Any]:
    """What a step costs by the number of its nodes; no large shapes."""
    from hawk.cli.measure import measuring
    from hawk.measure.steps import StepsSweep, run_steps

    with measuring() as update:
        result = run_steps(pipe, StepsSweep(), images=2, on_progress=lambda what: update(advance=1, description=what))
    wide = max(result.costs, key=lambda cost: cost.nodes)
    plain = min(result.costs, key=lambda cost: cost.nodes)
    said = f"a step over {wide.nodes} nodes takes {wide.step / plain.step:.1f} times a step of plain AR"
    return {"summary": said, **result.to_json()}


def methods_part(pipe: HawkPipeline, job: EvalJob, names: list[str], prompts: int) -> dict[str, Any]:
    """The table of all methods that the model has drafters for, at the report's sampling parameters."""
    from hawk.cli.measure import measuring
    from hawk.measure.methods import run_benchmark

    chosen = [item.prompt for item in job.prompts.items[:prompts]]
    params = job.params
    overrides = {"guidance_scale": params.cfg_scale, "temperature": params.temperature}
    overrides |= {"top_k": params.top_k, "top_p": params.top_p}

    def show(done: int, total: int, method: str) -> None:
        update(completed=done, total=total, description=f"measured {method}")

    with measuring() as update:
        result = run_benchmark(pipe, names, chosen, overrides=overrides, on_progress=show)
    hawk = next((row for row in result.rows if row.method == "hawk"), result.rows[0])
    said = (
        f"{hawk.method} draws an image in {hawk.seconds_per_image:.2f} s, {hawk.speedup_vs_ar:.2f} times as fast as ar"
    )
    return {"summary": f"{said}, with {hawk.nfe:.0f} target forwards", **result.to_json()}


def eval_part(pipe: HawkPipeline, job: EvalJob, out: Path, resamples: int, command: str) -> dict[str, Any]:
    """The evaluation of the images of plain AR, its control and some methods, as `hawk eval` does it.

    Where the packages of the default features are missing, only tokens are compared, and the summary says so.
    """
    from hawk.cli.evaluate import drawn_and_scored
    from hawk.evaluation.features import FeatureExtractor, extractor_named
    from hawk.evaluation.report import Asked
    from hawk.evaluation.scoring import LEVELS, metrics_of

    network: FeatureExtractor | None = None
    lacking = ""
    try:
        network = extractor_named("efficientnet")
    except HawkError as error:
        lacking = f"; figures were left out, since {error}"
    wanted = tuple(name for name in metrics_of(pipe.model.name) if name not in LEVELS or name in ("tokens", "tests"))
    names = wanted if network is not None else ("tokens",)
    result = drawn_and_scored(pipe, job, out, Asked(names, resamples=resamples, command=command), network)
    agree = [verdict.label for verdict in result.verdicts if verdict.agrees]
    differ = [verdict.label for verdict in result.verdicts if not verdict.agrees]
    said = f"as plain AR: {', '.join(agree) or 'none'}" + (f"; not plain AR: {', '.join(differ)}" if differ else "")
    return {"summary": said + lacking, **result.to_json()}
