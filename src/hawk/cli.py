"""`hawk ...`: each command imports what it needs when it is called."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer.core import TyperGroup

from hawk import __version__
from hawk.cli_train import train_app
from hawk.errors import HawkError

if TYPE_CHECKING:
    from hawk.pipeline import HawkPipeline, PipelineOutput

USAGE, INTERRUPTED = 2, 130
WIDE = 140  # columns of a table that goes to a file
# The class of typer's own usage errors; the package it lives in differs between versions of typer.
USAGE_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException" and issubclass(kind, Exception)
)


class OneLineErrors(TyperGroup):
    """Ends bad input with one line on standard error and exit code 2, and Ctrl-C with 130."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command; exits unless `standalone_mode` is False."""
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            if code == INTERRUPTED:  # typer's own answer to Ctrl-C
                _fail("interrupted")
        except (HawkError, OSError) as error:
            code = _fail(_os_line(error) if isinstance(error, OSError) else str(error))
        except USAGE_ERROR as error:
            code = _usage(error)
        except (KeyboardInterrupt, typer.Abort):
            code = _fail("interrupted", INTERRUPTED)
        except MemoryError:
            code = _fail("not enough memory")
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int = USAGE) -> int:
    print("hawk: " + " ".join(message.split()), file=sys.stderr)
    return code


def _usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # `hawk`, `hawk train`: its message is the help text
        print(error.format_message())
        return USAGE
    return _fail(error.format_message())


def _os_line(error: OSError) -> str:
    """What the system refused, and where."""
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"


app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The captioned images that the bundled model learns from."
)
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")

Model = Annotated[str, typer.Option("--model", "-m", help="bundled, a model folder, or a hub id owner/name.")]
Drafter = Annotated[
    Path | None, typer.Option("--drafter", help="Folder of draft heads to use in place of the model's own.")
]
Device = Annotated[str, typer.Option("--device", help="auto (a GPU where there is one), cpu or cuda.")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="float32, bfloat16 or float16; only float32 keeps images identical.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads (default: PyTorch's choice).")]
CfgScale = Annotated[float | None, typer.Option("--cfg-scale", help="Strength of guidance; 1 is off.")]
Temperature = Annotated[float | None, typer.Option("--temperature", help="Sampling temperature; 0 is greedy.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Sample from the k likeliest tokens; 0 is off.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Sample from the likeliest tokens of this mass; 1 is off.")]
DraftTokens = Annotated[
    int | None, typer.Option("--num-draft-tokens", min=1, help="Most drafts verified in a forward (default: measured).")
]
Window = Annotated[int | None, typer.Option("--window", min=1, help="Positions ahead that drafts may reach.")]
AsJson = Annotated[bool, typer.Option("--json", help="End standard output with one line of JSON.")]


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"hawk {__version__}")
        raise typer.Exit()
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Text to image, autoregressive and fast: the same image as plain decoding, in fewer forwards."""


def main() -> None:
    """The `hawk` command."""
    app()


# --- commands ------------------------------------------------------------------------------------------------


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw; several draw several.")],
    method: Annotated[str, typer.Option("--method", help="hawk, or a rival: `hawk bench --help`.")] = "hawk",
    verifier: Annotated[
        str | None, typer.Option("--verifier", help="coupled or residual (default: the method's own).")
    ] = None,
    num_draft_tokens: DraftTokens = None,
    window: Window = None,
    model: Model = "bundled",
    drafter: Drafter = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the first image; the next take the next.")] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Images of each prompt.")] = 1,
    cfg_scale: CfgScale = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    negative_prompt: Annotated[str | None, typer.Option("--negative-prompt", help="What to steer away from.")] = None,
    height: Annotated[int | None, typer.Option("--height", help="Pixels (default: the model's).")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Pixels (default: the model's).")] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="FILE.png for one image, or a folder (default: here).")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Draw images of prompts into PNG files, which carry their settings with them."""
    from hawk.drafters.methods import method_named
    from hawk.pipeline import PipelineOutput, image_seeds
    from hawk.png import picture_path, save_png
    from hawk.report import image_metadata, image_report

    verifier = verifier or method_named(method).verifier
    wanted = [prompt for prompt in prompts for _ in range(count)]
    seeds = image_seeds(len(wanted), seed, None)
    folder = out is not None and out.endswith(("/", os.sep))
    target = None if out is None else Path(out)
    places = [picture_path(target, prompt, s, len(wanted), folder) for prompt, s in zip(wanted, seeds, strict=True)]
    pipe = _pipeline(model, device, dtype, drafter, threads)
    pipe.model.text.encode(prompts)  # a bad prompt fails before the first image is drawn
    reports: list[dict[str, Any]] = []
    said: list[str] = []
    try:
        with _token_bar() as bar:
            task = bar.add_task("drawing", total=None, accept="")

            def on_step(pipe: HawkPipeline, step: int, committed: int, state: dict[str, Any]) -> None:
                cells = state["canvas"].grid.size
                accept = f"accept length {state['stats'].accept_length:.2f}"
                done = len(reports) * cells + committed
                bar.update(task, completed=done, total=len(wanted) * cells, accept=accept)

            for prompt, image_seed, place in zip(wanted, seeds, places, strict=True):
                output = pipe(
                    prompt,
                    negative_prompt=negative_prompt,
                    guidance_scale=cfg_scale,
                    seed=image_seed,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    method=method,
                    verifier=verifier,
                    num_draft_tokens=num_draft_tokens,
                    window=window,
                    height=height,
                    width=width,
                    callback_on_step_end=on_step,
                )
                assert isinstance(output, PipelineOutput)
                path = save_png(output.images[0], place, image_metadata(pipe, output, prompt, method, negative_prompt))
                reports.append(image_report(pipe, output, prompt, method, path))
                said.append(_said(path, output))
    finally:  # also where Ctrl-C or a full disk ends it: these files are there
        print("".join(f"{line}\n" for line in said), end="")
    if as_json:
        print(json.dumps(reports[0] if len(reports) == 1 else {**reports[0], "images": reports}))


