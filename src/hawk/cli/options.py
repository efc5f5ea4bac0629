"""Options and progress bars that the commands share."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from hawk.pipeline import HawkPipeline

WIDE = 140  # columns of a table that goes to a file

Model = Annotated[str, typer.Option("--model", "-m", help="bundled, a model folder, or a hub id owner/name.")]
Drafter = Annotated[
    str | None, typer.Option("--drafter", help="Drafter to use in place of the model's own: a folder or a hub id.")
]
Device = Annotated[str, typer.Option("--device", help="auto (a GPU where there is one), cpu or cuda.")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16; auto is bfloat16 on a CPU with AMX.")
]
Engine = Annotated[
    str, typer.Option("--engine", help="eager, graph or compiled (the last two on a GPU); auto is graph on a GPU.")
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


def load_pipeline(
    model: str, device: str, dtype: str, drafter: str | None, threads: int | None, engine: str = "auto"
) -> HawkPipeline:
    """The pipeline that a command's options name."""
    import torch

    from hawk.pipeline import HawkPipeline

    if threads is not None:
        torch.set_num_threads(threads)
    return HawkPipeline.from_pretrained(model, device, dtype, drafter, engine)


def token_bar() -> Progress:
    """A live progress bar in tokens."""
    return _bar(TextColumn("tokens"), TextColumn("{task.fields[accept]}"))


def image_bar() -> Progress:
    """A progress bar in images that draws only when told, so that it does not disturb what is timed."""
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
    """A bar on standard error that goes when it is done; nothing at all where that is no terminal."""
    console = Console(stderr=True)
    parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *columns, TimeElapsedColumn())
    return Progress(*parts, console=console, transient=True, auto_refresh=auto_refresh, disable=not console.is_terminal)
