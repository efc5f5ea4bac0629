"""`hawk batch`: the command line of `hawk.batch`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hawk.cli.options import (
    CfgScaleOption,
    DeviceOption,
    DrafterOption,
    DraftTokensOption,
    DtypeOption,
    EngineOption,
    ModelOption,
    RayOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    VerifierOption,
    WindowOption,
    check_printable,
    image_bar,
)
from hawk.errors import HawkError

if TYPE_CHECKING:
    from hawk.batch.job import Job, Settings
    from hawk.batch.run import Runner, Summary

SOME_FAILED = 1
"""The exit code of a job that is complete but for rows in failures.jsonl."""
PROCESSES_OF_A_CPU = 4
"""The most processes for each CPU of this machine: thousands of them, each with a model, would fill its memory."""


def batch(
    prompts: Annotated[
        Path,
        typer.Argument(
            metavar="PROMPTS", help="File of prompts: .parquet, .jsonl, .csv (all with a column prompt) or .txt."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the images; a rerun continues there.")],
    model: ModelOption = "bundled",
    drafter: DrafterOption = None,
    images: Annotated[
        int, typer.Option("-k", "--images-per-prompt", min=1, max=4096, help="Images of each prompt.")
    ] = 1,
    ray: RayOption = None,
    num_workers: Annotated[
        int | None,
        typer.Option(
            "--num-workers",
            min=1,
            max=10_000,
            help="Processes with a model each (default: 1; with --ray, one for each GPU, or each CPU without GPUs).",
        ),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", help="Of the shards: webdataset (tar files) or parquet (images as bytes).")
    ] = "webdataset",
    block_size: Annotated[
        int | None,
        typer.Option(
            "--block-size",
            min=1,
            help="Prompts of a block, which is a shard and the most that a kill of a worker loses (default: about 32 "
            "images).",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Images that a worker draws together (default: 1 on a CPU, else 16)."),
    ] = None,
    method: Annotated[str, typer.Option("--method", help="Decoding method, as of hawk generate.")] = "hawk",
    verifier: VerifierOption = None,
    num_draft_tokens: DraftTokensOption = None,
    window: WindowOption = None,
    cfg_scale: CfgScaleOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    negative_prompt: Annotated[
        str, typer.Option("--negative-prompt", help="What the images of rows without one should not show.")
    ] = "",
    height: Annotated[int | None, typer.Option("--height", help="In pixels (default: that of the model).")] = None,
    width: Annotated[int | None, typer.Option("--width", help="In pixels (default: that of the model).")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    engine: EngineOption = "auto",
) -> None:
    """Draw images of all prompts of a file, in shards; each image depends on its prompt's id and its number alone.

    A run that was stopped at any moment is continued by the same command. Rows that cannot be drawn are listed in
    OUT/failures.jsonl, and the command then ends with exit code 1. The last line is one line of JSON.
    """
    from hawk.batch.job import Settings
    from hawk.batch.rows import parquet_package

    check_printable(str(out))
    if format == "parquet":
        parquet_package()
    settings = Settings(
        out=str(out.absolute()),
        model=model,
        drafter=drafter,
        device=device,
        dtype=dtype,
        engine=engine,
        threads=threads,
        method=method,
        verifier=verifier,
        num_draft_tokens=num_draft_tokens,
        window=window,
        cfg_scale=cfg_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        negative_prompt=negative_prompt,
        height=height,
        width=width,
        images=images,
        batch_size=batch_size,
        block_size=block_size,
        format=format,
    )
    if ray is None:
        summary = drawn_locally(settings, prompts, num_workers or 1)
    else:
        summary = drawn_on_ray(settings, prompts, ray, num_workers)
    print_summary(summary, out)
    if summary.failed:
        raise typer.Exit(SOME_FAILED)


def drawn_locally(settings: Settings, prompts: Path, workers: int) -> Summary:
    """Draw a job on this machine."""
    from hawk.batch.job import kept_places, plan
    from hawk.batch.local import drawn_by_processes, drawn_here
    from hawk.models.loading import device_named

    most = PROCESSES_OF_A_CPU * (os.cpu_count() or 1)
    if workers > most:
        raise HawkError(f"--num-workers must be at most {most} on this machine, not {workers}: each loads the model")
    settings = kept_places(settings)
    job = plan(settings, prompts, device_named(settings.device))
    if workers == 1:
        return drawn(job, lambda blocks, on_image: drawn_here(job.settings, blocks, on_image))
    return drawn(job, lambda blocks, _: drawn_by_processes(job.settings, blocks, workers))


def drawn_on_ray(settings: Settings, prompts: Path, address: str, workers: int | None) -> Summary:
    """Draw a job on a Ray cluster, which is not asked for anything where the job is complete."""
    from contextlib import ExitStack
    from functools import cache

    from hawk.batch.job import kept_places, plan
    from hawk.batch.on_ray import check_installed, cluster_at, device_on_ray, drawn_on

    check_installed()
    settings = kept_places(settings)
    with ExitStack() as stack:
        cluster = cache(lambda: stack.enter_context(cluster_at(address)))
        job = plan(settings, prompts, device_on_ray(settings.device, cluster))
        return drawn(job, lambda blocks, _: drawn_on(cluster(), job.settings, blocks, workers))


def drawn(job: Job, runner: Runner) -> Summary:
    """Draw what is missing of a job, with a progress bar in images."""
    from hawk.batch.run import complete

    with image_bar() as bar:
        task = bar.add_task("drawing", total=job.images)
        return complete(job, runner, lambda images: bar.update(task, completed=images, refresh=True))


def print_summary(summary: Summary, out: Path) -> None:
    """Print what was drawn, where it lies, and the line of JSON."""
    if not summary.images and not summary.skipped and summary.failed:
        print("no image was drawn")
    elif not summary.images:
        print(f"{out} is complete: {summary.skipped} images are there, nothing is drawn")
    else:
        print(f"drew {summary.images} images into {out}" + (f", {summary.skipped} were there" * bool(summary.skipped)))
    if summary.failed:
        print(f"{summary.failed} rows failed: {out / 'failures.jsonl'} names the reasons")
    print(json.dumps(summary.document()))
