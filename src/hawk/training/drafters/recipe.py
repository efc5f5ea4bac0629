"""Recipes of `hawk train drafter`: how each kind is fitted, in a YAML file or by the name of one that comes with Hawk.

images: 6000                # grids to draw; left out: one for each prompt
heads:                      # a kind: what to train, and how
  horizontal: 3             # of `HeadsConfig` (`SpatialConfig`, `FeatureConfig`), all but `dim`
  steps: 1600               # of `FitConfig`
  batch_size: 6
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from hawk.drafters.feature import FeatureConfig
from hawk.drafters.heads import HeadsConfig
from hawk.drafters.spatial import SpatialConfig
from hawk.errors import HawkError
from hawk.training.loop import FitConfig

OWN = Path(__file__).parent / "recipes"
SHAPES = {"heads": HeadsConfig, "spatial": SpatialConfig, "feature": FeatureConfig}
"""Kinds of drafters and what describes them."""
ASKED = ("seed", "device", "dtype", "compile")
"""Of `FitConfig`, what a recipe leaves to the command."""


@dataclass(frozen=True)
class KindRecipe:
    """How one kind is fitted, and its shape where it is not the default."""

    fit: FitConfig
    shape: dict[str, int]


@dataclass(frozen=True)
class Recipe:
    """A recipe by name; `images` None is one for each prompt."""

    name: str
    kinds: dict[str, KindRecipe]
    images: int | None = None

    def kind(self, name: str) -> KindRecipe:
        """How a kind is fitted; `HawkError` where the recipe does not say."""
        if name not in SHAPES:
            raise HawkError(f"unknown drafter kind {name!r}: choose from {', '.join(SHAPES)}")
        if name not in self.kinds:
            raise HawkError(f"recipe {self.name} has nothing on kind {name!r}, only on {', '.join(self.kinds)}")
        return self.kinds[name]


def load_recipe(name: str) -> Recipe:
    """The recipe of a file, or of a name that comes with Hawk; `HawkError` for unknown keys and wrong values."""
    named = sorted(path.stem for path in OWN.glob("*.yaml"))
    path = OWN / f"{name}.yaml" if name in named else Path(name)
    if not path.is_file():
        raise HawkError(f"no recipe {name!r}: give a YAML file, or one of {', '.join(named)}")
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise HawkError(f"{path} is not YAML ({' '.join(str(error).split())[:120]})") from error
    _known(told, {"images", *SHAPES}, f"{path}")
    images = told.pop("images", None)
    if images is not None and (not isinstance(images, int) or images < 1):
        raise HawkError(f"{path}: images must be a number above 0, not {images!r}")
    return Recipe(name, {kind: _kind(kind, values, f"{path}: {kind}") for kind, values in told.items()}, images)


def _kind(kind: str, told: Any, where: str) -> KindRecipe:
    how = {field.name for field in fields(FitConfig)} - {*ASKED}
    what = {field.name for field in fields(SHAPES[kind])} - {"dim"}
    _known(told, how | what, where)
    shape = {name: value for name, value in told.items() if name in what}
    wrong = [name for name, value in shape.items() if not isinstance(value, int) or value < (name != "vertical")]
    if wrong:
        raise HawkError(f"{where}: {wrong[0]} must be a number above 0, not {shape[wrong[0]]!r}")
    try:
        fit = TypeAdapter(FitConfig).validate_python({name: told[name] for name in told.keys() & how})
    except ValidationError as error:
        first = error.errors()[0]
        raise HawkError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return KindRecipe(fit, shape)


def _known(told: Any, names: set[str], where: str) -> None:
    if not isinstance(told, Mapping):
        raise HawkError(f"{where} must be a mapping of {', '.join(sorted(names))}")
    unknown = [name for name in told if name not in names]
    if unknown:
        raise HawkError(f"{where}: unknown key {unknown[0]!r}: there are {', '.join(sorted(names))}")
