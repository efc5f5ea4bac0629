"""Name what a picture shows: package slugs, code points and file names become a label, synonyms and tags."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hawk.training.sprites.sources import PictureSource, RawIcon, read_member
from hawk.training.sprites.tables import NameTables, read_tables

MAX_NAME_WORDS = 9


@dataclass(frozen=True)
class Concept:
    """What an emoji shows: its cleaned label, synonyms and tags from emojibase; pictures of it are used if `kept`."""

    label: str
    synonyms: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    kept: bool = True


@dataclass(frozen=True)
class Vocabulary:
    """All concepts of emojibase, by code points and by squeezed name; known English words; and the curated tables."""

    by_hexcode: Mapping[str, Concept]
    by_name: Mapping[str, Concept]
    words: frozenset[str]
    tables: NameTables


@dataclass(frozen=True)
class Naming:
    """The words for one picture; `name` is its label."""

    name: str
    synonyms: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


def squeeze(name: str) -> str:
    """The name in lower case with only its letters and digits: "Person: Curly-hair" -> "personcurlyhair"."""
    plain = unicodedata.normalize("NFKD", name.lower().replace("&", "and"))
    return re.sub(r"[^a-z0-9]", "", plain)


def clean_name(name: str) -> str:
    """A label, slug or file name in plain lower-case English; "" if nothing usable is left.

    "person: curly hair" -> "person with curly hair"; "A button (blood type)" -> "a button";
    "cat_face-2" -> "cat face".
    """
    text = name.lower().replace("’", "'").replace("&", " and ")
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    text = re.sub(r"\([^)]*\)", " ", text)
    text = re.sub(r"^(person|man|woman): ", r"\1 with ", text)
    text = re.sub(r"[_:,.!/]+", " ", text)
    text = re.sub(r"(?<![a-z0-9])-|-(?![a-z0-9])", " ", text)
    text = re.sub(r"\b\d+\b|(?<=[a-z])-?\d+\b", " ", text)
    words = " ".join(text.split())
    if (len(re.findall("[a-z]", words)) < 3 and words != "ox") or len(words.split()) > MAX_NAME_WORDS:
        return ""
    return words


def plain_name(name: str, tables: NameTables) -> str:
    """`clean_name`, or the better name that the table `renamed` has for it."""
    cleaned = clean_name(name)
    return tables.renamed.get(cleaned, cleaned)


def read_vocabulary(archive_path: Path) -> Vocabulary:
    """Read labels, synonyms and tags from the emojibase-data package."""
    tables = read_tables()
    emojis = json.loads(read_member(archive_path, "en/data.json"))
    groups = json.loads(read_member(archive_path, "meta/groups.json"))["subgroups"]
    shortcodes = {
        name: json.loads(read_member(archive_path, f"en/shortcodes/{name}.json"))
        for name in ("emojibase", "github", "joypixels", "iamcal", "emojibase-legacy")
    }
    by_hexcode: dict[str, Concept] = {}
    by_name: dict[str, Concept] = {}
    for emoji in emojis:
        by_hexcode[emoji["hexcode"]] = concept = _concept(emoji, groups, shortcodes, tables)
        for skin in emoji.get("skins", ()):
            by_hexcode[skin["hexcode"]] = Concept(concept.label, kept=False)
        by_name.setdefault(squeeze(emoji["label"]), concept)
    for emoji in emojis:
        symbol = emoji["emoji"].replace("\ufe0f", "")
        if len(symbol) == 1:
            by_name.setdefault(squeeze(unicodedata.name(symbol, "unnamed")), by_hexcode[emoji["hexcode"]])
    for codes in shortcodes.values():
        for hexcode, names in codes.items():
            for name in [names] if isinstance(names, str) else names:
                if hexcode in by_hexcode:
                    by_name.setdefault(squeeze(name), by_hexcode[hexcode])
    words = {
        word
        for concept in by_hexcode.values()
        if concept.kept
        for name in (concept.label, *concept.tags)
        for word in name.split()
        if len(word) >= 3
    }
    by_bare = {bare_hexcode(hexcode): concept for hexcode, concept in by_hexcode.items()}
    return Vocabulary(by_bare, by_name, tables.clipart_words | words, tables)


def bare_hexcode(hexcode: str) -> str:
    """The code points without the variation selector, which some packages write and others leave out."""
    return hexcode.upper().replace("-FE0F", "")


def _concept(
    emoji: Mapping[str, Any],
    groups: Mapping[str, str],
    shortcodes: Mapping[str, Mapping[str, Any]],
    tables: NameTables,
) -> Concept:
    label, lowered = str(emoji["label"]), str(emoji["label"]).lower()
    subgroup = groups.get(str(emoji.get("subgroup", "")), "component")
    if re.fullmatch(r"\w+ o’clock", lowered):
        return Concept(f"clock showing {clean_name(label)}", ("clock",), ("time",))
    dropped = (
        subgroup in tables.dropped_subgroups
        or lowered in tables.dropped_labels
        or lowered.endswith("-thirty")
        or (": " in label and not re.match(r"(person|man|woman): ", lowered))
        or bool(re.search(r" facing right$|button", lowered))
    )
    name = plain_name(label, tables)
    codes = [shortcodes[source].get(emoji["hexcode"], []) for source in ("emojibase", "github")]
    spoken = [code for found in codes for code in ([found] if isinstance(found, str) else found)]
    synonyms = [_synonym(plain_name(code, tables), subgroup, tables) for code in spoken if not re.search(r"\d", code)]
    tags = [plain_name(str(tag), tables) for tag in emoji.get("tags") or ()]
    return Concept(
        name,
        tuple(s for s in dict.fromkeys(synonyms) if s and s != name),
        tuple(tag for tag in dict.fromkeys(tags) if tag and tag != name),
        kept=bool(name) and (not dropped or lowered in tables.kept_labels),
    )


def _synonym(name: str, subgroup: str, tables: NameTables) -> str:
    """A shortcode as a noun phrase: "angry" -> "angry face"; "" if it is none ("running" does not name a runner)."""
    if name in tables.dropped_synonyms or _matches(tables.ungrammatical, name):
        return ""
    if subgroup.startswith("face-"):
        if re.search(r"face|clown|robot|alien|ghost|skull|imp$|monkey|ogre|goblin|invader|poop", name):
            return name
        return f"{name} face" if len(name.split()) == 1 else ""
    if subgroup.startswith("person"):
        return (
            name
            if re.search(r"person|people|\bw?o?m[ae]n\b|woman|(er|or|ist|cop|adult|angel|santa|royalty)s?$", name)
            else ""
        )
    return name


def _matches(patterns: Sequence[str], text: str) -> bool:
    return any(re.search(pattern, text) for pattern in patterns)


def name_icon(source: PictureSource, icon: RawIcon, vocabulary: Vocabulary) -> Naming | None:
    """The words for a picture; None leaves it out (skin tones, flags, letters, logos, names that are not English)."""
    tables = vocabulary.tables
    if source.kind == "openclipart":
        return _name_clipart(icon, vocabulary)
    if source.name == "flat-color":
        name = tables.flat_color_names.get(icon.slug) or plain_name(icon.slug.replace("-", " "), tables)
        return Naming(name) if icon.slug in tables.flat_color_kept else None
    slug = re.sub(r"(?<=[a-z])-\d$", "", icon.slug)
    alias = tables.aliases.get(squeeze(slug), slug)
    if alias.startswith("="):
        return Naming(alias[1:])
    concept = (
        vocabulary.by_hexcode.get(bare_hexcode(icon.hexcode or ""))
        or vocabulary.by_name.get(squeeze(alias))
        or vocabulary.by_name.get(squeeze(alias.removeprefix("person-")))
    )
    if concept is not None:
        return Naming(concept.label, concept.synonyms, concept.tags) if concept.kept else None
    if source.name == "fxemoji" or source.kind == "raster" or _matches(tables.dropped_slugs, icon.slug):
        return None
    name = plain_name(slug.replace("-", " "), tables)
    return Naming(name) if name else None


def _name_clipart(icon: RawIcon, vocabulary: Vocabulary) -> Naming | None:
    tables, slug = vocabulary.tables, icon.slug.lower()
    if _matches(tables.clipart_dropped_paths, f"{icon.folder}/{icon.slug}"):
        return None
    generic = re.search(r"clip ?art|road signs|icons|maps|illustration|collection|r\d\d ", icon.title.lower())
    title = [] if generic else plain_name(icon.title, tables).split()
    words = re.split(r"[_\s]+", slug)
    translated = tables.clipart_translated
    name = next((translated[key] for key in _first_words(words) if key in translated), None)
    if name is None:
        name = _english_start(title, vocabulary) or _english_start(words, vocabulary)
    if icon.folder.startswith("computer") and name in {"mouse", "tower", "desktop", "lemon"}:
        name = "" if name == "lemon" else f"computer {name}".replace("computer desktop", "desktop computer")
    if not name or name in tables.clipart_denied:
        return None
    if re.search(r"_(bw|b_w|bn)(_|$)", slug):
        name = f"black and white {name}"
    folders = [clean_name(folder).removesuffix("s") for folder in icon.folder.split("/")]
    return Naming(name, tags=tuple(f for f in folders if f in tables.clipart_tags and f not in name))


def _first_words(words: Sequence[str]) -> tuple[str, ...]:
    """Keys of `clipart_translated` for a file name: its first three, two, one words; the first without its number."""
    return ("_".join(words[:3]), "_".join(words[:2]), words[0], re.sub(r"-?\d+$", "", words[0]))


def _english_start(words: Sequence[str], vocabulary: Vocabulary) -> str:
    """The English words at the start of a file name: ["flying", "wasp", "gerald", "g"] -> "flying wasp"."""
    tables, kept = vocabulary.tables, list[str]()
    for word in (re.sub(r"(-md)?(-v)?[\d.]*$", "", word) for word in words):
        if word not in vocabulary.words:
            break
        kept.append(word)
    kept = kept[:4]
    while kept and kept[0] in {"a", "an", "the", "another", "new", "my", "simple"}:
        kept.pop(0)
    fronted: list[str] = []
    while kept and kept[-1] in tables.clipart_noise | tables.clipart_fronted:
        word = kept.pop()
        if word in tables.clipart_fronted and kept and not fronted:
            fronted = [word]
        elif word in tables.clipart_fronted:
            return word if word == "orange" else ""
    kept = [word for word in fronted if word != "simple"] + kept
    if kept[:1] == ["contour"]:
        kept = [*kept[1:], "silhouette"]
    if not kept or kept[-1] in {"contour", "cartoon", "little", "small", "big", "old", "electric", "flat"}:
        return ""
    return plain_name(" ".join(kept), tables)
