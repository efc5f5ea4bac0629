"""The pictures of one `hawk generate`: drawn batch by batch, each written as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hawk.cli.options import token_bar
from hawk.cli.tables import drawn_metadata, image_report
from hawk.cli.wanted import Wanted
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


def draw(pipe: HawkPipeline, jobs: Sequence[Job], call: Mapping[str, Any], batch_size: int) -> Iterator[Drawn]:
    """Draw the jobs, `batch_size` together; `call` holds the pipeline's arguments that they share."""
    with token_bar() as bar:
        task, done = bar.add_task("drawing", total=None, accept=""), 0

        def on_step(pipe: HawkPipeline, step: int, committed: int, state: dict[str, Any]) -> None:
            cells = state["canvas"].grid.size
            accept = f"accept length {state['stats'].accept_length:.2f}"
            bar.update(task, completed=done * cells + committed, total=len(jobs) * cells, accept=accept)

        for together in (jobs[i : i + batch_size] for i in range(0, len(jobs), batch_size)):
            negatives = [job.wanted.negative for job in together]
            output = pipe(
                [job.wanted.prompt for job in together],
                negative_prompt=negatives if any(negatives) else None,
                seed=[job.wanted.seed for job in together],
                callback_on_step_end=on_step,
                batch_size=batch_size,
                **call,
            )
            assert isinstance(output, PipelineOutput)
            for row, job in enumerate(together):
                path = save_png(output.images[row], job.path, job.metadata | drawn_metadata(output, row))
                done += 1
                report = image_report(pipe, output, row, job.wanted.prompt, call["method"], path)
                yield Drawn(report, _summary(path, output, row))


def _summary(path: Path, output: PipelineOutput, index: int) -> str:
    """One line on an image: its file, seed, time and the counts of its batch."""
    stats = output.stats[index]
    counts = f"NFE {stats.nfe:.0f}, accept length {stats.accept_length:.2f}"
    lossy = "" if output.lossless else ", LOSSY: not from the distribution of plain decoding"
    return f"{path}  seed {output.seeds[index]}, {output.seconds[index]:.2f} s, {counts}" + lossy
