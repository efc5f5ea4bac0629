"""The curated word tables of `names.yaml` as a typed dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class NameTables:
    """The tables of `names.yaml`; comments in that file say what each table means."""

    dropped_subgroups: frozenset[str]
    kept_labels: frozenset[str]
    dropped_labels: frozenset[str]
    dropped_synonyms: frozenset[str]
    renamed: Mapping[str, str]
    aliases: Mapping[str, str]
    flat_color_kept: frozenset[str]
    flat_color_names: Mapping[str, str]
    clipart_translated: Mapping[str, str]
    clipart_words: frozenset[str]
    clipart_noise: frozenset[str]
    clipart_fronted: frozenset[str]
    clipart_denied: frozenset[str]
    clipart_tags: frozenset[str]
    clipart_dropped_paths: tuple[str, ...]
    dropped_slugs: tuple[str, ...]
    ungrammatical: tuple[str, ...]
    everyday: frozenset[str]
    spoken: Mapping[str, list[str]]


def read_tables() -> NameTables:
    """Read `names.yaml`."""
    raw = yaml.safe_load(files("hawk.training.sprites").joinpath("names.yaml").read_text(encoding="utf-8"))
    return NameTables(**{field.name: _typed(raw[field.name], str(field.type)) for field in fields(NameTables)})


def _typed(value: Any, kind: str) -> Any:
    if kind.startswith("Mapping"):
        return value
    items = value.split() if isinstance(value, str) else value
    return tuple(items) if kind.startswith("tuple") else frozenset(items)
