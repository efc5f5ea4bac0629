"""`hawk eval`: the command line of `hawk.evaluation`."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from hawk.evaluation.features import FeatureExtractor
    from hawk.evaluation.prompt_sets import PromptSet
    from hawk.evaluation.report import Asked, Report
    from hawk.evaluation.run import EvalJob
    from hawk.pipeline import HawkPipeline


def evaluate(
    methods: Annotated[
        str,
        typer.Option("--methods", help="Method names with commas between; ar and its control ar~ are always drawn."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for pictures and report; a rerun continues there.")],
    prompts: Annotated[
        str,
        typer.Option(
            "--prompts",
            help="Number of built-in prompts, a file with one prompt a line, or the name of a prompt set: coco, "
            "flickr30k, parti, geneval, dpg, compbench, hps or text (with --prompt-file).",
        ),
    ] = "24",
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", help="File or folder of the prompt set, as its authors publish it.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Draw only the first so many prompts of the set.")
    ] = None,
    images: Annotated[
        int, typer.Option("--images", "-n", min=1, max=MOST_OF_A_PROMPT, help="Images of each prompt.")
    ] = 4,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            help="frechet, precision, recall, density, coverage, nearest, copied (both with --references), vendi, "
            "diversity, faithfulness (of drawn scenes); and the levels of losslessness tokens, laws, tests; with "
            "commas between (default: all that can be had). By large networks: clip, hpsv2, imagereward, lpips.",
        ),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option("--references", help="Folder of real pictures to compare with (default: ar's)."),
    ] = None,
    crop_references: Annotated[
        bool,
        typer.Option("--crop-references", help="Cut the middle of each reference to the drawn images' shape and size."),
    ] = False,
    extractor: Annotated[
        str, typer.Option("--extractor", help="Network of the features: efficientnet or inception.")
    ] = "efficientnet",
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            help="NAME=PATH: file of weights of clip, hpsv2, imagereward, lpips or inception; may be given several "
            "times (default: what the package fetched).",
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", min=10, max=100_000, help="Bootstrap resamples of each confidence interval.")
    ] = 200,
    score_only: Annotated[
        bool,
        typer.Option("--score-only", help="Draw nothing: score the pictures in OUT, drawn on any device in any dtype."),
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images decoded together.")] = 1,
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
    """Draw many images by several methods and report how far they are from plain AR, with a page to look at.

    The methods take turns on every batch. A run that was stopped at any moment is continued by the same command, with
    at most one batch lost. OUT/report.html and OUT/report.json hold the result. To score on another machine than the
    one that draws, draw with --metrics tokens, copy OUT, and add --score-only to the command there.
    """
    from hawk.evaluation.elsewhere import as_drawn, drawing_of, refuse_missing
    from hawk.evaluation.features import extractor_named
    from hawk.evaluation.learned import learned_scores, weights_named
    from hawk.evaluation.locking import sole_owner
    from hawk.evaluation.prompt_sets import reference_pictures
    from hawk.evaluation.report import Asked, References, needs_features
    from hawk.evaluation.run import eval_job, eval_methods, first_items, open_job
    from hawk.evaluation.scoring import OF_REFERENCES, metrics_named, metrics_of
    from hawk.models.arguments import OPTIONS, sampling_params

    check_printable(str(out))
    command = shlex.join(["hawk", *sys.argv[1:]])
    drawing = drawing_of(out) if score_only else None
    names = metrics_named(metrics)
    if metrics is not None and references is None and {*names} & {*OF_REFERENCES}:
        raise HawkError(
            f"the metrics {' and '.join(OF_REFERENCES)} need --references: name the folder, or leave them out"
        )
    whole = prompt_set(prompts, prompt_file)
    chosen = first_items(whole, limit)
    files = weights_named(weights or [])
    unused = [name for name in files if name not in (*names, extractor)]
    if unused:
        raise HawkError(f"--weights {unused[0]}=PATH means nothing, since {unused[0]} is not asked for: leave it out")
    if "lpips" in names and images < 2:
        raise HawkError("the metric lpips compares the images of a prompt: ask for 2 or more with --images")
    network = None
    if needs_features(names):
        given = files.get("inception")
        network = extractor_named(extractor) if given is None else extractor_named(extractor, weights=given)
    learned = learned_scores(names, files)
    real = None if references is None else References(references, crop_references)
    if crop_references and real is None:
        raise HawkError("--crop-references means nothing without --references: name the folder, or leave it out")
    if real is not None:
        reference_pictures(chosen, real.folder)
    pipe = load_pipeline(model, device, dtype, drafter, threads, engine)
    if metrics is None:
        names = metrics_of(pipe.model.name)
    params = sampling_params(pipe.model, cfg_scale, temperature, top_k, top_p, OPTIONS)
    job = eval_job(pipe, eval_methods(methods, pipe.model.drafting), chosen, images, batch_size, params)
    if drawing is not None:
        job = as_drawn(pipe, job, drawing)
    open_job(job, out)  # a folder of other files is refused before a lock is put there
    asked = Asked(names, real, learned, resamples, command, len(whole.items))
    with sole_owner(out):
        if score_only:
            refuse_missing(job, out)
        report = drawn_and_scored(pipe, job, out, asked, network, draws=not score_only)
    print_summary(report, out)


def drawn_and_scored(
    pipe: HawkPipeline,
    job: EvalJob,
    out: Path,
    asked: Asked,
    network: FeatureExtractor | None,
    draws: bool = True,
) -> Report:
    """Draw what the folder lacks of the job if `draws`, and write the report, with a progress bar for both."""
    from hawk.evaluation.report import evaluate as score
    from hawk.evaluation.run import draw_all

    with image_bar() as bar:
        task = bar.add_task("drawing", total=len(job.methods) * len(job.pairs))

        def drawn(done: int, total: int, method: str) -> None:
            bar.update(task, completed=done, total=total, description=f"drew {method}", refresh=True)

        if draws:
            draw_all(pipe, job, out, drawn)
        show = partial(bar.update, task, refresh=True)
        return score(pipe, job, out, asked, network, lambda what: show(description=what))


def prompt_set(wanted: str, file: Path | None) -> PromptSet:
    """The prompts: the first N built-in ones for a number N, a named set from its file, or a text file.

    Raises:
        HawkError: there is no such set or file, or the file is not in the set's format.
    """
    from hawk.evaluation.prompt_sets import SETS, built_in_prompts, read_prompt_set
    from hawk.evaluation.run import first_items

    if wanted in SETS:
        if file is None:
            raise HawkError(f"--prompts {wanted} needs --prompt-file: the file of the set, as its authors publish it")
        return read_prompt_set(wanted, file)
    if file is not None:
        raise HawkError(f"--prompt-file goes with the name of a set, not with {wanted!r}: one of {', '.join(SETS)}")
    if not wanted.isdecimal():
        if not Path(wanted).is_file():
            raise HawkError(
                f"there is no prompt set and no file {wanted!r}: give a number, a text file with one prompt a line, or "
                f"one of {', '.join(SETS)} with --prompt-file"
            )
        return read_prompt_set("text", Path(wanted))
    built_in = built_in_prompts()
    if not 1 <= int(wanted) <= len(built_in.items):
        raise HawkError(f"choose 1 to {len(built_in.items)} built-in prompts, not {wanted}, or name a file of prompts")
    return first_items(built_in, int(wanted))


def print_summary(report: Report, out: Path) -> None:
    """Print a line for each method, the warnings, and where the report lies."""
    for verdict in report.verdicts:
        placed = report.placed[verdict.method]
        said = [part for part in (verdict.tokens, verdict.laws, verdict.tests) if part]
        judged = len(placed["inside"]) + len(placed["outside"])
        if judged:
            off = f" (outside: {', '.join(placed['outside'])})" if placed["outside"] else ""
            said.append(f"{len(placed['inside'])} of {judged} figures inside the AR-AR interval{off}")
        print(f"{verdict.label}: {'; '.join(said) or 'nothing was compared'}")
    for warning in report.warnings:
        print(f"hawk: {warning}", file=sys.stderr)
    print(f"wrote {out / 'report.json'} and {out / 'report.html'}")
