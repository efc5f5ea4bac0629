"""Building and reading the data set, with tiny fake packages and without a network."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hawk.errors import HawkError
from hawk.training.sprites import data, sources
from hawk.training.sprites.data import SpriteJob, load_sprites, plan, render_job, split_of, write_shards
from hawk.training.sprites.naming import clean_name
from hawk.training.sprites.records import SpriteRecord
from hawk.training.sprites.sources import Archive, PictureSource, chosen_sources, fetch_archive


def disc(colour: tuple[int, int, int], box: tuple[int, int, int, int] = (10, 30, 190, 120)) -> bytes:
    """A PNG of 200x200 pixels: an ellipse on a transparent background."""
    image = Image.new("RGBA", (200, 200))
    ImageDraw.Draw(image).ellipse(box, fill=(*colour, 255))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def job(name: str, payload: bytes | None = None, style: str = "flat") -> SpriteJob:
    key = f"{style}-{name.replace(' ', '-')}"
    record = SpriteRecord(key, name, (name,), (), style, "fake", "MIT", split_of(style, name))
    return SpriteJob(record, payload or disc((200, len(name) * 5, 40)), is_svg=False)


WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
JOBS = [job(f"thing number {word}") for word in WORDS]


def test_shards_are_deterministic_to_the_byte(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_shards(tmp_path / folder, JOBS, {"fake": "fake 1"}, workers=0, shard_size=4)
    names = [path.name for path in sorted((tmp_path / "a").iterdir())]
    assert names == ["index.json", "sprites-000000.tar", "sprites-000001.tar", "sprites-000002.tar"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_a_build_resumes_and_rebuilds_only_what_changed(tmp_path: Path) -> None:
    report = write_shards(tmp_path, JOBS, {}, workers=0, shard_size=4)
    assert (report.sprites, report.shards, report.shards_kept) == (10, 3, 0)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")}
    (tmp_path / "sprites-000001.tar").unlink()
    (tmp_path / "sprites-000002.tar").write_bytes(b"half written")
    again = write_shards(tmp_path, JOBS, {}, workers=0, shard_size=4)
    assert again.shards_kept == 1
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")} == before
    changed = [replace(JOBS[0], payload=disc((0, 0, 255))), *JOBS[1:]]
    assert write_shards(tmp_path, changed, {}, workers=0, shard_size=4).shards_kept == 2
    assert (tmp_path / "sprites-000000.tar").read_bytes() != before["sprites-000000.tar"]


def test_an_interrupted_build_is_refused_until_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_at_the_sixth(given: SpriteJob) -> data.Rendered:
        if given is JOBS[5]:
            raise KeyboardInterrupt
        return render_job(given)

    with monkeypatch.context() as patched:
        patched.setattr(data, "render_job", stop_at_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            write_shards(tmp_path, JOBS, {}, workers=0, shard_size=4)
    with pytest.raises(HawkError, match="unfinished"):
        load_sprites(tmp_path)
    assert write_shards(tmp_path, JOBS, {}, workers=0, shard_size=4).shards_kept == 1
    assert len(load_sprites(tmp_path)) == 10


def test_a_smaller_build_leaves_no_old_shards_behind(tmp_path: Path) -> None:
    write_shards(tmp_path, JOBS, {}, workers=0, shard_size=4)
    write_shards(tmp_path, JOBS[:4], {}, workers=0, shard_size=4)
    assert len(list(tmp_path.glob("*.tar"))) == 1


def test_reading_returns_what_was_written_and_splits_it(tmp_path: Path) -> None:
    many = [
        job(f"{word} {n}", style=style)
        for word in ("pear", "owl")
        for n in "abcdefghijklmno"
        for style in ("flat", "3d")
    ]
    write_shards(tmp_path, many, {}, workers=0, shard_size=25)
    everything, train, held_out = (load_sprites(tmp_path, split) for split in (None, "train", "held-out"))
    assert everything.rgba.shape == (60, 128, 128, 4)
    assert everything.rgba.dtype == np.uint8
    assert len(train) + len(held_out) == 60
    assert len(train.rgba) == len(train)
    assert {r.split for r in train.records} == {"train"}
    by_key = {record.key: rgba for record, rgba in zip(everything.records, everything.rgba, strict=True)}
    for given in many[::7]:
        png = Image.open(io.BytesIO(render_job(given).png))
        assert np.array_equal(by_key[given.record.key], np.asarray(png))
    assert sorted(np.concatenate(list(everything.by_style.values()))) == list(range(60))


def test_the_held_out_share_is_three_percent_and_fixed() -> None:
    splits = [split_of("noto", f"concept {n}") for n in range(5000)]
    assert 0.02 < splits.count("held-out") / 5000 < 0.04
    assert splits == [split_of("noto", f"concept {n}") for n in range(5000)]
    held_out = next(n for n in range(5000) if splits[n] == "held-out")
    assert any(split_of(style, f"concept {held_out}") == "train" for style in ("flat", "3d", "blob"))


def test_a_corrupted_shard_is_refused_in_one_line(tmp_path: Path) -> None:
    write_shards(tmp_path, JOBS, {}, workers=0, shard_size=4)
    load_sprites(tmp_path)
    shard = tmp_path / "sprites-000001.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    with pytest.raises(HawkError, match=r"sprites-000001\.tar is missing or corrupted") as caught:
        load_sprites(tmp_path)
    assert "\n" not in str(caught.value)


def test_other_bad_input_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(HawkError, match="holds no dataset"):
        load_sprites(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(HawkError, match="not an index of sprites"):
        load_sprites(tmp_path)
    with pytest.raises(HawkError, match="unknown split 'test'"):
        load_sprites(tmp_path, "test")
    with pytest.raises(HawkError, match="unknown source openmoji: choose from"):
        chosen_sources(("noto", "openmoji"))
    with pytest.raises(HawkError, match="limit is 0"):
        data.build_dataset(tmp_path, limit=0)
    with pytest.raises(HawkError, match="workers is -1"):
        data.build_dataset(tmp_path, workers=-1)


def test_an_object_fills_the_frame_up_to_the_margin_and_keeps_its_aspect() -> None:
    sprite = Image.open(io.BytesIO(render_job(job("egg")).png))
    left, top, right, bottom = sprite.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox() or (0, 0, 0, 0)
    assert (left, right) == (4, 124)
    assert bottom - top == pytest.approx(120 / 2, abs=2)  # the ellipse is twice as wide as high
    assert top + bottom == pytest.approx(128, abs=1)


def test_useless_pictures_are_counted_and_pale_ones_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thin = disc((9, 9, 9), (10, 100, 190, 101))
    jobs = [job("hair", thin), job("noise", b"no picture"), job("ghost", disc((250, 250, 252))), job("pear")]
    report = write_shards(tmp_path, jobs, {}, workers=0)
    assert report.sprites == 2
    assert report.skipped == {"nearly empty": 1, "unreadable (UnidentifiedImageError)": 1}
    assert {r.name: r.dark_background_only for r in load_sprites(tmp_path).records} == {
        "ghost": True,
        "pear": False,
    }

    class PanicException(BaseException):  # the name that a Rust panic of the renderer has in Python
        pass

    def panics(payload: bytes, is_svg: bool) -> Image.Image:
        raise PanicException

    monkeypatch.setattr(data, "render_sprite", panics)
    assert render_job(job("pear")).failure == "renderer panic"


def test_worker_processes_render_the_same_bytes(tmp_path: Path) -> None:
    reports = []
    for workers in (0, 1):
        (tmp_path / str(workers)).mkdir()
        reports.append(write_shards(tmp_path / str(workers), JOBS[:3], {}, workers=workers))
    assert reports[0].sprites == reports[1].sprites == 3
    assert len({(tmp_path / n / "sprites-000000.tar").read_bytes() for n in "01"}) == 1


def test_svg_is_rendered_with_transparency() -> None:
    pytest.importorskip("resvg_py")
    circle = b'<circle cx="50" cy="50" r="30"/>'
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="40mm" height="40mm">' + circle + b"</svg>"
    rendered = render_job(replace(job("ball", svg), is_svg=True))
    rgba = np.asarray(Image.open(io.BytesIO(rendered.png)))
    assert rgba[64, 64].tolist() == [0, 0, 0, 255]
    assert rgba[2, 2, 3] == 0


def package(cache: Path, name: str, files: dict[str, bytes]) -> Archive:
    """Write a fake npm tarball into the cache; returns its pinned archive."""
    cache.mkdir(exist_ok=True)
    archive = Archive(name, "1.0.0", "")
    with tarfile.open(cache / archive.filename, "w:gz") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return replace(archive, sha256=hashlib.sha256((cache / archive.filename).read_bytes()).hexdigest())


def fake_labels(cache: Path) -> Archive:
    def emoji(label: str, symbol: str, subgroup: int, tags: list[str], **more: object) -> dict[str, object]:
        hexcode = "-".join(f"{ord(c):04X}" for c in symbol)
        return {
            "label": label,
            "emoji": symbol,
            "hexcode": hexcode,
            "subgroup": subgroup,
            "tags": tags,
        } | more

    thumb = emoji("thumbs up", "\U0001f44d", 2, ["yes"], skins=[{"hexcode": "1F44D-1F3FB"}])
    emojis = [
        emoji("red apple", "\U0001f34e", 1, ["fruit"]),
        emoji("snowflake", "\u2744\ufe0f", 1, ["cold"]),
        emoji("flag: Norway", "\U0001f1f3\U0001f1f4", 3, ["no"]),
        emoji("person: red hair", "\U0001f9d1\u200d\U0001f9b0", 4, ["adult"]),
        thumb,
    ]
    subgroups = {"1": "food-fruit", "2": "hand-fingers-closed", "3": "country-flag", "4": "person"}
    codes = {"1F34E": ["apple", "red_apple"], "1F44D": "+1"}
    files: dict[str, object] = {"en/data.json": emojis, "meta/groups.json": {"subgroups": subgroups}}
    files |= {
        f"en/shortcodes/{n}.json": codes for n in ("emojibase", "github", "joypixels", "iamcal", "emojibase-legacy")
    }
    return package(cache, "labels", {path: json.dumps(content).encode() for path, content in files.items()})


def test_icons_are_named_by_slug_or_code_point_and_junk_is_left_out(tmp_path: Path) -> None:
    body = {"body": "<circle r='9'/>"}
    slugs = [
        "red-apple",
        "apple",
        "thumbs-up",
        "thumbs-up-dark-skin-tone",
        "flag-norway",
        "person-red-hair-light",
        "new-thing",
    ]
    icons = dict.fromkeys(slugs, body) | {"gone": body | {"hidden": True}}
    iconify = package(
        tmp_path, "icons", {"icons.json": json.dumps({"icons": icons, "width": 24, "height": 32}).encode()}
    )
    raster = package(tmp_path, "raster", {"assets/2744-fe0f.png": disc((1, 2, 3)), "assets/1f44d-1f3fb.png": b""})
    fake = [
        PictureSource("noto", iconify, "MIT", "noto"),
        PictureSource("fluent-3d", raster, "MIT", "3d", "raster"),
    ]
    jobs = plan(fake, tmp_path, labels=fake_labels(tmp_path))
    named = {j.record.key: j.record for j in jobs}
    assert sorted(named) == [
        "fluent-3d-2744-fe0f",
        "noto-apple",
        "noto-new-thing",
        "noto-red-apple",
        "noto-thumbs-up",
    ]
    assert named["noto-apple"].name == named["noto-red-apple"].name == "red apple"
    assert named["noto-red-apple"].names == ("red apple", "apple")
    assert named["noto-red-apple"].tags == ("fruit",)
    assert named["fluent-3d-2744-fe0f"].name == "snowflake"
    assert named["fluent-3d-2744-fe0f"].style == "3d"
    assert named["noto-new-thing"].name == "new thing"
    assert b'viewBox="0 0 24 32"' in next(j.payload for j in jobs if j.record.key == "noto-apple")
    assert [j.record.key for j in plan(fake, tmp_path, 2, fake_labels(tmp_path))] == [j.record.key for j in jobs[:2]]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("person: curly hair", "person with curly hair"),
        ("A button (blood type)", "a button"),
        ("cat_face-2", "cat face"),
        ("woman’s boot", "woman's boot"),
        ("T-shirt", "t-shirt"),
        ("piñata", "pinata"),
        ("12", ""),
    ],
)
def test_names_become_plain_english(raw: str, clean: str) -> None:
    assert clean_name(raw) == clean


def test_a_fetch_that_cannot_be_done_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = package(tmp_path, "thing", {"a.json": b"{}"})
    assert fetch_archive(archive, tmp_path) == tmp_path / archive.filename
    monkeypatch.setattr(sources.shutil, "which", lambda command: None)
    (tmp_path / archive.filename).write_bytes(b"broken")
    with pytest.raises(HawkError, match="npm is needed to fetch thing"):
        fetch_archive(archive, tmp_path)


def test_every_source_is_pinned_and_free_to_redistribute() -> None:
    for source in sources.SOURCES:
        assert len(source.archive.sha256) == 64
        assert source.licence in {"MIT", "Apache-2.0", "CC-BY-4.0", "public domain"}
    third_party = (Path(__file__).parent.parent / "THIRD_PARTY.md").read_text()
    for archive in (sources.EMOJIBASE, *(s.archive for s in sources.SOURCES)):
        assert f"| {archive.package} | {archive.version} |" in third_party
