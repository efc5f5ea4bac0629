"""The folder of a job: which blocks are done, which rows failed, and what all of it adds up to.

    job.json              what the job is (`Job.identity`)
    shards/000012.tar     the images of block 12
    blocks/000012.json    the record of block 12, written after its shard: it says that the block is done
    failures.jsonl        every row without images, with the reason; missing if there is none
    stats.json            the sums over all blocks

Every file is written completely or not at all. A worker that draws a block once more, since another worker seemed to be
lost, replaces the shard by one with the same images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hawk.batch.job import FORMATS, Job
from hawk.batch.rows import Failure
from hawk.errors import HawkError
from hawk.evaluation.locking import LOCK
from hawk.files import claim_folder, read_cache, write_bytes, write_json
from hawk.pictures.png import check_writable

NUMBERS = ("images", "tokens", "nfe", "seconds")
"""What is summed over the records of blocks."""


@dataclass(frozen=True)
class Record:
    """What is known of a block that is done.

    Attributes:
        images: the images in its shard, which has `size` bytes.
        tokens, nfe: the tokens of these images, and the target forwards, summed over the images.
        seconds: how long the worker took for the block.
        failures: the rows that could be read but not drawn.
    """

    block: int
    images: int
    size: int
    tokens: int
    nfe: float
    seconds: float
    failures: tuple[Failure, ...] = ()

    def to_json(self) -> str:
        """The record as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Record:
        """The record of an object of JSON; KeyError or TypeError for anything else."""
        record = cls(**{**fields, "failures": tuple(Failure(**each) for each in fields["failures"])})
        if not all(isinstance(getattr(record, name), int | float) for name in NUMBERS):
            raise TypeError("a number of the record is none")
        return record


@dataclass(frozen=True)
class Folder:
    """The folder of a job whose shards have one format."""

    path: Path
    format: str

    def shard(self, block: int) -> Path:
        """Where the images of a block lie."""
        return self.path / "shards" / f"{block:06d}.{FORMATS[self.format]}"

    def record(self, block: int) -> Path:
        """Where the record of a block lies."""
        return self.path / "blocks" / f"{block:06d}.json"

    def claim(self, job: Job) -> None:
        """Make this the folder of a job, or check that it is; `HawkError` for another job's, or one of other files."""
        check_writable(self.path)
        claim_folder(self.path, job.identity, "images", beside=LOCK)

    def check_marks(self, marks: dict[str, Any]) -> None:
        """Raise `HawkError` unless the folder is here, and a worker's model and device are those of its job."""
        if not (self.path / "job.json").is_file():
            raise HawkError(f"a worker does not see {self.path}: name a folder for --out that all machines share")
        claim_folder(self.path, marks, "images")

    def clean(self) -> None:
        """Remove what writers that were killed left half-written; only the folder's sole owner may do so."""
        for part in ("shards", "blocks"):
            for path in (self.path / part).glob(".*.tmp"):
                path.unlink(missing_ok=True)

    def kept(self, block: int) -> Record | None:
        """The record of a block; None if the block is not done, or its shard is not as the record says."""
        try:
            record = Record.from_json(read_cache(self.record(block)))
            return record if (record.block, record.size) == (block, self.shard(block).stat().st_size) else None
        except (OSError, KeyError, TypeError):
            return None

    def keep(self, record: Record) -> None:
        """Write the record of a block whose shard is written."""
        write_bytes(self.record(record.block), (record.to_json() + "\n").encode())

    def records(self, job: Job) -> Iterator[Record]:
        """The records of all blocks that are done."""
        return (record for block in range(job.blocks) if (record := self.kept(block)) is not None)

    def write_failures(self, failures: Iterable[Failure]) -> None:
        """Write failures.jsonl in the order of the rows; without a failure there is no such file."""
        lines = [json.dumps(each.document) + "\n" for each in sorted(failures, key=lambda each: each.line)]
        path = self.path / "failures.jsonl"
        if lines:
            write_bytes(path, "".join(lines).encode())
        else:
            path.unlink(missing_ok=True)


@dataclass
class Sums:
    """The sums over blocks that are done, and the rows that failed."""

    failures: list[Failure]
    blocks: int = 0
    images: int = 0
    tokens: int = 0
    nfe: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, job: Job, records: Iterable[Record]) -> Sums:
        """The sums of a job's records, and its failures: rows that could not be read, or not be drawn."""
        sums = cls([*job.prompts.failures])
        for record in records:
            sums.add(record)
        return sums

    def add(self, record: Record) -> None:
        """Add a block."""
        self.blocks += 1
        self.failures += record.failures
        for name in NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(record, name))

    @property
    def accept_length(self) -> float:
        """Tokens committed per target forward; 0 without an image."""
        return self.tokens / self.nfe if self.nfe else 0.0

    def write(self, folder: Folder) -> None:
        """Write failures.jsonl and stats.json."""
        folder.write_failures(self.failures)
        sums = {name: getattr(self, name) for name in ("blocks", *NUMBERS)}
        document = {**sums, "failed": len(self.failures), "accept_length": self.accept_length}
        write_json(folder.path / "stats.json", document)
