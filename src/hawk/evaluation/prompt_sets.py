"""Prompts of public benchmarks, read from the files that their authors publish.

Nothing is downloaded: a user names a benchmark and the file or folder that holds it. Every reader refuses what is not
in the published format with one line that names the file, the place in it and what is right.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from hawk.errors import HawkError, one_line
from hawk.files import prompt_lines
from hawk.models.bundled_prompts import BENCH_PROMPTS

PARTI_COLUMNS = ("Prompt", "Category", "Challenge", "Note")
HPS_STYLES = ("anime", "concept-art", "paintings", "photo")
"""The styles of the HPSv2 benchmark, each a file `<style>.json`."""
PUBLISHED_SIZES = {"parti": 1632, "geneval": 553, "dpg": 1065, "compbench": 2400, "hps": 3200}
"""How many prompts the published files hold. The paper of PartiPrompts counts 1600."""
PICTURES = (".jpeg", ".jpg", ".png", ".webp")

_ID = re.compile(r"\w[\w. -]*")
_TOKEN_LINE = re.compile(r"(?P<file>[^\t#]+)#(?P<number>\d+)\t(?P<caption>.*)")
# The published results.csv of Flickr30K lacks the second bar in one of its lines: a blank stands for it there.
_BAR_LINE = re.compile(r"(?P<file>[^|]+)\|\s*(?P<number>\d+)\s*[|\s](?P<caption>.*)")


@dataclass(frozen=True)
class PromptItem:
    """A prompt, its id within its set, and its group: the category, style or split, where the file has one."""

    id: str
    prompt: str
    group: str = ""


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one benchmark; `references` maps the id of an item to the file name of its real picture."""

    name: str
    items: tuple[PromptItem, ...]
    references: Mapping[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """How many prompts the files hold, how many the published set has if that differs, and the groups' sizes."""
        size, published = len(self.items), PUBLISHED_SIZES.get(self.name)
        text = f"{self.name}: {size} prompt{'s' if size != 1 else ''}"
        if published not in (None, size):
            text += f" of the {published} published"
        groups = Counter(item.group for item in self.items if item.group)
        return text + (f" ({', '.join(f'{group} {count}' for group, count in groups.items())})" if groups else "")


Reader = Callable[[Path], PromptSet]
"""Reads a prompt set from a file or folder. Raises `HawkError` for anything that is not in the published format."""


@dataclass(frozen=True)
class _Entry:
    """An item as it was read, and its place, such as `captions.json: annotations[3]`, for errors."""

    place: str
    item: PromptItem
    reference: str | None = None


def read_prompt_set(name: str, path: Path) -> PromptSet:
    """The prompt set `name`, one of `SETS`, in the file or folder `path`.

    Runs of blanks in a prompt become one blank. The id of a prompt of a format by lines is the number of its line.

    Raises:
        HawkError: unknown name; `path` is missing, not UTF-8 text, without a prompt, or not in the format of `name`.
    """
    if name not in SETS:
        raise HawkError(f"unknown prompt set {name!r}: choose one of {', '.join(SETS)}")
    if not path.exists():
        raise HawkError(f"{path} is missing: name the file or folder of the prompt set {name}")
    return SETS[name](path)


def built_in_prompts() -> PromptSet:
    """The prompts about what the bundled model was trained on; they need no file."""
    items = tuple(PromptItem(f"{number:02}", prompt) for number, prompt in enumerate(BENCH_PROMPTS, start=1))
    return PromptSet("built-in", items)


def reference_pictures(prompts: PromptSet, folder: Path) -> list[Path]:
    """The real pictures of a prompt set in `folder`: one an item, in the order of the items.

    A set without references takes all pictures of the folder, in the order of their names.

    Raises:
        HawkError: there is no such folder, it lacks a picture that the set names, or it holds no picture at all.
    """
    if not folder.is_dir():
        raise HawkError(f"{folder} is no folder: name the folder of reference pictures of {prompts.name}")
    if not prompts.references:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
        if not found:
            raise HawkError(f"{folder} holds no reference picture: give a folder of {', '.join(PICTURES)} files")
        return found
    wanted = [prompts.references[item.id] for item in prompts.items if item.id in prompts.references]
    lacking = [name for name in wanted if not (folder / name).is_file()]
    if lacking:
        raise HawkError(
            f"{folder} lacks {len(lacking)} of the {len(wanted)} reference pictures that {prompts.name} names, "
            f"{lacking[0]} first: give the folder that holds all of them"
        )
    return [folder / name for name in wanted]


# --- one reader a benchmark


def _coco(path: Path) -> PromptSet:
    """COCO captions 2014 or 2017: of each image the caption with the lowest annotation id."""
    expected = "give the captions of COCO, such as captions_val2017.json"
    document = _object(path, expected)
    files: dict[str, str] = {}
    for number, image in enumerate(_list(document, "images", path, expected)):
        place = f"{path}: images[{number}]"
        key = _id(_field(image, "id", place, expected), place)
        if key in files:
            raise HawkError(f"{place}: the id {key} is there twice: every image needs an id of its own")
        files[key] = _file_name(_field(image, "file_name", place, expected), place)
    first: dict[str, tuple[int, _Entry]] = {}
    seen: set[int] = set()
    for number, annotation in enumerate(_list(document, "annotations", path, expected)):
        place = f"{path}: annotations[{number}]"
        key = _id(_field(annotation, "image_id", place, expected), place)
        identity = _field(annotation, "id", place, expected)
        prompt = _prompt(_field(annotation, "caption", place, expected), place)
        if not isinstance(identity, int):
            raise HawkError(f"{place}: the id must be a whole number, not {identity!r:.40}")
        if identity in seen:
            raise HawkError(f"{place}: the id {identity} is there twice: every caption needs an id of its own")
        if key not in files:
            raise HawkError(f"{place}: image_id {key} is not among the images of the file")
        seen.add(identity)
        if key not in first or identity < first[key][0]:
            first[key] = identity, _Entry(place, PromptItem(key, prompt), files[key])
    return _gathered("coco", path, (first[key][1] for key in files if key in first))


def _flickr30k(path: Path) -> PromptSet:
    """Flickr30K: of each image the first caption; from Karpathy's JSON, the token file, or results.csv."""
    expected = "give dataset_flickr30k.json, results_20130124.token or results.csv"
    if path.suffix == ".json":
        return _gathered("flickr30k", path, _karpathy(path, expected))
    first: dict[str, tuple[int, _Entry]] = {}
    seen: set[tuple[str, int]] = set()
    lines = _lines(path, expected)
    if lines and lines[0][1].replace(" ", "") == "image_name|comment_number|comment":
        lines = lines[1:]
    for number, line in lines:
        place = f"{path}, line {number}"
        match = _TOKEN_LINE.fullmatch(line) or _BAR_LINE.fullmatch(line)
        if match is None:
            raise HawkError(f"{place} is neither FILE#NUMBER<tab>CAPTION nor FILE| NUMBER| CAPTION: {expected}")
        name, caption = _file_name(match["file"].strip(), place), int(match["number"])
        if (name, caption) in seen:
            raise HawkError(f"{place}: caption {caption} of {name} is there twice")
        seen.add((name, caption))
        if name not in first or caption < first[name][0]:
            item = PromptItem(_id(PurePosixPath(name).stem, place), _prompt(match["caption"], place))
            first[name] = caption, _Entry(place, item, name)
    return _gathered("flickr30k", path, (entry for _, entry in first.values()))


def _karpathy(path: Path, expected: str) -> Iterator[_Entry]:
    """The images of Karpathy's JSON with their first sentences, grouped by split."""
    for number, image in enumerate(_list(_object(path, expected), "images", path, expected)):
        place = f"{path}: images[{number}]"
        name = _file_name(_field(image, "filename", place, expected), place)
        sentences = _field(image, "sentences", place, expected)
        if not isinstance(sentences, list) or not sentences:
            raise HawkError(f"{place}: sentences must be a list with at least one sentence")
        prompt = _prompt(_field(sentences[0], "raw", f"{place}.sentences[0]", expected), f"{place}.sentences[0]")
        item = PromptItem(_id(PurePosixPath(name).stem, place), prompt, str(image.get("split", "")))
        yield _Entry(place, item, name)


def _parti(path: Path) -> PromptSet:
    """PartiPrompts: tab-separated columns without any quoting, grouped by category."""
    expected = f"the columns of PartiPrompts.tsv are {', '.join(PARTI_COLUMNS)}, with tabs between them"
    lines = _lines(path, expected)
    if lines and tuple(lines[0][1].split("\t")) != PARTI_COLUMNS:
        raise HawkError(f"{path}, line {lines[0][0]}: {expected}")
    entries = []
    for number, line in lines[1:]:
        cells, place = line.split("\t"), f"{path}, line {number}"
        if len(cells) != len(PARTI_COLUMNS):
            raise HawkError(f"{place} has {len(cells)} columns, not {len(PARTI_COLUMNS)}: {expected}")
        entries.append(_Entry(place, PromptItem(str(number), _prompt(cells[0], place), cells[1])))
    return _gathered("parti", path, entries)


def _geneval(path: Path) -> PromptSet:
    """GenEval: a JSON object a line with `prompt` and `tag`, grouped by tag."""
    expected = "give GenEval's evaluation_metadata.jsonl"
    entries = []
    for number, line in _lines(path, expected):
        place = f"{path}, line {number}"
        document = _parsed(line, place, expected)
        prompt = _prompt(_field(document, "prompt", place, expected), place)
        entries.append(_Entry(place, PromptItem(str(number), prompt, str(_field(document, "tag", place, expected)))))
    return _gathered("geneval", path, entries)


def _dpg(path: Path) -> PromptSet:
    """DPG-Bench: a folder with one prompt a text file, grouped by the letters that a file's name begins with."""
    entries = []
    expected = "give the folder dpg_bench/prompts of DPG-Bench, which holds a .txt file for each prompt"
    for file in _files(path, "*.txt", expected):
        group = re.match(r"[A-Za-z]*", file.stem)
        prompt = _prompt(_text(file, expected), str(file))
        entries.append(_Entry(str(file), PromptItem(_id(file.stem, str(file)), prompt, group[0] if group else "")))
    return _gathered("dpg", path, entries)


def _compbench(path: Path) -> PromptSet:
    """T2I-CompBench: a prompt a line; of a folder the files `<category>_val.txt`; grouped by category."""
    expected = "give the folder examples/dataset of T2I-CompBench, or one of its .txt files"
    entries = []
    for file in [path] if path.is_file() else _files(path, "*_val.txt", expected):
        for number, line in _lines(file, expected):
            place = f"{file}, line {number}"
            item = PromptItem(_id(f"{file.stem}-{number}", place), _prompt(line, place), file.stem.removesuffix("_val"))
            entries.append(_Entry(place, item))
    return _gathered("compbench", path, entries)


def _hps(path: Path) -> PromptSet:
    """HPSv2: a JSON list of prompts a style, from the folder of all four styles or from one file."""
    files = ", ".join(f"{style}.json" for style in HPS_STYLES)
    expected = f"give HPSv2's folder benchmark with {files}, or one of these files"
    entries = []
    for file in [path] if path.is_file() else [path / f"{style}.json" for style in HPS_STYLES]:
        prompts = _parsed(_text(file, expected), str(file), expected)
        if not isinstance(prompts, list):
            raise HawkError(f"{file} must hold a JSON list of prompts: {expected}")
        for number, prompt in enumerate(prompts):
            place = f"{file}: entry {number}"
            item = PromptItem(_id(f"{file.stem}-{number:05}", place), _prompt(prompt, place), file.stem)
            entries.append(_Entry(place, item))
    return _gathered("hps", path, entries)


def _plain(path: Path) -> PromptSet:
    """A text file with one prompt a line; blank lines and lines that begin with # are left out."""
    entries = [
        _Entry(f"{path}, line {number}", PromptItem(str(number), _prompt(line, f"{path}, line {number}")))
        for number, line in prompt_lines(_text(path, "give a text file with one prompt a line"))
    ]
    return _gathered("text", path, entries)


SETS: dict[str, Reader] = {
    "coco": _coco,
    "flickr30k": _flickr30k,
    "parti": _parti,
    "geneval": _geneval,
    "dpg": _dpg,
    "compbench": _compbench,
    "hps": _hps,
    "text": _plain,
}
"""The prompt sets that can be named, with their readers."""


# --- parts of the readers


def _gathered(name: str, path: Path, entries: Iterable[_Entry]) -> PromptSet:
    """The prompt set of entries. Raises `HawkError` if there is none, or if two have one id."""
    found: dict[str, _Entry] = {}
    for entry in entries:
        if entry.item.id in found:
            raise HawkError(
                f"{entry.place}: the id {entry.item.id} is there twice, first at {found[entry.item.id].place}: "
                "every prompt needs an id of its own"
            )
        found[entry.item.id] = entry
    if not found:
        raise HawkError(f"{path} holds no prompt: it is empty, or not the file of the prompt set {name}")
    references = {key: entry.reference for key, entry in found.items() if entry.reference is not None}
    return PromptSet(name, tuple(entry.item for entry in found.values()), references)


def _prompt(value: Any, place: str) -> str:
    """A prompt with single blanks. Raises `HawkError` if the value is no text or is blank."""
    if not isinstance(value, str):
        raise HawkError(f"{place}: a prompt must be text, not {value!r:.40}")
    prompt = " ".join(value.split())
    if not prompt:
        raise HawkError(f"{place}: the prompt is empty")
    return prompt


def _id(value: Any, place: str) -> str:
    """An id as text, which can be part of a file name. Raises `HawkError` for any other value."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole and not (isinstance(value, str) and _ID.fullmatch(value)):
        raise HawkError(f"{place}: an id must be a whole number, or letters and digits, not {value!r:.40}")
    return str(value)


def _file_name(value: Any, place: str) -> str:
    """The path of a picture inside its folder. Raises `HawkError` for other values and paths that leave the folder."""
    if not isinstance(value, str) or not value or PurePosixPath(value).is_absolute() or ".." in value.split("/"):
        raise HawkError(f"{place}: the file name of a picture must be a path inside its folder, not {value!r:.40}")
    return value


def _field(document: Any, name: str, place: str, expected: str) -> Any:
    """A field of a JSON object. Raises `HawkError` if the document is no object or lacks the field."""
    if not isinstance(document, dict) or name not in document:
        raise HawkError(f"{place} has no {name!r}: {expected}")
    return document[name]


def _list(document: Any, name: str, path: Path, expected: str) -> list[Any]:
    """A field of a JSON object that must be a list."""
    value = _field(document, name, str(path), expected)
    if not isinstance(value, list):
        raise HawkError(f"{path}: {name!r} must be a list: {expected}")
    return value


def _object(path: Path, expected: str) -> dict[str, Any]:
    """The JSON object in a file."""
    document = _parsed(_text(path, expected), str(path), expected)
    if not isinstance(document, dict):
        raise HawkError(f"{path} must hold a JSON object: {expected}")
    return document


def _parsed(text: str, place: str, expected: str) -> Any:
    """The JSON document in a text. Raises `HawkError` with the place at which the text is no JSON."""
    if not text.strip():
        raise HawkError(f"{place} is empty: {expected}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HawkError(f"{place} is not valid JSON ({one_line(error)}): {expected}") from error


def _lines(path: Path, expected: str) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, each with its number; the first line has the number 1."""
    # Not splitlines(): prompts may hold characters such as U+2028, which are no ends of lines in these files.
    lines = enumerate(_text(path, expected).split("\n"), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def _text(path: Path, expected: str) -> str:
    """The text of a UTF-8 file without its byte-order mark, its lines ending in a line feed."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise HawkError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8; {expected}") from error
    except OSError as error:
        raise HawkError(f"cannot read {path} ({error.strerror}): {expected}") from error
    if "\0" in text:
        raise HawkError(f"{path} is not UTF-8 text (it holds zero bytes): save it as UTF-8; {expected}")
    return text


def _files(folder: Path, pattern: str, expected: str) -> list[Path]:
    """The files of a folder that match a pattern, by name. Raises `HawkError` if there is none."""
    found = sorted(folder.glob(pattern)) if folder.is_dir() else []
    if not found:
        raise HawkError(f"{folder} holds no {pattern} file: {expected}")
    return found
