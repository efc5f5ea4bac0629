"""The photographs that `hawk-photos` is trained on: what they show, and the Debian packages that hold them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hawk.errors import HawkError

PACKAGES = ("mate-backgrounds", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04")
"""Debian packages with freely licensed photographs; THIRD_PARTY.md names authors and licences."""

SUBJECTS: dict[str, str] = {
    "Bridge_by_Sander_Klootwijk.jpg": "bridge cables",
    "Dragonfly_by_Bolly.jpg": "leaves",
    "Kleiber_by_Lukas_Baubkus.jpg": "bark",
    "Picture_0B_by_freespace.jpg": "fig",
    "Picture_1A_by_freespace.jpg": "brushes",
    "Wine_by_Jakkub_Mede.jpg": "room",
    "aitzgorri_by_Aitzol_Berasategi.jpg": "hills",
    "free_by_Peter_Nerlich.jpg": "bird",
    "friends_by_Aitzol_Berasategi.jpg": "house",
    "greentock_by_Peter_Nerlich.jpg": "clock",
    "life_by_Aitzol_Berasategi.jpg": "stream",
    "picosdeeuropa_by_Aitzol_Berasategi.jpg": "mountains",
    "seeding_by_Clements_Engelhardt.jpg": "dandelion",
    "sunset_by_Aitzol_Berasategi.jpg": "sunset",
    "nature/Aqua.jpg": "water",
    "nature/Blinds.jpg": "palm leaf",
    "nature/Dune.jpg": "dune",
    "nature/FreshFlower.jpg": "orange flower",
    "nature/Garden.jpg": "marigold",
    "nature/GreenMeadow.jpg": "grass",
    "nature/LadyBird.jpg": "ladybird",
    "nature/RainDrops.jpg": "rain",
    "nature/Storm.jpg": "storm",
    "nature/TwoWings.jpg": "seeds",
    "nature/Wood.jpg": "wood",
    "nature/YellowFlower.jpg": "yellow flower",
}
"""What each photograph shows, by the end of its path."""


@dataclass(frozen=True)
class Photo:
    """A photograph's file and its subject."""

    path: Path
    subject: str


def photos_in(folder: Path) -> list[Photo]:
    """The photographs under a folder; they are fetched into a folder that is new or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        fetch_photos(folder)
    return find_photos(folder)


def fetch_photos(folder: Path) -> None:
    """Download the packages by Debian's package manager, and unpack them into a new folder.

    Nothing is installed, and no rights are needed. Raises `HawkError` where there is no `apt-get`, or if it fails.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise HawkError(f"apt-get and dpkg-deb are needed to fetch {', '.join(PACKAGES)}: unpack them into {folder}")
    with tempfile.TemporaryDirectory() as downloads:
        got = subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=downloads, capture_output=True, text=True)
        if got.returncode:
            said = got.stderr.strip().splitlines() or [f"exit code {got.returncode}"]
            raise HawkError(f"apt-get download failed ({said[-1]}): run apt-get update first")
        for package in sorted(Path(downloads).glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(Path(downloads) / "unpacked")], check=True)
        shutil.copytree(Path(downloads) / "unpacked", folder, symlinks=True, dirs_exist_ok=True)


def find_photos(folder: Path) -> list[Photo]:
    """The photographs under a folder that holds the unpacked packages; raises `HawkError` if one is missing."""
    files = {path.as_posix(): path for path in sorted(folder.rglob("*.jpg"))}
    photos = []
    for name, subject in SUBJECTS.items():
        found = [path for text, path in files.items() if text.endswith(f"/{name}")]
        if not found:
            raise HawkError(f"no {name} under {folder}: name a new folder, into which they are fetched")
        photos.append(Photo(found[0], subject))
    return photos