@app.command()
def compare(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    seed: Annotated[int, typer.Option("--seed", help="Seed of both images.")] = 7,
    model: Model = "bundled",
    drafter: Drafter = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed runs of each; the median counts.")] = 3,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for compare.png.")] = Path(),
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
) -> None:
    """Draw one prompt by plain decoding and by Hawk from one seed, side by side, with a map of accepted drafts."""
    from hawk.compare import compare as run
    from hawk.compare import draw_comparison, origin_counts
    from hawk.pipeline import tokens_sha256
    from hawk.png import check_writable, write_png

    check_writable(out)
    pipe = _pipeline(model, device, dtype, drafter, threads)
    with _image_bar() as bar:
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


@app.command()
def bench(
    methods: Annotated[
        str | None, typer.Option("--methods", help="Names with commas; ar is always run (default: those of the suite).")
    ] = None,
    suite: Annotated[
        str, typer.Option("--suite", help="paper (its methods and hawk) or peers (all there are).")
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
    dtype: Dtype = "float32",
    threads: Threads = None,
    json_out: Annotated[Path | None, typer.Option("--json-out", help="Write the JSON document here too.")] = None,
) -> None:
    """Measure methods side by side in one run, prompt by prompt by turns; medians; the last line is JSON."""
    from hawk.benchmark import bench_methods, bench_prompts, run_benchmark
    from hawk.files import write_json
    from hawk.png import check_writable
    from hawk.report import bench_table

    if json_out is not None:
        check_writable(json_out.parent)
    names = bench_methods(suite, methods)
    chosen = bench_prompts(prompts)
    pipe = _pipeline(model, device, dtype, drafter, threads)
    sampling = {"guidance_scale": cfg_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    overrides = {**sampling, "num_draft_tokens": num_draft_tokens, "window": window}
    with _image_bar() as bar:
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


@app.command()
def verify(
    model: Model = "bundled",
    drafter: Drafter = None,
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="Prompts drawn by the model itself.")] = 4,
    device: Device = "auto",
    threads: Threads = None,
    only_json: Annotated[bool, typer.Option("--json", help="Print the line of JSON alone, no table.")] = False,
) -> None:
    """Prove on this machine that every method is lossless; exit code 1 if one is not."""
    from dataclasses import asdict

    from hawk.benchmark import bench_prompts, identical_images
    from hawk.evaluation.losslessness import Check, prove
    from hawk.report import checks_table

    pipe = _pipeline(model, device, "float32", drafter, threads)
    checks = list(prove())
    same = identical_images(pipe, bench_prompts(str(prompts)))
    settings = f"{pipe.model.name}, float32, {pipe.device.type}"
    measured = f"{same} of {prompts} images identical to ar"
    checks.append(Check("the model itself, same seed", "hawk", "coupled", settings, measured, same >= 0.99 * prompts))
    passed = all(check.passed for check in checks)
    if not only_json:
        Console(width=None if sys.stdout.isatty() else WIDE).print(checks_table(checks))
        failed = sum(not check.passed for check in checks)
        print(f"{len(checks)} checks passed" if passed else f"{failed} of {len(checks)} checks FAILED")
    print(json.dumps({"passed": passed, "checks": [asdict(check) for check in checks]}))
    if not passed:
        raise typer.Exit(1)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="bundled, a model folder, or a hub id owner/name.")] = "bundled",
    as_json: AsJson = False,
) -> None:
    """Say what is in a model folder: sizes, grid, defaults, drafters."""
    from hawk.bundle import load_model
    from hawk.pipeline import model_folder
    from hawk.report import model_facts

    folder = model_folder(model)
    facts = model_facts(folder, load_model(folder))
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(
            name.replace("_", " "),
            ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value),
        )
    Console().print(table)
    if as_json:
        print(json.dumps(facts))


