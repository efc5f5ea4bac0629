"""The pictures of one `hawk generate`: each is written as soon as it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hawk.cli.options import token_bar
from hawk.cli.tables import image_report
from hawk.cli.wanted import Wanted
from hawk.outputs import drawn_metadata
from hawk.pictures.png import save_png
from hawk.pipeline import HawkPipeline, PipelineOutput


@dataclass(frozen=True)
class Job:
    """A picture to draw, where to write it, and the text in its file that is known before it is drawn."""

    wanted: Wanted
    path: Path
    metadata: dict[str, str]


@dataclass(frozen=True)
class Drawn:
    """A picture that was written: the report of `--json`, and the line that says so."""

    report: dict[str, Any]
    line: str


CHUNK = 64
"""The pictures of one call of the pipeline, whose prompts are read together and whose pictures the memory holds."""


def draw(
    pipe: HawkPipeline,
    jobs: Sequence[Job],
    call: Mapping[str, Any],
    batch_size: int,
    on_drawn: Callable[[Drawn], None],
) -> None:
    """Draw the jobs, `batch_size` at once, and write each picture as soon as it is finished.

    `call` holds the pipeline's arguments that they share; `on_drawn` is told of each file that was written.
    """
    with token_bar() as bar:
        task = bar.add_task("drawing", total=None, accept="")
        for start in range(0, len(jobs), CHUNK):
            chunk = jobs[start : start + CHUNK]

            def on_step(
                pipe: HawkPipeline, step: int, committed: int, state: dict[str, Any], start: int = start
            ) -> None:
                cells = state["canvas"].grid.size
                accept = f"accept length {state['stats'].accept_length:.2f}"
                bar.update(task, completed=start * cells + committed, total=len(jobs) * cells, accept=accept)

            def on_image(pipe: HawkPipeline, place: int, output: PipelineOutput, chunk: Sequence[Job] = chunk) -> None:
                job = chunk[place]
                path = save_png(output.images[0], job.path, job.metadata | drawn_metadata(output.tokens[0]))
                report = image_report(pipe, output, 0, job.wanted.prompt, call["method"], path)
                on_drawn(Drawn(report, _summary(path, output, 0)))

            negatives = [job.wanted.negative for job in chunk]
            pipe(
                [job.wanted.prompt for job in chunk],
                negative_prompt=negatives if any(negatives) else None,
                seed=[job.wanted.seed for job in chunk],
                callback_on_step_end=on_step,
                callback_on_image_end=on_image,
                batch_size=batch_size,
                **call,
            )


def _summary(path: Path, output: PipelineOutput, index: int) -> str:
    """One line on an image: its file, seed, time and the counts of its batch."""
    stats = output.stats[index]
    counts = f"NFE {stats.nfe:.0f}, accept length {stats.accept_length:.2f}"
    lossy = "" if output.lossless else ", LOSSY: not from the distribution of plain decoding"
    return f"{path}  seed {output.seeds[index]}, {output.seconds[index]:.2f} s, {counts}" + lossy
