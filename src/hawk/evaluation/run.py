"""The pictures of an evaluation: drawn in batches by every method, each batch kept as soon as it is there.

A folder holds the pictures of one job:

    job.json                       what was drawn: model, settings, prompts
    drawn-on.json                  the machines that drew
    <method>/0007-2.png            image 2 of prompt 7, both counted from 0
    <method>/batch-00012.safetensors   the tokens, target forwards and seconds of a batch

The record of a batch is written after its pictures, so a batch is complete if its record is there. A run that was
killed is continued by the same command, which draws the batches that lack a record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hawk.decoding.sampling import SamplingParams
from hawk.drafters.acceptance import knowing
from hawk.drafters.methods import METHODS, Method, lacking, method_named
from hawk.drafters.parts import DraftParts, drafters_mark
from hawk.errors import HawkError
from hawk.evaluation.drawn_on import add_machine
from hawk.evaluation.locking import LOCK
from hawk.evaluation.prompt_sets import PromptItem, PromptSet
from hawk.files import claim_folder, save_tensors
from hawk.machine import machine_facts
from hawk.pictures.png import check_writable, is_whole_png, write_png
from hawk.pipeline import HawkPipeline, PipelineOutput, tokens_sha256

CONTROL = "ar~"
"""The control: plain AR with other seeds. How far it is from `ar` is what chance alone does."""
SEED_RULE = (
    "The seed of an image is the first 63 bits of sha256(prompt id, newline, image number); for ar~ the text ends with "
    "a newline and the word control."
)
OnProgress = Callable[[int, int, str], None]
"""Called after each batch with (images done, images in all, method)."""


def seed_of(prompt_id: str, index: int, control: bool = False) -> int:
    """The seed of image `index` of a prompt, from 0 to 2^63 - 1; that of the control is another one."""
    text = f"{prompt_id}\n{index}" + ("\ncontrol" if control else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def method_of(name: str) -> Method:
    """The method that draws the images named `name`: plain AR for the control; `HawkError` for an unknown name."""
    return METHODS["ar"] if name == CONTROL else method_named(name)


def label_of(name: str) -> str:
    """The name that people read: it says so where a method is lossy."""
    return name if name == CONTROL else method_of(name).label


def eval_methods(names: str, parts: DraftParts | None) -> tuple[str, ...]:
    """The methods to draw with, from names with commas between them: `ar` and the control come first, always.

    Raises:
        HawkError: there is no name, a name is unknown, or the model lacks the drafter that a method needs.
    """
    given = [name.strip() for name in names.split(",") if name.strip()]
    if not given:
        raise HawkError(f"no method given: name some with commas between, of {', '.join(METHODS)}")
    chosen = tuple(dict.fromkeys(("ar", CONTROL, *given)))
    for name in chosen:
        kind = lacking(method_of(name), parts)
        if kind is not None:
            raise HawkError(
                f"method {name!r} needs a drafter that this model lacks: run `hawk train drafter --kind {kind}`, or "
                "leave the method out"
            )
    return chosen


@dataclass(frozen=True)
class EvalJob:
    """What is drawn: `images` images of each prompt by each method, `batch` of them decoded together.

    Attributes:
        fingerprint: marks the target's weights, `drafters` those of its drafters ("" for none).
        grid: height and width in tokens.
        methods: may differ between runs into one folder; all else may not.
    """

    model: str
    fingerprint: str
    drafters: str
    device: str
    dtype: str
    params: SamplingParams
    grid: tuple[int, int]
    prompts: PromptSet
    images: int
    batch: int
    methods: tuple[str, ...]

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Prompt number and image number of every image of a method, in the order of drawing."""
        return [(prompt, image) for prompt in range(len(self.prompts.items)) for image in range(self.images)]

    @cached_property
    def batches(self) -> list[list[tuple[int, int]]]:
        """The images that are decoded together."""
        return [self.pairs[start : start + self.batch] for start in range(0, len(self.pairs), self.batch)]

    def identity(self) -> dict[str, Any]:
        """What must be equal for the pictures in a folder to be pictures of this job, as JSON values."""
        digest = hashlib.sha256(json.dumps([[item.id, item.prompt] for item in self.prompts.items]).encode())
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "drafters": self.drafters,
            "device": self.device,
            "dtype": self.dtype,
            **asdict(self.params),
            "grid": list(self.grid),
            "prompt set": self.prompts.name,
            "prompts": len(self.prompts.items),
            "prompts' sha256": digest.hexdigest()[:16],
            "images of a prompt": self.images,
            "batch size": self.batch,
        }

    def seeds(self, method: str, pairs: Sequence[tuple[int, int]]) -> list[int]:
        """The seeds of these images; only those of the control differ between methods."""
        return [seed_of(self.prompts.items[prompt].id, image, method == CONTROL) for prompt, image in pairs]


