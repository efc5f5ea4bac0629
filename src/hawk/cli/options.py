"""Options, progress bars and consoles that several commands share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from hawk.errors import HawkError

if TYPE_CHECKING:
    from typer import Context as Context

    from hawk.pipeline import HawkPipeline
else:
    Context = typer.Context.__mro__[-2]
    """What typer passes: an instance of `typer.Context`'s base class, whose package differs between versions."""

WIDE = 140
"""Columns of a wide table that is written to a file or a pipe."""
MOST_OF_A_PROMPT = 100_000
"""The most images of one prompt that a command draws to measure something."""

ModelOption = Annotated[str, typer.Option("--model", "-m", help="bundled, a model folder, or a hub id owner/name.")]
DrafterOption = Annotated[
    str | None, typer.Option("--drafter", help="A drafter to use instead of the model's own: a folder or a hub id.")
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto (a CUDA GPU where there is one), cpu, cuda, or mps (an Apple GPU).")
]
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="auto, float32, bfloat16 or float16. auto is bfloat16 on a CPU with AMX or AVX512_BF16 and for a large "
        "model on a GPU, and float16 (weights only) on other x86 CPUs.",
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        help="eager, graph or compiled (the last two need a CUDA GPU); auto is graph on a CUDA GPU, else eager.",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads (default: PyTorch's choice).")
]
CfgScaleOption = Annotated[
    float | None, typer.Option("--cfg-scale", help="Scale of classifier-free guidance; 1 or less turns it off.")
]
TemperatureOption = Annotated[float | None, typer.Option("--temperature", help="Sampling temperature; 0 is greedy.")]
TopKOption = Annotated[
    int | None, typer.Option("--top-k", help="Sample from the k most likely tokens; 0 turns it off.")
]
TopPOption = Annotated[
    float | None,
    typer.Option("--top-p", help="Sample from the most likely tokens that hold this probability; 1 turns it off."),
]
DraftTokensOption = Annotated[
    int | None,
    typer.Option("--num-draft-tokens", min=1, help="Most drafts verified in one forward (default: measured)."),
]
WindowOption = Annotated[
    int | None, typer.Option("--window", min=1, help="How many positions past the frontier drafts may reach.")
]
VerifierOption = Annotated[
    str | None,
    typer.Option("--verifier", help="coupled, residual, traversal or relaxed (LOSSY); default: that of the method."),
]
RayOption = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Draw on a Ray cluster: its address (HOST:PORT or auto), or local."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one line of JSON last.")]


def check_printable(text: str) -> None:
    """Raise `HawkError` for text that standard output cannot print in its encoding."""
    try:
        text.encode(sys.stdout.encoding or "utf-8", sys.stdout.errors or "strict")
    except UnicodeEncodeError as error:
        raise HawkError(unprintable(error)) from error


def unprintable(error: UnicodeEncodeError) -> str:
    """What a `HawkError` says of text that an encoding lacks."""
    lacking = error.object[error.start : error.end][:20]
    return f"cannot print {lacking!a} in the encoding {error.encoding}: use a UTF-8 locale, as LC_ALL=C.UTF-8"


def load_pipeline(
    model: str, device: str, dtype: str, drafter: str | None, threads: int | None, engine: str = "auto"
) -> HawkPipeline:
    """Load the pipeline that the options of a command describe."""
    import torch

    from hawk.pipeline import HawkPipeline

    if threads is not None:
        torch.set_num_threads(threads)
    return HawkPipeline.from_pretrained(model, device, dtype, drafter, engine)


def wide_console() -> Console:
    """A console for wide tables: as wide as the terminal, or `WIDE` columns if standard output is no terminal."""
    return Console(width=None if sys.stdout.isatty() else WIDE)


def token_bar() -> Progress:
    """A live progress bar in tokens."""
    return _bar(TextColumn("tokens"), TextColumn("{task.fields[accept]}"))


def image_bar() -> Progress:
    """A progress bar in images that is drawn only on request, so that it does not disturb what is timed."""
    return _bar(TextColumn("images"), auto_refresh=False)


def proof_bar() -> Progress:
    """A live progress bar in proofs."""
    return _bar(TextColumn("proofs"))


def byte_bar() -> Progress:
    """A live progress bar in bytes."""
    console = Console(stderr=True)
    parts = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    return Progress(*parts, console=console, transient=True, disable=not console.is_terminal)


def _bar(*columns: ProgressColumn, auto_refresh: bool = True) -> Progress:
    """A progress bar on standard error that disappears when it is done; none if standard error is no terminal."""
    console = Console(stderr=True)
    parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *columns, TimeElapsedColumn())
    return Progress(*parts, console=console, transient=True, auto_refresh=auto_refresh, disable=not console.is_terminal)
