"""`hawk compare`, `hawk bench` and `hawk verify`: the command line of `hawk.measure` and `hawk.proofs`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import typer
from rich.console import Console

from hawk.cli.options import (
    MOST_OF_A_PROMPT,
    CfgScaleOption,
    Context,
    DeviceOption,
    DrafterOption,
    DraftTokensOption,
    DtypeOption,
    EngineOption,
    ModelOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    WindowOption,
    check_printable,
    image_bar,
    load_pipeline,
    proof_bar,
    wide_console,
)
from hawk.errors import HawkError, install

if TYPE_CHECKING:
    from hawk.pipeline import HawkPipeline
    from hawk.proofs.losslessness import Check


@runtime_checkable
class Measured(Protocol):
    """The result of a suite of `hawk bench`."""

    def to_json(self) -> dict[str, Any]: ...


def compare(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    seed: Annotated[int, typer.Option("--seed", help="Seed of both images.")] = 7,
    model: ModelOption = "bundled",
    drafter: DrafterOption = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed runs of each method; the median counts.")] = 3,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for compare.png.")] = Path(),
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    engine: EngineOption = "auto",
) -> None:
    """Draw one prompt by plain decoding and by Hawk with one seed; show both images and a map of accepted drafts."""
    from hawk.cli.tables import comparison_report, comparison_table
    from hawk.measure.compare import compare as run
    from hawk.measure.compare import draw_comparison
    from hawk.pictures.png import check_writable, write_png

    check_writable(out)
    check_printable(f"{prompt} {out}")
    pipe = load_pipeline(model, device, dtype, drafter, threads, engine)
    with image_bar() as bar:
        task = bar.add_task("drawing in turns: plain, hawk", total=2 * (repeats + 1))
        result = run(pipe, prompt, seed, repeats, on_image=lambda: bar.update(task, advance=1, refresh=True))
    path = out / "compare.png"
    Console().print(comparison_table(result))
    try:
        write_png(draw_comparison(result, pipe.model.name), path)
        print(f"wrote {path}")
    finally:  # a full disk loses the picture, not the figures
        print(json.dumps(comparison_report(result, pipe.model.name, path)))


OF_MODEL = frozenset({"suite", "json_out", "model", "drafter", "device", "dtype", "threads", "engine"})
OPTIONS_OF = {
    "scaling": OF_MODEL | {"plots"},
    "steps": OF_MODEL,
    "targets": frozenset({"suite", "json_out", "dtype", "threads", "plots"}),
    "fair": OF_MODEL | {"plots", "out", "methods", "prompts", "seeds", "batch"},
}
"""The options of `hawk bench` that mean something for a suite, unless the suite is one of methods at one setting."""
OF_FAIR = frozenset({"plots", "out"})
"""The options that mean nothing for a suite of methods at one setting."""


def _refuse_without_use(context: Context, suite: str) -> None:
    """Raise `HawkError` for an option on the command line that the suite would ignore."""
    for name in context.params:
        given = str(context.get_parameter_source(name)).endswith("COMMANDLINE")
        if given and (name not in OPTIONS_OF[suite] if suite in OPTIONS_OF else name in OF_FAIR):
            raise HawkError(f"--{name.replace('_', '-')} means nothing for the suite {suite}: leave it out")


def bench(
    context: Context,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods", help="Method names with commas between; ar is always run (default: those of the suite)."
        ),
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            "--suite",
            help="paper (its methods and hawk), peers (all methods), fair (all methods at several settings, each with "
            "its authors' shape and its best one), scaling (growth of cost), steps (step times) or targets (large "
            "shapes with random weights, beside transformers).",
        ),
    ] = "paper",
    prompts: Annotated[
        str, typer.Option("--prompts", help="Number of built-in prompts, or a file with one prompt a line.")
    ] = "4",
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", min=1, max=MOST_OF_A_PROMPT, help="Number of images of each prompt, with seeds 0, 1, ..."
        ),
    ] = 1,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            help="Number of images decoded together (default: 1); fair takes two with a comma (default: 1,8).",
        ),
    ] = None,
    model: ModelOption = "bundled",
    drafter: DrafterOption = None,
    cfg_scale: CfgScaleOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    num_draft_tokens: DraftTokensOption = None,
    window: WindowOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    engine: EngineOption = "auto",
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Folder for the plots of the suites fair, scaling and targets.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="Folder that keeps the rounds of the suite fair: after a kill, the same command goes on from them.",
        ),
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json-out", help="File to write the JSON document to as well.")
    ] = None,
) -> None:
    """Measure methods, the growth of cost, or the parts of a step; print a table, and last a line of JSON."""
    from hawk.measure.methods import bench_methods, bench_prompts
    from hawk.models.arguments import OPTIONS, sampling_params
    from hawk.pictures.png import check_writable

    of_methods = suite not in OPTIONS_OF or suite == "fair"
    if of_methods:  # fail on a bad name before anything else
        bench_methods(suite, methods, None)
    _refuse_without_use(context, suite)
    sizes = batch_sizes(batch, suite)
    if suite == "fair" and out is None:
        raise HawkError("the suite fair takes an hour and needs --out: the folder that keeps its rounds")
    if json_out is not None:
        if json_out.is_dir():
            raise HawkError(f"--json-out {json_out} is a folder: name a file")
        if json_out.is_file() or not json_out.exists():  # else it is a device or a pipe
            check_writable(json_out.parent)
    if plots is not None:
        check_writable(plots)
    # A bad prompt file is refused before a model is loaded.
    chosen = bench_prompts(prompts) if of_methods else []
    if suite == "targets":
        return _hand_over(_targets(dtype, threads), plots, json_out)
    pipe = load_pipeline(model, device, dtype, drafter, threads, engine)
    if chosen:
        # A parameter or a prompt that the model does not take is refused before anything is measured.
        sampling_params(pipe.model, cfg_scale, temperature, top_k, top_p, OPTIONS)
        pipe.condition(chosen)
    result: Measured
    if suite == "scaling":
        result = _scaling(pipe)
    elif suite == "steps":
        result = _steps(pipe)
    else:
        names, left_out = bench_methods(suite, methods, pipe.model.drafting)
        for name, kind in left_out.items():
            print(f"left out: {name}, which needs `hawk train drafter --kind {kind}`", file=sys.stderr)
        if out is not None:
            return _hand_over(_fair(pipe, names, chosen, out, seeds, sizes), plots, json_out)
        sampling = {"guidance_scale": cfg_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        overrides = {**sampling, "num_draft_tokens": num_draft_tokens, "window": window}
        given = {name: value for name, value in overrides.items() if value is not None}
        result = _methods(pipe, names, chosen, seeds, sizes[0], given)
    _hand_over(result, plots, json_out)


def _hand_over(result: Measured, plots: Path | None, json_out: Path | None) -> None:
    """Draw the plots, print the line of JSON, and write it to the file that the caller named."""
    from hawk.files import write_json

    document = result.to_json()
    try:
        if plots is not None:
            _plot(result, plots)
    finally:  # what was measured is printed before it is written: a full disk does not lose it
        print(json.dumps(document))
    if json_out is not None:
        write_json(json_out, document)


def _methods(
    pipe: HawkPipeline, names: list[str], prompts: list[str], seeds: int, batch: int, overrides: dict[str, Any]
) -> Measured:
    """Run a suite of methods and print its table."""
    from hawk.cli.tables import bench_table
    from hawk.measure.methods import run_benchmark

    def show(done: int, total: int, method: str) -> None:
        update(completed=done, total=total, description=f"measured {method}")

    with measuring() as update:
        result = run_benchmark(pipe, names, prompts, seeds, batch, overrides, on_progress=show)
    Console().print(bench_table(result))
    return result


def batch_sizes(text: str | None, suite: str) -> list[int]:
    """The numbers of images decoded together: one, or for the suite fair one or two; `HawkError` for anything else."""
    if text is None:
        return [1, 8] if suite == "fair" else [1]
    most = 2 if suite == "fair" else 1
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > most or not all(part.isdecimal() and 1 <= int(part) <= MOST_TOGETHER for part in parts):
        several = "one or two whole numbers, with a comma between," if most == 2 else "a whole number"
        raise HawkError(f"--batch takes {several} from 1 to {MOST_TOGETHER}, not {text!r}")
    return [int(part) for part in parts]


MOST_TOGETHER = 100_000
"""The most images that can be decoded together."""


def _fair(
    pipe: HawkPipeline, names: list[str], prompts: list[str], out: Path, seeds: int, sizes: list[int]
) -> Measured:
    """Run the fair suite and print its tables and its summary."""
    from hawk.cli.tables import fair_tables
    from hawk.measure.fair import run_fair

    def show(done: int, total: int, what: str) -> None:
        update(completed=done, total=total, description=what)
        if not sys.stderr.isatty():  # no bar is drawn there, and the suite takes an hour
            print(f"round {done} of {total}: {what}", file=sys.stderr, flush=True)

    with measuring() as update:
        result = run_fair(pipe, names, prompts, out, seeds, sizes, on_progress=show)
    for table in fair_tables(result):
        wide_console().print(table)
    print("chosen by: authors, the method's default shape or another one of its authors; best, the fastest shape here")
    for sentence in (*result.left_out, *result.summary):
        print(sentence)
    return result


def _scaling(pipe: HawkPipeline) -> Measured:
    """Run the scaling suite and print its table."""
    from hawk.cli.tables import scaling_table
    from hawk.measure.scaling import run_scaling

    with measuring() as update:
        result = run_scaling(pipe, on_progress=lambda what: update(advance=1, description=what))
    wide_console().print(scaling_table(result))
    return result


def _targets(dtype: str, threads: int | None) -> Measured:
    """Run the targets suite, which needs no model, and print the tables of each target as soon as it is measured."""
    import torch

    from hawk.cli.tables import targets_tables
    from hawk.models.loading import dtype_named

    named = dtype_named(dtype, torch.device("cpu"))
    if named == "float64":
        raise HawkError("the suite targets measures no float64: choose auto, float32, bfloat16 or float16")

    try:
        from hawk.measure.targets import TargetsResult, TargetsSweep, run_targets
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise HawkError(f"the suite targets compares with transformers: {install('hf')}") from error
    if threads is not None:
        torch.set_num_threads(threads)

    sweep = TargetsSweep(dtype=named)

    def show(result: TargetsResult) -> None:
        for table in targets_tables(result):
            wide_console().print(table)

    with measuring() as update:
        return run_targets(sweep, on_progress=lambda what: update(advance=1, description=what), on_target=show)


def _plot(result: Measured, folder: Path) -> None:
    """Draw the plots of the fair suite, the scaling suite or the targets suite."""
    from hawk.measure import fair, scaling

    if isinstance(result, fair.FairResult):
        written = fair.draw_plots(result, folder)
    elif isinstance(result, scaling.ScalingResult):
        written = scaling.draw_plots(result, folder)
    else:
        from hawk.measure import targets

        assert isinstance(result, targets.TargetsResult)
        written = targets.draw_plots(result, folder)
    for path in written:
        print(f"wrote {path}")


def _steps(pipe: HawkPipeline) -> Measured:
    """Run the steps suite and print its table."""
    from hawk.cli.tables import steps_table
    from hawk.measure.steps import run_steps

    with measuring() as update:
        result = run_steps(pipe, on_progress=lambda what: update(advance=1, description=what))
    wide_console().print(steps_table(result))
    return result


@contextmanager
def measuring() -> Iterator[Callable[..., None]]:
    """Show a progress bar; yields the function that changes it, with the keywords of `Progress.update`."""
    with image_bar() as bar:
        yield partial(bar.update, bar.add_task("measuring", total=None), refresh=True)


def verify(
    model: ModelOption = "bundled",
    drafter: DrafterOption = None,
    prompts: Annotated[
        int, typer.Option("--prompts", min=1, help="Number of prompts that the model itself draws.")
    ] = 4,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    engine: EngineOption = "auto",
    only_json: Annotated[bool, typer.Option("--json", help="Print only the line of JSON, no table.")] = False,
) -> None:
    """Prove on this machine that every method except lantern (lossy) is lossless; exit with code 1 if one is not.

    The last sentence names what holds for the model: level 2, the tokens of plain AR; level 3, the tokens of plain AR
    run at the window's shape; or level 1, the distribution of plain AR. Level 3 is promised everywhere, 2 on CPUs.
    """
    from dataclasses import asdict

    from hawk.cli.tables import checks_table
    from hawk.measure.methods import bench_prompts
    from hawk.proofs.suite import LEVELS, level_held

    chosen = bench_prompts(str(prompts))
    pipe = load_pipeline(model, device, dtype, drafter, threads, engine)
    pipe.condition(chosen)  # a model that cannot read the prompts is refused before minutes of proofs
    checks = all_checks(pipe, chosen)
    passed, level = all(check.passed for check in checks), level_held(checks)
    if not only_json:
        wide_console().print(checks_table(checks))
        failed = sum(not check.passed for check in checks)
        print(f"{len(checks)} checks passed" if passed else f"{failed} of {len(checks)} checks FAILED")
        lossy = sorted({check.method for check in checks if not check.lossless})
        if lossy:
            print(f"lossy by design, drift measured: {', '.join(lossy)}")
        print(f"level {level}: {LEVELS[level]}")
    print(json.dumps({"passed": passed, "level": level, "checks": [asdict(check) for check in checks]}))
    if not passed:
        raise typer.Exit(1)


def all_checks(pipe: HawkPipeline, prompts: list[str]) -> list[Check]:
    """Run every proof of losslessness under a progress bar, then the checks of the model itself on the prompts."""
    import torch

    from hawk.proofs.suite import proofs, prove_on_model, run_in_processes

    checks: list[Check] = []
    with proof_bar() as bar:
        every = proofs()
        task = bar.add_task("proving", total=len(every))
        for found in run_in_processes(every, torch.get_num_threads()):
            checks += found
            bar.advance(task)
    return checks + prove_on_model(pipe, prompts)
