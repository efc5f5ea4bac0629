"""Build and read the data set: public pictures become RGBA sprites in webdataset shards with checksums."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from hawk.errors import HawkError
from hawk.files import replacing, write_bytes
from hawk.processes import process_pool
from hawk.training.sprites.naming import Vocabulary, name_icon, read_vocabulary
from hawk.training.sprites.records import SPRITE_SIZE, Split, SpriteRecord, SpriteSet
from hawk.training.sprites.sources import (
    EMOJIBASE,
    Archive,
    PictureSource,
    chosen_sources,
    fetch_archive,
    file_sha256,
    raw_icons,
)
from hawk.training.sprites.tables import read_tables

MARGIN = 4  # pixels between an object and the edge of its sprite
SHARD_SIZE = 1000
HELD_OUT_PERCENT = 3
RENDER_VERSION = 3  # part of every shard's fingerprint: raise it when rendering or the JSON changes
MIN_COVER = 0.02  # a sprite with a smaller share of opaque pixels is left out
MAX_CLIP_ART_COVER = 0.8  # clip art with a larger share of opaque pixels shows a scene, not an object


@dataclass(frozen=True)
class SpriteJob:
    """A picture to render: its record, and its file as the package ships it."""

    record: SpriteRecord
    payload: bytes
    is_svg: bool


@dataclass(frozen=True)
class Rendered:
    """A rendered sprite, or the reason why there is none."""

    record: SpriteRecord
    png: bytes
    failure: str = ""


@dataclass(frozen=True)
class BuildReport:
    """What `build_dataset` wrote. `shards_kept` counts shards of an earlier run, `skipped` pictures by reason."""

    out: Path
    sprites: int
    shards: int
    shards_kept: int
    per_source: dict[str, int]
    skipped: dict[str, int]


def split_of(style: str, name: str) -> Split:
    """The split of a (style, concept) pair: a fixed 3 % are held out; other styles of such a concept are trained on."""
    digest = hashlib.sha256(f"{style}\n{name}".encode()).digest()
    return "held-out" if int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT else "train"


def plan_source(source: PictureSource, archive_path: Path, vocabulary: Vocabulary) -> Iterator[SpriteJob]:
    """The jobs that render the pictures of a source, without those that have no English name."""
    for icon in raw_icons(source, archive_path):
        naming = name_icon(source, icon, vocabulary)
        if naming is None:
            continue
        folder = f"{icon.folder.replace('/', '-')}-" if icon.folder else ""
        record = SpriteRecord(
            key=f"{source.name}-{folder}{icon.slug}".replace(".", "-"),
            name=naming.name,
            names=(naming.name, *naming.synonyms),
            tags=naming.tags,
            style=source.style,
            source=source.name,
            licence=source.licence,
            split=split_of(source.style, naming.name),
        )
        yield SpriteJob(record, icon.payload, icon.is_svg)


def plan(
    sources: Sequence[PictureSource], cache: Path, limit: int | None = None, labels: Archive = EMOJIBASE
) -> list[SpriteJob]:
    """The jobs of all sources, sorted by a hash of their keys: the first `limit` jobs are a mixture of all sources."""
    vocabulary = read_vocabulary(fetch_archive(labels, cache))
    jobs = [
        job
        for source in tqdm(sources, desc="sources", unit="source")
        for job in plan_source(source, fetch_archive(source.archive, cache), vocabulary)
    ]
    jobs.sort(key=lambda job: hashlib.sha256(job.record.key.encode()).digest())
    return jobs[:limit]


def render_sprite(payload: bytes, is_svg: bool) -> Image.Image:
    """Render a picture as 128x128 RGBA; its object fills the image up to a margin and keeps its aspect ratio."""
    if is_svg:
        import resvg_py

        box = SPRITE_SIZE * 2
        payload = resvg_py.svg_to_bytes(
            svg_string=payload.decode(), width=box, height=box, dpi=96, skip_system_fonts=True
        )
    image = Image.open(io.BytesIO(payload)).convert("RGBA")
    visible = image.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    sprite = Image.new("RGBA", (SPRITE_SIZE, SPRITE_SIZE))
    if visible is None:
        return sprite
    image = image.crop(visible)
    scale = (SPRITE_SIZE - 2 * MARGIN) / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # Premultiplied alpha keeps the colour of invisible pixels out of the object's edge. The Hamming filter has no
    # negative lobes; a filter with them would draw a faint halo on a background that has to be constant.
    resized = image.convert("RGBa").resize((width, height), Image.Resampling.HAMMING).convert("RGBA")
    sprite.paste(resized, ((SPRITE_SIZE - width) // 2, (SPRITE_SIZE - height) // 2))
    return sprite


def is_pale(sprite: Image.Image) -> bool:
    """Whether the object is so near to white that it would be invisible on a white background."""
    rgba = np.asarray(sprite)
    visible = rgba[rgba[..., 3] > 127][:, :3]
    return len(visible) > 0 and float((visible.min(axis=1) < 215).mean()) < 0.06


def render_job(job: SpriteJob) -> Rendered:
    """Render one picture; if that fails, the result holds the reason."""
    try:
        sprite = render_sprite(job.payload, job.is_svg)
    except (ValueError, OSError) as error:
        return Rendered(job.record, b"", f"unreadable ({type(error).__name__})")
    except BaseException as panic:  # a Rust panic of resvg derives from BaseException, and its type cannot be imported
        if type(panic).__name__ != "PanicException":
            raise
        return Rendered(job.record, b"", "renderer panic")
    cover = float((np.asarray(sprite)[..., 3] > 127).mean())
    if cover < MIN_COVER:
        return Rendered(job.record, b"", "nearly empty")
    if cover > MAX_CLIP_ART_COVER and job.record.style == "clip art":
        return Rendered(job.record, b"", "a scene, not an object")
    record = SpriteRecord(**{**asdict(job.record), "dark_background_only": is_pale(sprite)})
    buffer = io.BytesIO()
    sprite.save(buffer, "PNG", compress_level=6)
    return Rendered(record, buffer.getvalue())


def _quiet_renderer() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # hide the backtrace of each panic: panics are counted


def build_dataset(
    out: Path, sources: Sequence[str] | None = None, limit: int | None = None, workers: int = 2
) -> BuildReport:
    """Fetch the sources, render their pictures, and write `sprites-*.tar` and `index.json` under `out`.

    The same input gives the same bytes. A finished shard is kept if its checksum is right.

    Args:
        sources: names from `sources.SOURCES`; None uses all of them.
        limit: the largest number of pictures to render, a mixture of all sources.
        workers: the number of rendering processes; 0 renders in this process.

    Raises:
        HawkError: a wrong limit or number of workers, an unknown source, a failed download.
    """
    if limit is not None and limit < 1:
        raise HawkError(f"limit is {limit}: give a positive number of pictures")
    if workers < 0:
        raise HawkError(f"workers is {workers}: give 0 or more processes")
    chosen = chosen_sources(None if sources is None else tuple(sources))
    out.mkdir(parents=True, exist_ok=True)
    jobs = plan(chosen, out / "cache", limit)
    versions = {s.name: f"{s.archive.package} {s.archive.version}" for s in chosen}
    return write_shards(out, jobs, versions, workers)


def write_shards(
    out: Path, jobs: Sequence[SpriteJob], versions: dict[str, str], workers: int, shard_size: int = SHARD_SIZE
) -> BuildReport:
    """Render `jobs` into shards; shards that an earlier run finished are kept."""
    chunks = [jobs[start : start + shard_size] for start in range(0, len(jobs), shard_size)]
    finished = _finished_shards(out)
    shards: list[dict[str, Any]] = []
    kept = 0
    several = process_pool(workers, _quiet_renderer) if workers else nullcontext()
    with several as pool, tqdm(total=len(jobs), desc="rendering", unit="image") as bar:
        for number, chunk in enumerate(chunks):
            name, fingerprint = f"sprites-{number:06d}.tar", _fingerprint(chunk)
            shard = finished.get(name)
            if shard is not None and shard["inputs_sha256"] == fingerprint:
                kept += 1
                bar.update(len(chunk))
            else:
                rendered: list[Rendered] = []
                for result in pool.map(render_job, chunk, chunksize=16) if pool else map(render_job, chunk):
                    rendered.append(result)
                    bar.update()
                shard = _write_shard(out / name, rendered) | {"inputs_sha256": fingerprint}
            shards.append(shard)
            _write_index(out, shards, versions, complete=number == len(chunks) - 1)
    written = {shard["file"] for shard in shards}
    for old in out.glob("sprites-*.tar"):  # left over from a larger build
        if old.name not in written:
            old.unlink()
    return _report(out, shards, kept)


def _report(out: Path, shards: Sequence[dict[str, Any]], kept: int) -> BuildReport:
    per_source: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for shard in shards:
        per_source.update(shard["per_source"])
        skipped.update(shard["skipped"])
    return BuildReport(out, per_source.total(), len(shards), kept, dict(sorted(per_source.items())), dict(skipped))


def _fingerprint(chunk: Iterable[SpriteJob]) -> str:
    digest = hashlib.sha256(f"render {RENDER_VERSION}".encode())
    for job in chunk:
        digest.update(json.dumps(asdict(job.record), sort_keys=True).encode())
        digest.update(hashlib.sha256(job.payload).digest())
    return digest.hexdigest()


def _finished_shards(out: Path) -> dict[str, dict[str, Any]]:
    if not (out / "index.json").exists():
        return {}
    shards = _read_index(out)["shards"]
    return {
        shard["file"]: shard
        for shard in shards
        if (out / shard["file"]).exists() and file_sha256(out / shard["file"]) == shard["sha256"]
    }


def _write_shard(path: Path, rendered: Sequence[Rendered]) -> dict[str, Any]:
    done = sorted((r for r in rendered if not r.failure), key=lambda r: r.record.key)
    with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sprite in done:
            text = json.dumps(asdict(sprite.record), sort_keys=True).encode()
            for suffix, content in (("json", text), ("png", sprite.png)):
                member = tarfile.TarInfo(f"{sprite.record.key}.{suffix}")  # mtime, uid and gid stay 0
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return {
        "file": path.name,
        "sha256": file_sha256(path),
        "count": len(done),
        "per_source": dict(sorted(Counter(r.record.source for r in done).items())),
        "skipped": dict(sorted(Counter(r.failure for r in rendered if r.failure).items())),
    }


def _write_index(out: Path, shards: Sequence[dict[str, Any]], versions: dict[str, str], complete: bool) -> None:
    report = _report(out, shards, 0)
    index = {
        "format": "hawk-sprites-1",
        "complete": complete,
        "count": report.sprites,
        "per_source": report.per_source,
        "skipped": report.skipped,
        "source_versions": versions,
        "shards": list(shards),
    }
    write_bytes(out / "index.json", json.dumps(index, indent=1).encode())


def _read_index(data_dir: Path) -> dict[str, Any]:
    path = data_dir / "index.json"
    if not path.exists():
        raise HawkError(f"{data_dir} holds no dataset: build one with `hawk data build --out {data_dir}`")
    try:
        index = json.loads(path.read_text())
    except ValueError:
        index = None
    if not isinstance(index, dict) or index.get("format") != "hawk-sprites-1":
        raise HawkError(f"{path} is not an index of sprites: delete it and build the dataset again")
    return index


def load_sprites(data_dir: Path, split: str | None = None) -> SpriteSet:
    """Read all sprites of a split ("train", "held-out", or None for both) and verify the checksums of the shards.

    The first call decodes the shards into `sprites.npy`; later calls map that file into memory.

    Raises:
        HawkError: there is no data set, it is unfinished, a shard is missing or corrupted, or the split is unknown.
    """
    if split not in (None, "train", "held-out"):
        raise HawkError(f"unknown split {split!r}: choose 'train' or 'held-out'")
    index = _read_index(data_dir)
    if not index["complete"]:
        raise HawkError(f"the dataset in {data_dir} is unfinished: run `hawk data build --out {data_dir}` again")
    for shard in index["shards"]:
        path = data_dir / shard["file"]
        if not path.exists() or file_sha256(path) != shard["sha256"]:
            raise HawkError(f"{path} is missing or corrupted: run `hawk data build --out {data_dir}` again")
    records = _decoded_cache(data_dir, index)
    rgba = np.load(data_dir / "sprites.npy", mmap_mode="r")
    train = sum(record.split == "train" for record in records)
    rows = {None: slice(None), "train": slice(0, train), "held-out": slice(train, None)}[split]
    spoken = read_tables().spoken
    return SpriteSet(rgba[rows], tuple(with_spoken_names(record, spoken) for record in records[rows]))


def with_spoken_names(record: SpriteRecord, spoken: Mapping[str, Sequence[str]]) -> SpriteRecord:
    """The record with the names of `spoken` added: a "lady beetle" is also called "ladybug"."""
    names = tuple(dict.fromkeys((*record.names, *spoken.get(record.name, ()))))
    return replace(record, names=names)


def _decoded_cache(data_dir: Path, index: dict[str, Any]) -> list[SpriteRecord]:
    """The records in the order of `sprites.npy` (train first); both files are rebuilt if the shards have changed."""
    stamp = hashlib.sha256(json.dumps([s["sha256"] for s in index["shards"]]).encode()).hexdigest()
    cache = data_dir / "sprites.json"
    if cache.exists() and (data_dir / "sprites.npy").exists():
        stored = json.loads(cache.read_text())
        if stored["shards_sha256"] == stamp:
            return [_record(fields) for fields in stored["records"]]
    samples = sorted(_samples(data_dir, index), key=lambda s: (s[0].split != "train", s[0].key))
    shape = (len(samples), SPRITE_SIZE, SPRITE_SIZE, 4)
    header = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
    # The file is not mapped into memory here: on a full disk, a signal kills a process that writes through a map.
    with replacing(data_dir / "sprites.npy") as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _, png in tqdm(samples, desc="decoding", unit="image"):
            file.write(np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).tobytes())
    records = [record for record, _ in samples]
    stored = {"shards_sha256": stamp, "records": [asdict(record) for record in records]}
    write_bytes(cache, json.dumps(stored).encode())
    return records


def _samples(data_dir: Path, index: dict[str, Any]) -> Iterator[tuple[SpriteRecord, bytes]]:
    for shard in index["shards"]:
        with tarfile.open(data_dir / shard["file"]) as tar:
            contents = {m.name: file.read() for m in tar.getmembers() if (file := tar.extractfile(m)) is not None}
        for name, text in contents.items():
            if name.endswith(".json"):
                yield _record(json.loads(text)), contents[name.removesuffix(".json") + ".png"]


def _record(fields: dict[str, Any]) -> SpriteRecord:
    return SpriteRecord(**{**fields, "names": tuple(fields["names"]), "tags": tuple(fields["tags"])})
