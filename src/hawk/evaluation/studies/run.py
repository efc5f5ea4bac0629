"""All studies by name, and how one is run: its figures and its plot are written to a folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from hawk.decoding.arguments import name_of
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.acceptance import knowing
from hawk.evaluation.studies.acceptance import ACCEPTANCE_MAP, ENTROPY
from hawk.evaluation.studies.attention import ATTENTION
from hawk.evaluation.studies.heads import DIVERGENCE, HEADS
from hawk.evaluation.studies.residual import RESIDUAL
from hawk.evaluation.studies.settings import SETTINGS
from hawk.evaluation.studies.study import Album, Setting, Study
from hawk.files import write_json
from hawk.machine import machine_facts
from hawk.pictures.plots import figure_class, save_figure
from hawk.pipeline import HawkPipeline

STUDIES: dict[str, Study] = {
    study.name: study for study in (ATTENTION, HEADS, DIVERGENCE, RESIDUAL, ACCEPTANCE_MAP, ENTROPY, SETTINGS)
}
COLOURS = 160
"""Colours of a plot, few enough that a plot with pictures stays below 100 KB."""
DIGITS = 5
"""Significant digits of the figures in a JSON document."""


def studies_named(name: str) -> list[Study]:
    """The study of that name, or all of them for "all"; `HawkError` with all names for an unknown one."""
    if name == "all":
        return list(STUDIES.values())
    return [STUDIES[name_of("study", name, (*STUDIES, "all", "list"))]]


def run_study(
    study: Study, album: Album, out: Path, command: str, on_document: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Run one study on an album; write `out/NAME.json` and `out/NAME.png`, and return the JSON document.

    Args:
        on_document: is called with the document before anything is written, so that a full disk does not lose it.

    What `hawk` learnt about its drafts in earlier images is put aside, so that a study depends on its setting alone.

    Raises:
        HawkError: matplotlib or a drafter is missing, or the model is of a kind that the study cannot look into.
        OSError: the disk is full, or there is no permission.
    """
    pipe, setting = album.pipe, album.setting
    figure = figure_class()(figsize=study.size, layout="constrained")
    started = time.perf_counter()
    with pipe.timed(), knowing(pipe, setting.params, 0.0):
        found = study.measure(album)
    document = document_of(study, pipe, setting, command, time.perf_counter() - started, found)
    if on_document is not None:
        on_document(document)
    study.plot(figure, found)
    figure.suptitle(caption(pipe, setting), fontsize=9)
    save_figure(figure, out / f"{study.name}.png", dpi=100, colours=COLOURS)
    write_json(out / f"{study.name}.json", document)
    return document


def document_of(
    study: Study, pipe: HawkPipeline, setting: Setting, command: str, seconds: float, found: Any
) -> dict[str, Any]:
    """The JSON document of a study: its figures, and all that they depend on."""
    grid = pipe.model.grid
    return {
        "study": study.name,
        "shows": study.shows,
        "command": command,
        "model": pipe.model.name,
        "fingerprint": pipe.model.fingerprint,
        "grid": [grid.height, grid.width],
        "images": setting.images,
        "seed": setting.seed,
        "method": setting.beside,
        **asdict(setting.params),
        **machine_facts(pipe.device, pipe.dtype),
        "seconds": rounded(seconds),
        "figures": rounded(found),
    }


def rounded(value: Any) -> Any:
    """Dataclasses, lists and numbers as JSON values; numbers have `DIGITS` digits, fields that are `plot_only` go."""
    if is_dataclass(value) and not isinstance(value, type):
        told = [each.name for each in fields(value) if not each.metadata.get("plot only")]
        return {name: rounded(getattr(value, name)) for name in told}
    if isinstance(value, dict):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def caption(pipe: HawkPipeline, setting: Setting) -> str:
    """The line above a plot: model, images and sampling parameters."""
    return f"{pipe.model.name}, {setting.images} images, {sampling_text(setting.params)}"


def sampling_text(params: SamplingParams) -> str:
    """Sampling parameters as people read them; filters that are off are left out."""
    told = [f"temperature {params.temperature:g}", f"CFG scale {params.cfg_scale:g}"]
    told += [f"top-k {params.top_k}"] if params.top_k else []
    told += [f"top-p {params.top_p:g}"] if params.top_p < 1 else []
    return ", ".join(told)