@data_app.command("build")
def data_build(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the shards; an unfinished build goes on.")],
    source: Annotated[
        list[str] | None, typer.Option("--source", help="Only this source; may be repeated (default: all).")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most this many pictures.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Rendering processes.")] = 2,
) -> None:
    """Fetch the pinned public icon sets and render them into captioned, checksummed shards."""
    from dataclasses import asdict

    from hawk.training.data import build_dataset

    report = build_dataset(out, source or None, limit, workers)
    print(json.dumps({**asdict(report), "out": str(report.out)}))


# --- shared parts --------------------------------------------------------------------------------------------


def _pipeline(model: str, device: str, dtype: str, drafter: Path | None, threads: int | None) -> HawkPipeline:
    import torch

    from hawk.pipeline import HawkPipeline

    if threads is not None:
        torch.set_num_threads(threads)
    return HawkPipeline.from_pretrained(model, device, dtype, drafter)


def _said(path: Path, output: PipelineOutput) -> str:
    nfe, length = output.nfe, output.accept_length
    return f"{path}  seed {output.seeds[0]}, {output.seconds[0]:.2f} s, NFE {nfe:.0f}, accept length {length:.2f}"


def _token_bar() -> Progress:
    """A live progress bar in tokens."""
    return _bar(TextColumn("tokens"), TextColumn("{task.fields[accept]}"))


def _image_bar() -> Progress:
    """A progress bar in images that draws only when told, so that it does not disturb what is timed."""
    return _bar(TextColumn("images"), auto_refresh=False)


def _bar(*columns: ProgressColumn, auto_refresh: bool = True) -> Progress:
    """A bar on standard error that goes when it is done; nothing at all where that is no terminal."""
    console = Console(stderr=True)
    parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *columns, TimeElapsedColumn())
    return Progress(*parts, console=console, transient=True, auto_refresh=auto_refresh, disable=not console.is_terminal)
