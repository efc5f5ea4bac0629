"""Shards: the images of a block in one file, each with what it was drawn from."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hawk.batch.rows import Row, parquet_package
from hawk.files import replacing


@dataclass(frozen=True)
class Picture:
    """An image of a row: `index` counts the row's images from 0, and `png` is its file with the settings as text.

    `tokens` and `nfe` count its tokens and target forwards. `settings` are those that the images of a job share.
    """

    row: Row
    index: int
    seed: int
    tokens_sha256: str
    tokens: int
    nfe: float
    settings: dict[str, Any]
    png: bytes

    @property
    def accept_length(self) -> float:
        """Tokens committed per target forward."""
        return self.tokens / self.nfe

    @property
    def name(self) -> str:
        """The image's name in the job: the line of its row and its index; ids may hold what names may not."""
        return f"{self.row.line:09d}-{self.index:04d}"

    @property
    def facts(self) -> dict[str, Any]:
        """What is written beside the image."""
        return {
            "id": self.row.id,
            "index": self.index,
            "prompt": self.row.prompt,
            "negative_prompt": self.row.negative,
            "seed": self.seed,
            "tokens_sha256": self.tokens_sha256,
            "nfe": self.nfe,
            "accept_length": self.accept_length,
            "settings": self.settings,
            "columns": self.row.columns,
        }


def write_shard(format: str, path: Path, pictures: Sequence[Picture]) -> int:
    """Write a shard atomically, pictures in the order of the rows; returns its size in bytes.

    Raises OSError where the disk is full, and `HawkError` where parquet files cannot be written.
    """
    ordered = sorted(pictures, key=lambda each: each.name)
    with replacing(path) as temporary:
        WRITERS[format](temporary, ordered)
        return temporary.stat().st_size


def _write_webdataset(path: Path, pictures: Sequence[Picture]) -> None:
    """A tar file as webdataset reads it: `name.png`, `name.json` and `name.txt` (the prompt) of each image."""
    with tarfile.open(path, "w") as archive:
        for picture in pictures:
            members = {
                "png": picture.png,
                "json": json.dumps(picture.facts).encode(),
                "txt": picture.row.prompt.encode(),
            }
            for kind, content in members.items():
                member = tarfile.TarInfo(f"{picture.name}.{kind}")
                member.size, member.mode = len(content), 0o644
                archive.addfile(member, io.BytesIO(content))


def _write_parquet(path: Path, pictures: Sequence[Picture]) -> None:
    """A table with a row for each image: its PNG file as bytes in `image`, settings and other columns as JSON."""
    parquet = parquet_package()
    import pyarrow

    whole, real, text = pyarrow.int64(), pyarrow.float64(), pyarrow.string()
    kinds = {"index": whole, "seed": whole, "nfe": real, "accept_length": real, "image": pyarrow.binary()}
    names = (*("id", "index", "prompt", "negative_prompt", "seed", "tokens_sha256"), *("nfe", "accept_length"))
    schema = pyarrow.schema([(name, kinds.get(name, text)) for name in (*names, "settings", "columns", "image")])
    rows = []
    for picture in pictures:
        facts = picture.facts
        texts = {name: json.dumps(facts[name]) for name in ("settings", "columns")}
        rows.append({**facts, **texts, "image": picture.png})
    # Pictures are compressed already.
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path, compression="none")


WRITERS: dict[str, Callable[[Path, Sequence[Picture]], None]] = {
    "webdataset": _write_webdataset,
    "parquet": _write_parquet,
}
"""The writers of shards, by their format."""