def eval_job(
    pipe: HawkPipeline,
    methods: tuple[str, ...],
    prompts: PromptSet,
    images: int,
    batch: int = 1,
    params: SamplingParams | None = None,
) -> EvalJob:
    """The job of a pipeline; `params` None takes the model's defaults.

    Raises `HawkError` for a number below 1, and for a prompt that the model cannot read.
    """
    if images < 1 or batch < 1:
        raise HawkError(f"images is {images} and the batch size {batch}: both must be 1 or more")
    for start in range(0, len(prompts.items), 1000):  # the features of all prompts at once would fill the memory
        pipe.condition([item.prompt for item in prompts.items[start : start + 1000]])
    model = pipe.model
    grid = (model.grid.height, model.grid.width)
    marks = (model.name, model.fingerprint, drafters_mark(model.drafting), pipe.device.type, pipe.dtype)
    return EvalJob(*marks, params or model.defaults, grid, prompts, images, batch, methods)


def open_job(job: EvalJob, out: Path) -> None:
    """Make `out` the folder of the job, or check that it is; `HawkError` for the folder of another job."""
    check_writable(out)
    claim_folder(out, job.identity(), "pictures", beside=LOCK)


def draw_all(pipe: HawkPipeline, job: EvalJob, out: Path, on_progress: OnProgress | None = None) -> None:
    """Draw what the folder `out` lacks of the job. The methods take turns on every batch.

    What `hawk` learnt in one batch about its drafts is kept with the batch, so that a continued run takes the same
    steps as one that was not interrupted.

    Raises:
        HawkError: `out` is the folder of another job, or cannot be written to.
        OSError: the disk is full.
    """
    open_job(job, out)
    done, total, machine_listed = 0, len(job.methods) * len(job.pairs), False
    skills = dict.fromkeys(job.methods, 0.0)
    with pipe.timed():
        for number, pairs in enumerate(job.batches):
            for method in job.methods:
                kept = kept_batch(job, out, method, number)
                if kept is None:
                    with knowing(pipe, job.params, skills[method]):
                        output = draw_batch(pipe, job, method, pairs)
                        skills[method] = pipe.skills.of(job.params)
                    if not machine_listed:  # before the batch: a kill leaves no batch without its machine
                        add_machine(out, machine_facts(pipe.device, pipe.dtype))
                        machine_listed = True
                    keep_batch(job, out, method, number, output, skills[method])
                else:
                    skills[method] = kept.skill
                done += len(pairs)
                if on_progress is not None:
                    on_progress(done, total, method)


def draw_batch(pipe: HawkPipeline, job: EvalJob, method: str, pairs: Sequence[tuple[int, int]]) -> PipelineOutput:
    """Draw the images of one batch by one method."""
    output = pipe(
        [job.prompts.items[prompt].prompt for prompt, _ in pairs],
        seed=job.seeds(method, pairs),
        guidance_scale=job.params.cfg_scale,
        temperature=job.params.temperature,
        top_k=job.params.top_k,
        top_p=job.params.top_p,
        method=method_of(method).name,
        batch_size=job.batch,
    )
    assert isinstance(output, PipelineOutput)
    return output


