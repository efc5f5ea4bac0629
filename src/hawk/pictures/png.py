"""PNG files with metadata on how they were made; saving one never overwrites another picture."""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hawk.errors import HawkError, one_line
from hawk.files import write_bytes, write_new

MAX_SLUG = 60

FIRST_BYTES, LAST_CHUNK = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
"""How every PNG begins and ends."""


def slug(text: str) -> str:
    """A prompt as part of a file name: ASCII letters, digits and hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:MAX_SLUG].strip("-") or "image"


def picture_path(out: Path | None, prompt: str, seed: int, images: int, as_folder: bool = False) -> Path:
    """The path to save an image at: `out` itself if it is a .png file, else `<prompt>-<seed>.png` in the folder `out`.

    The default folder is the current one. Raises `HawkError` if `out` is a file but not a .png, one file for several
    images, or not writable.
    """
    name = f"{slug(prompt)}-{seed}.png"
    if out is None:
        return Path(name)
    if as_folder or out.is_dir() or not out.suffix:
        path = out / name
    elif out.suffix.lower() != ".png":
        raise HawkError(f"{out}: images are written as PNG: give a name that ends in .png, or a folder")
    elif images > 1:
        raise HawkError(f"{out} names one file for {images} images: give a folder")
    else:
        path = out
    check_writable(path.parent)
    return path


def check_writable(folder: Path) -> None:
    """Raise `HawkError` if a folder cannot be written to or cannot be created; nothing is created."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not existing.exists():
        raise HawkError(f"cannot write into {folder}: the link {existing} leads to nothing: name another folder")
    if not existing.is_dir():
        raise HawkError(f"cannot write into {folder}: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise HawkError(f"cannot write into {folder}: no permission in {existing}")


def save_png(image: Image.Image, path: Path, metadata: Mapping[str, str]) -> Path:
    """Write a PNG with text metadata atomically; return the path that was used.

    If another file is at `path`, `-2`, `-3`, ... is added to the name. A file with the same content is kept.
    """
    content = png_bytes(image, metadata)
    for candidate in _numbered(path):
        if write_new(candidate, content) or (candidate.is_file() and candidate.read_bytes() == content):
            return candidate
    raise AssertionError("unreachable")


def is_whole_png(path: Path) -> bool:
    """Whether a file begins and ends as a PNG does; False for a file that is missing or was cut short."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begins = file.read(len(FIRST_BYTES)) == FIRST_BYTES
        file.seek(max(file.seek(0, os.SEEK_END) - len(LAST_CHUNK), 0))
        return begins and file.read() == LAST_CHUNK


def picture_text(path: Path) -> dict[str, str]:
    """The text metadata of a PNG. Raises `HawkError` if the file is missing or no PNG."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()  # text may follow the pixels
            return dict(getattr(image, "text", {}))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise HawkError(f"{path} is no PNG picture that can be read ({one_line(error)})") from error


def saved_before(path: Path, metadata: Mapping[str, str]) -> Path | None:
    """The picture at `path`, or at its name with `-2`, `-3`, ..., whose metadata has all these values.

    None if there is no such picture. A file that is no readable picture counts as another picture.
    """
    for candidate in _numbered(path):
        if not candidate.exists():
            return None
        try:
            found = picture_text(candidate)
        except HawkError:
            continue
        if metadata.items() <= found.items():
            return candidate
    raise AssertionError("unreachable")


def write_png(image: Image.Image, path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a PNG, with text metadata or without, atomically, overwriting an earlier file; return its path."""
    write_bytes(path, png_bytes(image, metadata or {}))
    return path


def png_bytes(image: Image.Image, metadata: Mapping[str, str]) -> bytes:
    """The content of a PNG file with text metadata."""
    info = PngInfo()
    for key, value in metadata.items():
        info.add_text(key, value)  # PIL writes UTF-8 where Latin-1 is not enough
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_stem(f"{path.stem}-{number}")
        number += 1
