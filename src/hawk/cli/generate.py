"""`hawk generate`: images of prompts, written to PNG files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hawk.cli.options import (
    CfgScaleOption,
    DeviceOption,
    DrafterOption,
    DraftTokensOption,
    DtypeOption,
    EngineOption,
    JsonOption,
    ModelOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    WindowOption,
    check_printable,
    load_pipeline,
    token_bar,
)

if TYPE_CHECKING:
    from hawk.pipeline import HawkPipeline, PipelineOutput


def generate(
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT...", help="What to draw; several prompts draw several images.")
    ],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="hawk, ar, medusa, hawk-vertical, hawk-paper, hawk-spatial, eagle, eagle-topk, sjd, scd, "
            "scd-maximal, sjd-pac or lantern (LOSSY: changes the distribution of the images).",
        ),
    ] = "hawk",
    verifier: Annotated[
        str | None,
        typer.Option(
            "--verifier", help="coupled, residual, traversal or relaxed (LOSSY); default: that of the method."
        ),
    ] = None,
    num_draft_tokens: DraftTokensOption = None,
    window: WindowOption = None,
    model: ModelOption = "bundled",
    drafter: DrafterOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the first image; each further image takes the next one.")
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Number of images of each prompt.")] = 1,
    cfg_scale: CfgScaleOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", help="What the images should not show.")
    ] = None,
    height: Annotated[int | None, typer.Option("--height", help="In pixels (default: that of the model).")] = None,
    width: Annotated[int | None, typer.Option("--width", help="In pixels (default: that of the model).")] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="FILE.png for one image, or a folder (default: this folder).")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    engine: EngineOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Draw images of prompts and write them to PNG files, which also hold the settings that they were drawn with."""
    from hawk.cli.tables import image_metadata, image_report
    from hawk.drafters.methods import method_named
    from hawk.pictures.png import picture_path, save_png
    from hawk.pipeline import PipelineOutput, image_seeds

    verifier = verifier or method_named(method).verifier
    wanted = [prompt for prompt in prompts for _ in range(count)]
    seeds = image_seeds(len(wanted), seed, None)
    is_folder = out is not None and out.endswith(("/", os.sep))
    out_path = None if out is None else Path(out)
    paths = [picture_path(out_path, prompt, s, len(wanted), is_folder) for prompt, s in zip(wanted, seeds, strict=True)]
    for path in paths:  # fail before the first image is drawn, here and below
        check_printable(str(path))
    pipe = load_pipeline(model, device, dtype, drafter, threads, engine)
    pipe.condition(prompts, height, width)
    reports: list[dict[str, Any]] = []
    lines: list[str] = []
    try:
        with token_bar() as bar:
            task = bar.add_task("drawing", total=None, accept="")

            def on_step(pipe: HawkPipeline, step: int, committed: int, state: dict[str, Any]) -> None:
                cells = state["canvas"].grid.size
                accept = f"accept length {state['stats'].accept_length:.2f}"
                done = len(reports) * cells + committed
                bar.update(task, completed=done, total=len(wanted) * cells, accept=accept)

            for prompt, image_seed, path in zip(wanted, seeds, paths, strict=True):
                output = pipe(
                    prompt,
                    negative_prompt=negative_prompt,
                    guidance_scale=cfg_scale,
                    seed=image_seed,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    method=method,
                    verifier=verifier,
                    num_draft_tokens=num_draft_tokens,
                    window=window,
                    height=height,
                    width=width,
                    callback_on_step_end=on_step,
                )
                assert isinstance(output, PipelineOutput)
                metadata = image_metadata(pipe, output, prompt, method, negative_prompt)
                written = save_png(output.images[0], path, metadata)
                reports.append(image_report(pipe, output, prompt, method, written))
                lines.append(_summary(written, output))
    finally:  # Ctrl-C or a full disk may end the loop early: name the files that were written until then
        print("".join(f"{line}\n" for line in lines), end="")
    if as_json:
        print(json.dumps(reports[0] if len(reports) == 1 else {**reports[0], "images": reports}))


def _summary(path: Path, output: PipelineOutput) -> str:
    """One line on an image: its file, seed, time and counts."""
    nfe, length = output.nfe, output.accept_length
    lossy = "" if output.lossless else ", LOSSY: not from the distribution of plain decoding"
    line = f"{path}  seed {output.seeds[0]}, {output.seconds[0]:.2f} s, NFE {nfe:.0f}, accept length {length:.2f}"
    return line + lossy