@dataclass(frozen=True)
class KeptBatch:
    """What is kept of a batch besides its pictures; `skill` is what `hawk` knew of its drafts after the batch."""

    tokens: Int[Tensor, "images n"]
    nfe: Float[Tensor, " images"]
    seconds: Float[Tensor, " images"]
    skill: float


def record_path(out: Path, method: str, number: int) -> Path:
    """Where the record of a batch lies."""
    return out / method / f"batch-{number:05d}.safetensors"


def image_path(out: Path, method: str, prompt: int, image: int) -> Path:
    """Where a picture lies."""
    return out / method / f"{prompt:04d}-{image}.png"


def keep_batch(job: EvalJob, out: Path, method: str, number: int, output: PipelineOutput, skill: float) -> None:
    """Write the pictures of a batch, then its record; each file is written completely or not at all."""
    chosen = method_of(method)
    height, width = output.images[0].height, output.images[0].width
    settings = {**asdict(job.params), "height": height, "width": width, "verifier": chosen.verifier}
    settings |= {"lossless": chosen.lossless, "dtype": job.dtype}
    for row, (prompt, image) in enumerate(job.batches[number]):
        text = {
            "prompt": job.prompts.items[prompt].prompt,
            "seed": str(output.seeds[row]),
            "model": job.model,
            "method": chosen.name,
            "settings": json.dumps(settings),
            "tokens_sha256": tokens_sha256(output.tokens[row]),
        }
        write_png(output.images[row], image_path(out, method, prompt, image), text)
    tensors = {
        "tokens": output.tokens.to(torch.int32).contiguous(),
        "nfe": torch.tensor([float(stats.nfe) for stats in output.stats], dtype=torch.float64),
        "seconds": torch.tensor(output.seconds, dtype=torch.float64),
        "skill": torch.tensor([skill], dtype=torch.float64),
    }
    save_tensors(record_path(out, method, number), tensors)


def kept_batch(job: EvalJob, out: Path, method: str, number: int) -> KeptBatch | None:
    """The record of a batch; None if the record or a picture is missing or cut short, or the record is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, pairs = record_path(out, method, number), job.batches[number]
    if not path.is_file() or not all(is_whole_png(image_path(out, method, *pair)) for pair in pairs):
        return None
    try:
        found = load_file(path)
        kept = KeptBatch(found["tokens"].long(), found["nfe"], found["seconds"], float(found["skill"]))
    except (SafetensorError, KeyError, ValueError):
        return None
    return kept if len(kept.tokens) == len(pairs) else None


@dataclass(frozen=True)
class Drawn:
    """All images of one method: their files, tokens, target forwards and seconds, in the order of `EvalJob.pairs`."""

    method: str
    paths: list[Path]
    tokens: Int[Tensor, "images n"]
    nfe: Float[Tensor, " images"]
    seconds: Float[Tensor, " images"]


def drawn_by(job: EvalJob, out: Path, method: str) -> Drawn:
    """What a method drew; `HawkError` if some of it is missing."""
    kept = []
    for number in range(len(job.batches)):
        batch = kept_batch(job, out, method, number)
        if batch is None:
            raise HawkError(f"{record_path(out, method, number)} is missing or damaged: run the same command again")
        kept.append(batch)
    paths = [image_path(out, method, *pair) for pair in job.pairs]
    joined = (torch.cat([getattr(batch, name) for batch in kept]) for name in ("tokens", "nfe", "seconds"))
    return Drawn(method, paths, *joined)


def first_items(prompts: PromptSet, most: int | None) -> PromptSet:
    """The set with its first `most` prompts only; None keeps all of them."""
    items: tuple[PromptItem, ...] = prompts.items[:most]
    ids = {item.id for item in items}
    return PromptSet(prompts.name, items, {key: name for key, name in prompts.references.items() if key in ids})
