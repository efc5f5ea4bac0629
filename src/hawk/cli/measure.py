"""`hawk compare | bench | verify`: thin commands over what measures and proves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from hawk.cli.options import (
    WIDE,
    CfgScale,
    Device,
    Drafter,
    DraftTokens,
    Dtype,
    Engine,
    Model,
    Temperature,
    Threads,
    TopK,
    TopP,
    Window,
    image_bar,
    load_pipeline,
    proof_bar,
)
from hawk.errors import HawkError

if TYPE_CHECKING:
    from hawk.pipeline import HawkPipeline


def compare(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    seed: Annotated[int, typer.Option("--seed", help="Seed of both images.")] = 7,
    model: Model = "bundled",
    drafter: Drafter = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed runs of each; the median counts.")] = 3,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for compare.png.")] = Path(),
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    engine: Engine = "auto",
) -> None:
    """Draw one prompt by plain decoding and by Hawk from one seed, side by side, with a map of accepted drafts."""
    from hawk.measure.compare import compare as run
    from hawk.measure.compare import draw_comparison, origin_counts
    from hawk.pictures.png import check_writable, write_png
    from hawk.pipeline import tokens_sha256

    check_writable(out)
    pipe = load_pipeline(model, device, dtype, drafter, threads, engine)
    with image_bar() as bar:
        task = bar.add_task("drawing by turns: plain, hawk", total=2 * (repeats + 1))
        result = run(pipe, prompt, seed, repeats, on_image=lambda: bar.update(task, advance=1, refresh=True))
    path = write_png(draw_comparison(result, pipe.model.name), out / "compare.png")
    table = Table(title=f"“{prompt}”, seed {seed}", title_justify="left")
    for column in ("method", "seconds", "NFE", "accept length", "speed-up", "identical"):
        table.add_column(column, justify="left" if column == "method" else "right")
    runs = {"ar": result.plain, "hawk": result.hawk}
    identical = result.differing == 0
    for name, each in runs.items():
        gain = result.plain.seconds / each.seconds
        same = "" if name == "ar" else ("yes" if identical else f"no ({result.differing} tokens)")
        figures = (f"{each.seconds:.2f}", f"{each.output.nfe:.0f}", f"{each.output.accept_length:.2f}", f"{gain:.2f}x")
        table.add_row(name, *figures, same)
    Console().print(table)
    print(f"wrote {path}")
    figures_of = {
        name: {
            "seconds": each.seconds,
            "nfe": each.output.nfe,
            "accept_length": each.output.accept_length,
            "tokens_sha256": tokens_sha256(each.output.tokens[0]),
        }
        for name, each in runs.items()
    }
    counts = dict(origin_counts(result.hawk.output))
    print(
        json.dumps(
            {
                "prompt": prompt,
                "seed": seed,
                "model": pipe.model.name,
                "identical": identical,
                "speedup": result.speedup,
                **figures_of,
                "accepted_by": counts,
                "path": str(path),
            }
        )
    )


def bench(
    methods: Annotated[
        str | None, typer.Option("--methods", help="Names with commas; ar is always run (default: those of the suite).")
    ] = None,
    suite: Annotated[
        str,
        typer.Option("--suite", help="paper (its methods and hawk), peers (all), scaling (how cost grows), steps."),
    ] = "paper",
    prompts: Annotated[str, typer.Option("--prompts", help="How many of the built-in, or a file, one a line.")] = "4",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Images of each prompt, seeds 0, 1, ...")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images decoded together.")] = 1,
    model: Model = "bundled",
    drafter: Drafter = None,
    cfg_scale: CfgScale = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    num_draft_tokens: DraftTokens = None,
    window: Window = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    engine: Engine = "auto",
    plots: Annotated[Path | None, typer.Option("--plots", help="Folder for the plots of the scaling suite.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json-out", help="Write the JSON document here too.")] = None,
) -> None:
    """Measure methods side by side in one run, prompt by prompt by turns; medians; the last line is JSON."""
    from hawk.cli.tables import bench_table
    from hawk.files import write_json
    from hawk.measure.methods import bench_methods, bench_prompts, run_benchmark
    from hawk.pictures.png import check_writable

    if json_out is not None:
        check_writable(json_out.parent)
    if plots is not None and suite != "scaling":
        raise HawkError(f"--plots is for the suite scaling, not {suite}: use --json-out")
    if suite == "scaling":
        _scaling(load_pipeline(model, device, dtype, drafter, threads, engine), plots, json_out)
        return
    if suite == "steps":
        _steps(load_pipeline(model, device, dtype, drafter, threads, engine), json_out)
        return
    bench_methods(suite, methods, None)  # a bad name fails before a model is loaded
    chosen = bench_prompts(prompts)
    pipe = load_pipeline(model, device, dtype, drafter, threads, engine)
    names, left_out = bench_methods(suite, methods, pipe.model.drafting)
    for name, kind in left_out.items():
        print(f"left out: {name}, for want of `hawk train drafter --kind {kind}`", file=sys.stderr)
    sampling = {"guidance_scale": cfg_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    overrides = {**sampling, "num_draft_tokens": num_draft_tokens, "window": window}
    with image_bar() as bar:
        task = bar.add_task("measuring", total=None)
        result = run_benchmark(
            pipe,
            names,
            chosen,
            seeds,
            batch,
            {name: value for name, value in overrides.items() if value is not None},
            on_progress=lambda done, total, method: bar.update(
                task, completed=done, total=total, description=f"measured {method}", refresh=True
            ),
        )
    Console().print(bench_table(result))
    document = result.to_json()
    if json_out is not None:
        write_json(json_out, document)
    print(json.dumps(document))


def _scaling(pipe: HawkPipeline, plots: Path | None, json_out: Path | None) -> None:
    from hawk.cli.tables import scaling_table
    from hawk.files import write_json
    from hawk.measure.scaling import draw_plots, run_scaling
    from hawk.pictures.png import check_writable

    if plots is not None:
        check_writable(plots)
    with image_bar() as bar:
        task = bar.add_task("measuring", total=None)
        result = run_scaling(pipe, on_progress=lambda what: bar.update(task, advance=1, description=what, refresh=True))
    Console(width=None if sys.stdout.isatty() else WIDE).print(scaling_table(result))
    if plots is not None:
        for path in draw_plots(result, plots):
            print(f"wrote {path}")
    document = result.to_json()
    if json_out is not None:
        write_json(json_out, document)
    print(json.dumps(document))


def _steps(pipe: HawkPipeline, json_out: Path | None) -> None:
    from hawk.cli.tables import steps_table
    from hawk.files import write_json
    from hawk.measure.steps import run_steps

    with image_bar() as bar:
        task = bar.add_task("measuring", total=None)
        result = run_steps(pipe, on_progress=lambda what: bar.update(task, advance=1, description=what, refresh=True))
    Console(width=None if sys.stdout.isatty() else WIDE).print(steps_table(result))
    document = result.to_json()
    if json_out is not None:
        write_json(json_out, document)
    print(json.dumps(document))


def verify(
    model: Model = "bundled",
    drafter: Drafter = None,
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="Prompts drawn by the model itself.")] = 4,
    device: Device = "auto",
    threads: Threads = None,
    engine: Engine = "auto",
    only_json: Annotated[bool, typer.Option("--json", help="Print the line of JSON alone, no table.")] = False,
) -> None:
    """Prove on this machine that every method but lantern (lossy) is lossless; exit code 1 if one is not."""
    from dataclasses import asdict

    import torch

    from hawk.cli.tables import checks_table
    from hawk.measure.methods import bench_prompts, identical_images
    from hawk.proofs.losslessness import Check
    from hawk.proofs.suite import proofs, run_in_processes

    chosen = bench_prompts(str(prompts))
    pipes = [load_pipeline(model, device, dtype, drafter, threads, engine) for dtype in ("float32", "auto")]
    checks: list[Check] = []
    with proof_bar() as bar:
        every = proofs()
        task = bar.add_task("proving", total=len(every))
        for found in run_in_processes(every, torch.get_num_threads()):
            checks += found
            bar.advance(task)
    for pipe in {pipe.dtype: pipe for pipe in pipes}.values():
        same = identical_images(pipe, chosen)
        settings = f"{pipe.model.name}, {pipe.dtype}, {pipe.device.type}"
        measured, enough = f"{same} of {prompts} images identical to ar", same >= 0.99 * prompts
        checks.append(Check("the model itself, same seed", "hawk", "coupled", settings, measured, enough))
    passed = all(check.passed for check in checks)
    if not only_json:
        Console(width=None if sys.stdout.isatty() else WIDE).print(checks_table(checks))
        failed = sum(not check.passed for check in checks)
        print(f"{len(checks)} checks passed" if passed else f"{failed} of {len(checks)} checks FAILED")
        lossy = sorted({check.method for check in checks if not check.lossless})
        if lossy:
            print(f"lossy by design, its drift measured: {', '.join(lossy)}")
    print(json.dumps({"passed": passed, "checks": [asdict(check) for check in checks]}))
    if not passed:
        raise typer.Exit(1)
