"""`hawk info`: what a model folder holds."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hawk.cli.options import JsonOption


def info(
    model: Annotated[str, typer.Argument(help="bundled, a model folder, or a hub id owner/name.")] = "bundled",
    as_json: JsonOption = False,
) -> None:
    """Print what a model folder holds: sizes, grid, defaults, drafters. Large weights are not read."""
    from hawk.cli.tables import model_facts
    from hawk.measure.memory import memory_line
    from hawk.models.loading import load_outline, model_folder

    folder = model_folder(model)
    outline = load_outline(folder)
    facts = {**model_facts(folder, outline), "memory": memory_line(outline)}
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(
            name.replace("_", " "),
            ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value),
        )
    Console().print(table)
    if as_json:
        print(json.dumps(facts))
