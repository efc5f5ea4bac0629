"""`hawk data`: build the captioned images that the bundled model is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Build the captioned images that the bundled model is trained on."
)


@data_app.command("build")
def data_build(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the shards; an unfinished build is resumed.")],
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="Use only this source; may be given several times (default: all)."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Render at most this many pictures.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, max=256, help="Number of rendering processes.")] = 2,
) -> None:
    """Fetch the pinned public icon sets and render them into captioned, checksummed shards."""
    from dataclasses import asdict

    from hawk.training.sprites.data import build_dataset

    report = build_dataset(out, source or None, limit, workers)
    print(json.dumps({**asdict(report), "out": str(report.out)}))
