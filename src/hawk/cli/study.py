"""`hawk study`: the command line of `hawk.evaluation.studies`."""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hawk.cli.options import (
    MOST_OF_A_PROMPT,
    CfgScaleOption,
    DeviceOption,
    DrafterOption,
    DtypeOption,
    EngineOption,
    ModelOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    check_printable,
    image_bar,
    load_pipeline,
)
from hawk.errors import HawkError

WITH_METHOD = ("acceptance-map", "entropy", "settings")
"""The studies that show a method beside `hawk`."""


def study(
    name: Annotated[str, typer.Argument(help="A study, all, or list, which says what each study shows.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for NAME.json and NAME.png.")] = Path("studies"),
    images: Annotated[
        int | None,
        typer.Option(
            "--images", "-n", min=1, max=MOST_OF_A_PROMPT, help="Images of a study (default: 8; settings: 4 a point)."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first image; the others follow it.")] = 0,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="Method beside hawk in acceptance-map, entropy (default: hawk-paper) and settings (default: none).",
        ),
    ] = None,
    model: ModelOption = "bundled",
    drafter: DrafterOption = None,
    cfg_scale: CfgScaleOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    engine: EngineOption = "auto",
) -> None:
    """Study a property of the model that the paper reports, and write the figures and a plot.

    Images are drawn at temperature 1 and CFG scale 3, unless options say otherwise. The study's JSON document is also
    printed as the last line. `hawk study all` leaves out the studies whose drafters the model lacks, and says so.
    """
    from hawk.drafters.methods import method_named
    from hawk.evaluation.studies.run import STUDIES, run_study, studies_named
    from hawk.evaluation.studies.study import CFG_SCALE, TEMPERATURE, Album, Setting, StudyImage
    from hawk.models.arguments import OPTIONS, sampling_params
    from hawk.pictures.plots import figure_class
    from hawk.pictures.png import check_writable

    if name == "list":
        width = max(map(len, STUDIES))
        for each in STUDIES.values():
            print(f"{each.name:{width}}  {each.shows}")
        return
    check_printable(str(out))
    check_writable(out)
    command = shlex.join(["hawk", *sys.argv[1:]])
    chosen = studies_named(name)
    if method is not None:
        method_named(method)
        if name not in ("all", *WITH_METHOD):
            raise HawkError(f"--method means nothing for the study {name}: leave it out")
    figure_class()
    pipe = load_pipeline(model, device, dtype, drafter, threads, engine)
    scale = CFG_SCALE if cfg_scale is None else cfg_scale
    params = sampling_params(
        pipe.model, scale, TEMPERATURE if temperature is None else temperature, top_k, top_p, OPTIONS
    )
    documents: list[dict[str, Any]] = []
    kept: dict[tuple[Any, ...], StudyImage] = {}  # images that several studies look at are drawn once
    for each in chosen:
        album = Album(pipe, Setting(images or each.images, seed, params, method), kept=kept)
        with image_bar() as bar:
            task = bar.add_task(each.name, total=each.draws(pipe, album.setting))
            album.on_image = partial(bar.update, task, advance=1, refresh=True)
            try:
                run_study(each, album, out, command, documents.append)
            except OSError:
                if documents:
                    print_documents(name, documents)
                raise
            except HawkError as error:
                if len(chosen) == 1:
                    raise
                print(f"hawk: left out: {error}", file=sys.stderr)
                continue
        print(f"{each.name}: wrote {out / each.name}.json and .png in {documents[-1]['seconds']:.0f} s")
    if not documents:
        raise HawkError("no study could be made of this model")
    print_documents(name, documents)


def print_documents(name: str, documents: list[dict[str, Any]]) -> None:
    """Print the line of JSON of what `name` stands for: one study, or all of them by their names."""
    print(json.dumps(documents[0] if name != "all" else {each["study"]: each for each in documents}))
