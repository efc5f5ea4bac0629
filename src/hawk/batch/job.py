"""A job: what is drawn of which file of prompts, by what settings, in which blocks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hawk.batch.rows import Failure, Row, read_rows
from hawk.decoding.request import check_verifier
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.methods import lacking, method_named
from hawk.drafters.parts import drafters_mark
from hawk.errors import HawkError
from hawk.evaluation.run import seed_of
from hawk.files import read_cache
from hawk.models.arguments import OPTIONS, check_negatives, grid_of, sampling_params
from hawk.models.loading import drafter_folder, dtype_named, engine_named, is_large, load_outline, model_folder
from hawk.models.moving import Origin

if TYPE_CHECKING:
    from hawk.models.protocol import Model

FORMATS = {"webdataset": "tar", "parquet": "parquet"}
"""The kinds of shards, with the ends of their names."""
MOST_OF_A_BLOCK = 4096
"""The most images of a block: their files are in memory at once."""
USUAL_OF_A_BLOCK = 32
"""About how many images a block has unless the command says otherwise."""


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know besides its prompts; the names are those of the options of `hawk batch`.

    `device` and `dtype` are "auto" only until the job is planned: all its workers draw on the same kind of device, in
    the same dtype. `images` is the number of images of each prompt.
    """

    out: str
    model: str = "bundled"
    drafter: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    engine: str = "auto"
    threads: int | None = None
    method: str = "hawk"
    verifier: str | None = None
    num_draft_tokens: int | None = None
    window: int | None = None
    cfg_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    images: int = 1
    batch_size: int | None = None
    block_size: int | None = None
    format: str = "webdataset"

    @property
    def verified(self) -> str:
        """The verifier to draw with."""
        return self.verifier or method_named(self.method).verifier

    @property
    def rows_of_a_block(self) -> int:
        """The prompts of a block."""
        return self.block_size or max(1, USUAL_OF_A_BLOCK // self.images)

    @property
    def drawn_at_once(self) -> int:
        """The images that a worker draws together: one on a CPU, where more do not pay, and 16 on a GPU."""
        return self.batch_size or (1 if self.device == "cpu" else 16)

    def call(self) -> dict[str, Any]:
        """The arguments of the pipeline's call that all images share."""
        same = ("temperature", "top_k", "top_p", "method", "num_draft_tokens", "window", "height", "width")
        given = {name: getattr(self, name) for name in same}
        return {"guidance_scale": self.cfg_scale, "verifier": self.verified, "batch_size": self.drawn_at_once, **given}


@dataclass(frozen=True)
class Block:
    """Some rows of the file, whose images are drawn by one worker and written as one shard."""

    number: int
    rows: tuple[Row, ...]

    def to_json(self) -> str:
        """The block as text, to be sent to another machine."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Block:
        """The block of a text."""
        fields = json.loads(text)
        return cls(fields["number"], tuple(Row(**row) for row in fields["rows"]))


def seeds_of(row: Row, images: int) -> list[int]:
    """The seeds of a row's images: image k of a row with a seed has `seed + k`, any other one derives it from the id.

    No seed depends on the block, the worker or the machine that draws the image.
    """
    if row.seed is not None:
        return [row.seed + k for k in range(images)]
    return [seed_of(row.id, k) for k in range(images)]


@dataclass(frozen=True)
class Prompts:
    """A file of prompts that was read once from end to end."""

    path: Path
    sha256: str
    rows: int
    failures: tuple[Failure, ...]


def survey(path: Path, images: int) -> Prompts:
    """Read a file of prompts once; `HawkError` if it cannot be read or holds no row."""
    rows, failures = 0, []
    for row in read_rows(path, images):
        if isinstance(row, Row):
            rows += 1
        else:
            failures.append(row)
    if not rows and not failures:
        raise HawkError(f"{path} holds no prompt")
    with path.open("rb") as file:
        return Prompts(path, hashlib.file_digest(file, "sha256").hexdigest(), rows, tuple(failures))


@dataclass(frozen=True)
class Job:
    """A planned job. `identity` is what must be equal for a folder's images to be images of this job."""

    settings: Settings
    prompts: Prompts
    identity: dict[str, Any]

    @cached_property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-self.prompts.rows // self.settings.rows_of_a_block)

    @property
    def images(self) -> int:
        """The images of all rows that could be read."""
        return self.prompts.rows * self.settings.images

    def every_block(self) -> Iterator[Block]:
        """The blocks in the order of the file, which is read again."""
        rows = (row for row in read_rows(self.prompts.path, self.settings.images) if isinstance(row, Row))
        for number in range(self.blocks):
            yield Block(number, tuple(islice(rows, self.settings.rows_of_a_block)))


def plan(settings: Settings, path: Path, device: torch.device) -> Job:
    """The job of a command, for a device that may be another machine's; the model's weights are not loaded.

    Raises:
        HawkError: a setting is wrong, or the model or the file of prompts cannot be read.
    """
    check_sizes(settings)
    engine_named(settings.engine, device)
    if settings.drafter is not None:
        drafter_folder(settings.drafter)
    folder = model_folder(settings.model)
    model = load_outline(folder)
    dtype = dtype_named(settings.dtype, device, large=is_large(folder))
    origin = Origin.of(settings.model, settings.drafter)
    settings = replace(settings, model=origin.model, drafter=origin.drafter, device=str(device), dtype=dtype)
    params = params_of(model, settings)
    check_verifier(settings.verified)
    prompts = survey(path, settings.images)
    identity = {
        **marks_of(model, settings),
        "drafters": settings.drafter or drafters_mark(model.drafting),
        **asdict(params),
        "negative prompt": settings.negative_prompt,
        "grid": [*asdict(grid_of(model, settings.height, settings.width)).values()],
        "method": settings.method,
        "verifier": settings.verified,
        "most drafts": settings.num_draft_tokens,
        "window": settings.window,
        "format": settings.format,
        "images of a prompt": settings.images,
        "prompts of a block": settings.rows_of_a_block,
        "prompts' sha256": prompts.sha256,
    }
    return Job(settings, prompts, identity)


def kept_places(settings: Settings) -> Settings:
    """The settings with the device and the dtype that an unfinished job was begun with, where they say "auto"."""
    begun = read_cache(Path(settings.out) / "job.json")
    places = {name: begun.get(name, "auto") for name in ("device", "dtype") if getattr(settings, name) == "auto"}
    return replace(settings, **places)


def check_sizes(settings: Settings) -> None:
    """Raise `HawkError` for an unknown kind of shards, and for a block of too many images."""
    if settings.format not in FORMATS:
        raise HawkError(f"unknown --format {settings.format!r}: choose {' or '.join(FORMATS)}")
    most = settings.rows_of_a_block * settings.images
    if most > MOST_OF_A_BLOCK:
        raise HawkError(f"a block has at most {MOST_OF_A_BLOCK} images, not {most}: lower --block-size")


def params_of(model: Model, settings: Settings) -> SamplingParams:
    """The sampling parameters of the job; `HawkError` for a wrong one, or a drafter that the model lacks."""
    sampling = (settings.cfg_scale, settings.temperature, settings.top_k, settings.top_p)
    params = sampling_params(model, *sampling, OPTIONS)
    check_negatives([settings.negative_prompt], params, OPTIONS)
    kind = lacking(method_named(settings.method), model.drafting) if settings.drafter is None else None
    if kind is not None:
        raise HawkError(
            f"method {settings.method!r} needs a drafter that this model lacks: run `hawk train drafter --kind {kind}`"
        )
    return params


def marks_of(model: Model, settings: Settings) -> dict[str, Any]:
    """What a worker compares with the job before it draws: its model, the kind of device and the dtype."""
    kind = torch.device(settings.device).type
    return {"model": model.name, "fingerprint": model.fingerprint, "device": kind, "dtype": settings.dtype}
