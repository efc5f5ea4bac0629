"""What the commands print and write: tables, reports and PNG metadata of images, facts about a model folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hawk.drafters.methods import method_named
from hawk.drafters.parts import DraftParts
from hawk.measure.compare import Comparison, origin_counts
from hawk.measure.methods import DEPTHS, BenchResult, MethodRow
from hawk.models.protocol import Model
from hawk.outputs import image_settings
from hawk.pipeline import HawkPipeline, PipelineOutput, tokens_sha256

if TYPE_CHECKING:
    from hawk.measure.fair import FairResult
    from hawk.measure.scaling import ScalingResult
    from hawk.measure.steps import StepsResult
    from hawk.measure.targets import TargetsResult
    from hawk.proofs.losslessness import Check


def image_report(
    pipe: HawkPipeline, output: PipelineOutput, index: int, prompt: str, method: str, path: Path
) -> dict[str, Any]:
    """What `hawk generate --json` reports of image `index`; the counts are those of its batch."""
    stats = output.stats[index]
    return {
        "method": method,
        "seed": output.seeds[index],
        "tokens_sha256": tokens_sha256(output.tokens[index]),
        "nfe": stats.nfe,
        "accept_length": stats.accept_length,
        "seconds": output.seconds[index],
        "path": str(path),
        "prompt": prompt,
        "model": pipe.model.name,
        "device": pipe.device.type,
        **image_settings(output.params, output.grid, pipe.model.cell, output.verifier, pipe.dtype),
        "acceptance_rate": stats.acceptance_rate,
        "accepted_by_source": stats.accepted_by_source,
    }


def comparison_table(result: Comparison) -> Table:
    """The table of `hawk compare`."""
    table = Table(title=f'"{result.prompt}", seed {result.seed}', title_justify="left")
    for column in ("method", "seconds", "NFE", "accept length", "speed-up", "identical"):
        table.add_column(column, justify="left" if column == "method" else "right")
    identical = f"no ({result.differing} tokens)" if result.differing else "yes"
    for run, speedup, same in ((result.plain, 1.0, ""), (result.hawk, result.speedup, identical)):
        output = run.output
        figures = (f"{run.seconds:.2f}", f"{output.nfe:.0f}", f"{output.accept_length:.2f}", f"{speedup:.2f}x")
        table.add_row(run.method, *figures, same)
    return table


def comparison_report(result: Comparison, model: str, path: Path) -> dict[str, Any]:
    """The JSON document that `hawk compare` prints last; `path` is that of the picture."""
    figures_of = {
        run.method: {
            "seconds": run.seconds,
            "nfe": run.output.nfe,
            "accept_length": run.output.accept_length,
            "tokens_sha256": tokens_sha256(run.output.tokens[0]),
        }
        for run in (result.plain, result.hawk)
    }
    return {
        "prompt": result.prompt,
        "seed": result.seed,
        "model": model,
        "identical": result.differing == 0,
        "speedup": result.speedup,
        **figures_of,
        "accepted_by": dict(origin_counts(result.hawk.output)),
        "path": str(path),
    }


def bench_table(result: BenchResult) -> Table:
    """The table of the method suites."""
    environment = result.environment
    where = f"{environment['processor']}, {environment['threads']} threads, {environment['dtype']}"
    caption = "dist.: the verifier keeps the distribution, not the tokens of a seed"
    if not all(row.lossless for row in result.rows):
        caption += "; LOSSY: the method changes the distribution"
    title = f"{environment['model']} on {where}"
    table = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),  # so that all columns fit into a terminal of 80 columns
    )
    heads = (
        "NFE",
        "accept\nlength",
        "accepted at\ndepth 1 2 3",
        "s per\nimage",
        "speed\nup",
        "same\nas ar",
        "ms per\nforward",
    )
    table.add_column("method", no_wrap=True)
    table.add_column("verifier", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in result.rows:
        rates = " ".join(f"{rate:.2f}".lstrip("0") for rate in row.acceptance_rate[:DEPTHS]) or "-"
        table.add_row(
            method_named(row.method).label,
            "-" if row.method == "ar" else row.verifier,
            f"{row.nfe:.1f}",
            f"{row.accept_length:.2f}",
            rates,
            f"{row.seconds_per_image:.2f}",
            f"{row.speedup_vs_ar:.2f}x",
            same_as_ar(row),
            f"{row.ms_per_forward:.1f}",
        )
    return table


def fair_tables(result: FairResult) -> list[Table]:
    """The tables of the fair suite: one for each setting and batch size, and one of the forwards at equal nodes."""
    tables: dict[tuple[str, int], Table] = {}
    heads = ("method", "shape", "chosen by", "NFE", "accept length", "s per image", "speed-up", "95 %", "same as ar")
    for one in result.rows:
        key, row = (one.setting, one.batch), one.row
        if key not in tables:
            title = f"{one.setting}, {'one image' if one.batch == 1 else f'{one.batch} images'} at a time"
            tables[key] = Table(title=title, title_justify="left", box=None)
            for head in heads:
                tables[key].add_column(head, justify="left" if head in heads[:3] else "right")
        span = "-" if one.speedup is None else f"{one.speedup.low:.2f} - {one.speedup.high:.2f}"
        figures = (f"{row.nfe:.1f}", f"{row.accept_length:.2f}", f"{row.seconds_per_image:.3f}")
        fast = (f"{row.speedup_vs_ar:.2f}x", span)
        tables[key].add_row(
            method_named(row.method).label, one.shape or "-", one.chosen, *figures, *fast, same_as_ar(row)
        )
    equal = Table(title="forwards an image at equal nodes a step", title_justify="left", box=None)
    for head in ("setting", "nodes", "hawk", "best lossless rival", "its forwards", "hawk needs"):
        equal.add_column(head, justify="left" if head in ("setting", "best lossless rival") else "right")
    for each in result.equal_nodes:
        figures = (each.rival, f"{each.rival_nfe:.1f}", f"{each.fewer:.2f}x fewer")
        equal.add_row(each.setting, str(each.nodes), f"{each.hawk:.1f}", *figures)
    return [*tables.values(), *([equal] if result.equal_nodes else [])]


def same_as_ar(row: MethodRow) -> str:
    """What a method keeps of plain AR: the share of images that are the same, "dist." (the distribution) or "LOSSY"."""
    if not row.lossless:
        return "LOSSY"
    return f"{row.identical_to_ar:.0%}" if row.verifier == "coupled" else "dist."


def scaling_table(result: ScalingResult) -> Table:
    """The table of the scaling suite."""
    growth = ", ".join(f"{name} tokens^{k:.2f}" for name, k in result.exponents.items())
    caption = "; ".join([f"time of an image grows as {growth}", *(f"left out: {what}" for what in result.left_out)])
    table = Table(title="how cost grows", title_justify="left", caption=caption, caption_justify="left", box=None)
    for head in ("axis", "series", "at", "ms", "per"):
        table.add_column(head, justify="right" if head in ("at", "ms") else "left")
    for cost in result.costs:
        table.add_row(cost.axis, cost.series, f"{cost.at:g}", f"{1000 * cost.seconds:.1f}", cost.unit)
    return table


def steps_table(result: StepsResult) -> Table:
    """The table of the steps suite."""
    caption = "; ".join(
        [
            f"floor: reading the weights once at {result.bandwidth / 1e9:.0f} GB/s",
            f"{result.identical} of {result.images} images have the tokens of plain AR",
            f"{result.identical_in_shape} of {min(2, result.images)} those of plain AR at the window's shape",
            *(f"left out: {what}" for what in result.left_out),
        ]
    )
    table = Table(title="what a step costs", title_justify="left", caption=caption, caption_justify="left", box=None)
    sizes, times = ("target", "grid", "images", "nodes"), ("step ms", "noise ms", "forward ms")
    for head in (*sizes, *times, "step/forward", "drafting", "floor ms", "tokens a step"):
        table.add_column(head, justify="left" if head == "target" else "right")
    for cost in result.costs:
        seconds = [f"{1000 * t:.2f}" for t in (cost.step, cost.noise, cost.forward)]
        grid, known = "x".join(map(str, cost.grid)), f"{cost.committed:.2f}" if cost.committed else "-"
        shares = (f"{cost.over_forward:.2f}", f"{cost.drafting:.1%}", f"{1000 * cost.floor:.2f}", known)
        table.add_row(cost.target, grid, str(cost.images), str(cost.nodes), *seconds, *shares)
    return table


def targets_tables(result: TargetsResult) -> list[Table]:
    """The two tables of the targets suite: how fast each series draws, and what a step costs."""
    speeds = Table(title="large shapes, random weights", title_justify="left", box=None)
    for head in ("target", "series", "drafts given", "window", "tokens a step", "ms a token", "speed-up", "over ar"):
        speeds.add_column(head, justify="left" if head in ("target", "series") else "right")
    for one in result.series:
        given, reach = "-" if one.given is None else f"{one.given:g}", "-" if one.reach is None else str(one.reach)
        figures = (f"{one.accept_length:.2f}", f"{1000 * one.seconds_per_token:.1f}")
        ratios = (f"{one.speedup_vs_transformers:.2f}x", f"{one.speedup_vs_ar:.2f}x")
        speeds.add_row(one.target, one.series, given, reach, *figures, *ratios)
    caption = "; ".join(f"transformers on {facts.target}: {facts.rival}" for facts in result.targets)
    steps = Table(
        title="ms a step by its nodes", title_justify="left", caption=caption, caption_justify="left", box=None
    )
    widths = list(result.targets[0].step_seconds)
    for head in ("target", "GB", *map(str, widths)):
        steps.add_column(head, justify="left" if head == "target" else "right")
    for facts in result.targets:
        costs = (f"{1000 * facts.step_seconds[nodes]:.0f}" for nodes in widths)
        steps.add_row(facts.target, f"{facts.weight_bytes / 1e9:.1f}", *costs)
    return [speeds, steps]


def checks_table(checks: list[Check]) -> Table:
    """The table of the checks of `hawk verify`, each with the level of "the same image" that it belongs to.

    A level that does not hold is no failure where it is not promised.
    """
    from hawk.proofs.suite import LevelCheck

    table = Table()
    for head in ("check", "level", "method", "verifier", "settings", "measured", "result"):
        table.add_column(head)
    for check in checks:
        passed, level = "[green]ok[/green]" if check.lossless else "[yellow]lossy[/yellow]", 1
        if isinstance(check, LevelCheck):
            passed, level = passed if check.holds else "[yellow]not promised[/yellow]", check.level
        result = passed if check.passed else "[bold red]FAILED[/bold red]"
        table.add_row(check.name, str(level), check.method, check.verifier, check.settings, check.measured, result)
    return table


def model_facts(folder: Path, model: Model) -> dict[str, Any]:
    """What `hawk info` prints of a model folder."""
    drafting: dict[str, Any] | str = "none: train one with `hawk train drafter --kind heads`"
    if model.drafting is not None:
        drafting = drafting_facts(model.drafting, model.target.parameter_count)
    grid, cell = model.grid, model.cell
    return {
        "name": model.name,
        "folder": str(folder),
        "megabytes": round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1),
        **model.facts(),
        "grid": f"{grid.height}x{grid.width} tokens, {grid.height * cell}x{grid.width * cell} pixels",
        "defaults": asdict(model.defaults),
        "drafter": drafting,
    }


def drafting_facts(parts: DraftParts, of_target: int) -> dict[str, Any]:
    """What `hawk info` prints of a trained drafter; `of_target` is the target's number of parameters."""
    heads, spatial = parts.heads, parts.spatial
    own = sum(parameter.numel() for module in parts.modules for parameter in module.parameters())
    return {
        "sources": list(parts.fused.sources),
        "heads": {"horizontal": heads.config.horizontal, "vertical": heads.config.vertical} if heads else None,
        "spatial": {"layers": spatial.config.layers, "width": spatial.config.width} if spatial else None,
        "parameters": own,
        "share_of_target": f"{own / of_target:.1%}",
    }
