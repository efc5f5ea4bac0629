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
from rich.table import Table
from typer.core import TyperGroup

from hawk import __version__
from hawk.cli_convert import convert_app
from hawk.cli_measure import bench, compare, verify
from hawk.cli_shared import (
    AsJson,
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
    load_pipeline,
    token_bar,
)
from hawk.cli_train import train_app
from hawk.errors import HawkError

if TYPE_CHECKING:
    from hawk.pipeline import HawkPipeline, PipelineOutput

USAGE, INTERRUPTED = 2, 130
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
app.add_typer(convert_app, name="convert")


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
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="hawk, ar, medusa, hawk-vertical, hawk-paper, hawk-spatial, eagle, eagle-topk, sjd, scd, "
            "scd-maximal, sjd-pac or lantern (LOSSY: not the distribution of plain decoding).",
        ),
    ] = "hawk",
    verifier: Annotated[
        str | None,
        typer.Option("--verifier", help="coupled, residual, traversal or relaxed (LOSSY); default: the method's own."),
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
    dtype: Dtype = "auto",
    threads: Threads = None,
    engine: Engine = "auto",
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
    pipe = load_pipeline(model, device, dtype, drafter, threads, engine)
    pipe.condition(prompts, height, width)  # a bad prompt fails before the first image is drawn
    reports: list[dict[str, Any]] = []
    said: list[str] = []
    try:
        with token_bar() as bar:
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


for command in (compare, bench, verify):
    app.command()(command)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="bundled, a model folder, or a hub id owner/name.")] = "bundled",
    as_json: AsJson = False,
) -> None:
    """Say what is in a model folder: sizes, grid, defaults, drafters."""
    from hawk.loading import device_named, load_on, model_folder
    from hawk.report import model_facts

    folder = model_folder(model)
    facts = model_facts(folder, load_on(folder, device_named("cpu"), "bfloat16", None, pack=False))
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


def _said(path: Path, output: PipelineOutput) -> str:
    nfe, length = output.nfe, output.accept_length
    lossy = "" if output.lossless else ", LOSSY: not distributed as plain decoding's"
    line = f"{path}  seed {output.seeds[0]}, {output.seconds[0]:.2f} s, NFE {nfe:.0f}, accept length {length:.2f}"
    return line + lossy
