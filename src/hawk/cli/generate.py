"""`hawk generate`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hawk.cli.options import (
    AsJson,
    CfgScale,
    Device,
    Drafter,
    DraftTokens,
    Dtype,
    Engine,
    Model,
    Temperature,
    Threads,
    TopK,
    TopP,
    Window,
    load_pipeline,
    token_bar,
)

if TYPE_CHECKING:
    from hawk.pipeline import HawkPipeline, PipelineOutput


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw; several draw several.")],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="hawk, ar, medusa, hawk-vertical, hawk-paper, hawk-spatial, eagle, eagle-topk, sjd, scd, "
            "scd-maximal, sjd-pac or lantern (LOSSY: not the distribution of plain decoding).",
        ),
    ] = "hawk",
    verifier: Annotated[
        str | None,
        typer.Option("--verifier", help="coupled, residual, traversal or relaxed (LOSSY); default: the method's own."),
    ] = None,
    num_draft_tokens: DraftTokens = None,
    window: Window = None,
    model: Model = "bundled",
    drafter: Drafter = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the first image; the next take the next.")] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Images of each prompt.")] = 1,
    cfg_scale: CfgScale = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    negative_prompt: Annotated[str | None, typer.Option("--negative-prompt", help="What to steer away from.")] = None,
    height: Annotated[int | None, typer.Option("--height", help="Pixels (default: the model's).")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Pixels (default: the model's).")] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="FILE.png for one image, or a folder (default: here).")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    engine: Engine = "auto",
    as_json: AsJson = False,
) -> None:
    """Draw images of prompts into PNG files, which carry their settings with them."""
    from hawk.cli.tables import image_metadata, image_report
    from hawk.drafters.methods import method_named
    from hawk.pictures.png import picture_path, save_png
    from hawk.pipeline import PipelineOutput, image_seeds

    verifier = verifier or method_named(method).verifier
    wanted = [prompt for prompt in prompts for _ in range(count)]
    seeds = image_seeds(len(wanted), seed, None)
    folder = out is not None and out.endswith(("/", os.sep))
    target = None if out is None else Path(out)
    places = [picture_path(target, prompt, s, len(wanted), folder) for prompt, s in zip(wanted, seeds, strict=True)]
    pipe = load_pipeline(model, device, dtype, drafter, threads, engine)
    pipe.condition(prompts, height, width)  # a bad prompt fails before the first image is drawn
    reports: list[dict[str, Any]] = []
    said: list[str] = []
    try:
        with token_bar() as bar:
            task = bar.add_task("drawing", total=None, accept="")

            def on_step(pipe: HawkPipeline, step: int, committed: int, state: dict[str, Any]) -> None:
                cells = state["canvas"].grid.size
                accept = f"accept length {state['stats'].accept_length:.2f}"
                done = len(reports) * cells + committed
                bar.update(task, completed=done, total=len(wanted) * cells, accept=accept)

            for prompt, image_seed, place in zip(wanted, seeds, places, strict=True):
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
                path = save_png(output.images[0], place, image_metadata(pipe, output, prompt, method, negative_prompt))
                reports.append(image_report(pipe, output, prompt, method, path))
                said.append(_said(path, output))
    finally:  # also where Ctrl-C or a full disk ends it: these files are there
        print("".join(f"{line}\n" for line in said), end="")
    if as_json:
        print(json.dumps(reports[0] if len(reports) == 1 else {**reports[0], "images": reports}))


def _said(path: Path, output: PipelineOutput) -> str:
    nfe, length = output.nfe, output.accept_length
    lossy = "" if output.lossless else ", LOSSY: not distributed as plain decoding's"
    line = f"{path}  seed {output.seeds[0]}, {output.seconds[0]:.2f} s, NFE {nfe:.0f}, accept length {length:.2f}"
    return line + lossy
