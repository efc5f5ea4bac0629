"""`hawk info`: what a model folder holds."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hawk.cli.options import DeviceOption, DtypeOption, EngineOption, JsonOption, ThreadsOption
from hawk.errors import HawkError

if TYPE_CHECKING:
    from hawk.models.protocol import Model
    from hawk.pipeline import HawkPipeline


def info(
    model: Annotated[str, typer.Argument(help="bundled, a model folder, or a hub id owner/name.")] = "bundled",
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Load the model and time its steps again; hawk's window follows from them."),
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a model folder holds: sizes, grid, defaults, drafters, and the window of `hawk` on this machine.

    Large weights are not read, except with --measure.
    """
    from hawk.cli.options import load_pipeline
    from hawk.cli.tables import model_facts
    from hawk.decoding.planning import costs_file
    from hawk.measure.memory import memory_line
    from hawk.models.loading import load_outline, model_folder

    folder = model_folder(model)
    outline = load_outline(folder)
    unkept = measured_window(load_pipeline(model, device, dtype, None, threads, engine)) if measure else None
    window = unkept or window_facts(folder, outline, device, dtype, engine, threads)
    facts = {**model_facts(folder, outline), "memory": memory_line(outline), "window": window}
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(
            name.replace("_", " "),
            ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value),
        )
    Console().print(table)
    if as_json:
        print(json.dumps(facts))
    if unkept:
        raise HawkError(f"cannot write {costs_file()}: the costs of steps are not kept")


def measured_window(pipe: HawkPipeline) -> dict[str, Any] | None:
    """Time the steps again. None where their costs are kept, or none are needed; otherwise the window by these costs.

    Costs are not kept where their file cannot be written.
    """
    from hawk.decoding.planning import kept_costs
    from hawk.drafters.methods import UNTRAINED

    own, before = (pipe.model.drafting or UNTRAINED).fused, kept_costs()
    pipe.measure()
    fused = pipe.priced.fused
    if fused is own or kept_costs() != before:
        return None
    return {"reach": fused.refresh or fused.window, "steps timed": "now, not kept"}


def window_facts(
    folder: Path, model: Model, device: str, dtype: str, engine: str, threads: int | None
) -> dict[str, Any] | str:
    """The window of `hawk` on this machine and the age of the step costs that it follows from; measures nothing."""
    import torch

    from hawk.drafters.methods import UNTRAINED
    from hawk.drafters.settings import known_window
    from hawk.machine import machine_name
    from hawk.models.loading import DTYPES, device_named, dtype_named, engine_named, is_large

    if threads is not None:
        torch.set_num_threads(threads)
    on = device_named(device)
    machine = machine_name(on, DTYPES[dtype_named(dtype, on, is_large(folder))])
    settings = (model.drafting or UNTRAINED).fused
    known = known_window(settings, model.fingerprint, machine, engine_named(engine, on))
    if known is None:
        return "not chosen yet: the first image times steps, as does `hawk info --measure`"
    if known.measured is None:
        return {"reach": known.reach, "steps timed": "with the drafter, or by an earlier version of Hawk"}
    days = (date.today() - known.measured).days
    return {"reach": known.reach, "steps timed": known.measured.isoformat(), "days ago": days}
