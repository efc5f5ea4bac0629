"""Scoring pictures that another machine drew: the job of the drawing, and what is missing of its pictures.

The device and the dtype of the drawing are those in `job.json`; all else of the job must be that of the command.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hawk.drafters.parts import drafters_mark
from hawk.errors import HawkError
from hawk.evaluation.run import EvalJob, kept_batch
from hawk.files import read_json
from hawk.models.loading import DEVICES, DTYPES, drafter_folder, drafters_on, model_folder
from hawk.nn.layers import same_bits_in_windows
from hawk.nn.packed import products_in
from hawk.pipeline import HawkPipeline
from hawk.proofs.suite import promises_same_tokens


@dataclass(frozen=True)
class Drawing:
    """The type of the device and the name of the dtype in which pictures were drawn."""

    device: str
    dtype: str


def drawing_of(out: Path) -> Drawing:
    """How the pictures in a folder were drawn; `HawkError` for a folder without a job or with a damaged one."""
    path = out / "job.json"
    if not path.is_file():
        raise HawkError(f"{out} holds no pictures to score, since {path} is missing: draw them without --score-only")
    there = read_json(path)
    device, dtype = there.get("device"), there.get("dtype")
    if device not in DEVICES or not isinstance(dtype, str) or dtype not in DTYPES:
        raise HawkError(
            f"{path} does not say on which device and in which dtype the pictures were drawn: copy it again"
        )
    return Drawing(device, dtype)


def drawn_here(pipe: HawkPipeline, drawing: Drawing) -> bool:
    """Whether a pipeline itself draws on that type of device and in that dtype."""
    return Drawing(pipe.device.type, pipe.dtype) == drawing


def as_drawn(pipe: HawkPipeline, job: EvalJob, drawing: Drawing) -> EvalJob:
    """The job as a pipeline of the same model makes it on the device and in the dtype of the drawing.

    The mark of the drafters depends on both, since their weights are cast and packed: the drafters are read again.
    """
    if drawn_here(pipe, drawing):
        return job
    there = replace(job, device=drawing.device, dtype=drawing.dtype)
    if pipe.model.drafting is None or pipe.origin is None:
        return there
    drafter = None if pipe.origin.drafter is None else drafter_folder(pipe.origin.drafter)
    folder, device = model_folder(pipe.origin.model), torch.device(drawing.device)
    return replace(there, drafters=drafters_mark(drafters_on(pipe.model, folder, device, drawing.dtype, drafter)))


def missing_batches(job: EvalJob, out: Path) -> dict[str, int]:
    """How many batches are missing or damaged of each method that lacks some."""
    numbers = range(len(job.batches))
    counts = {name: sum(kept_batch(job, out, name, each) is None for each in numbers) for name in job.methods}
    return {name: count for name, count in counts.items() if count}


def refuse_missing(job: EvalJob, out: Path) -> None:
    """Raise `HawkError` with the number of missing batches of each method, unless the pictures are complete."""
    counts = missing_batches(job, out)
    if counts:
        said = " and ".join(f"{count} of {len(job.batches)} batches of {name}" for name, count in counts.items())
        raise HawkError(
            f"{out} lacks {said}: the same command without --score-only draws them, on the machine that drew the "
            f"others ({job.device}, {job.dtype})"
        )


def drawing_promises_tokens(pipe: HawkPipeline, job: EvalJob) -> bool:
    """Whether the drawing promised the tokens of plain AR, by its device and dtype, wherever its pictures are scored.

    A model that is loaded to a CPU is packed, so float16 there is not PyTorch's.
    """
    if drawn_here(pipe, Drawing(job.device, job.dtype)):
        return promises_same_tokens(pipe)
    return same_bits_in_windows(torch.device(job.device), products_in(DTYPES[job.dtype]))
