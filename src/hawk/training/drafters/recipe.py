"""Recipes of `hawk train drafter`: a YAML file that says how each kind of drafter is fitted. Three come with Hawk.

images: 6000                # grids to draw; one per prompt if this line is missing
draw_batch: 8               # grids drawn together; 32 if this line is missing
temperatures: [0.2, 1.0]    # grids drawn together have a temperature in this range; the model's own if it is missing
cfg_scales: [1, 3]          # and a guidance scale in this range
heads:                      # a kind of drafter
  horizontal: 3             # its shape: any field of `HeadsConfig` (`SpatialConfig`, `FeatureConfig`) but `dim`
  steps: 1600               # its fit: any field of `FitConfig` but those that are command-line options
  batch_size: 6
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from hawk.decoding.sampling import GREEDY_BELOW, MOST_GUIDANCE
from hawk.drafters.feature import FeatureConfig
from hawk.drafters.heads import HeadsConfig
from hawk.drafters.spatial import SpatialConfig
from hawk.errors import HawkError, one_line
from hawk.training.drafters.grids import SamplingRanges
from hawk.training.loop import FitConfig

RECIPES_FOLDER = Path(__file__).parent / "recipes"
SHAPES = {"heads": HeadsConfig, "spatial": SpatialConfig, "feature": FeatureConfig}
"""The kinds of drafters and the class of each kind's shape."""
COUNTS = ("images", "draw_batch")
"""The keys of a recipe that hold a number of grids."""
RANGES = {"temperatures": GREEDY_BELOW, "cfg_scales": 1.0}
"""The keys of a recipe that hold a range [low, high], and the least value of each."""
COMMAND_OPTIONS = ("seed", "device", "dtype", "compile")
"""The fields of `FitConfig` that the command line sets and a recipe cannot."""


@dataclass(frozen=True)
class KindRecipe:
    """How one kind of drafter is fitted, and the fields of its shape that differ from the defaults."""

    fit: FitConfig
    shape: dict[str, int]


@dataclass(frozen=True)
class Recipe:
    """A recipe: its name, its kinds of drafters, the number of grids to draw (None: one per prompt), and how.

    `draw_batch` grids are drawn together (None: the command's default). With `ranges` they have a setting of their own.
    """

    name: str
    kinds: dict[str, KindRecipe]
    images: int | None = None
    draw_batch: int | None = None
    ranges: SamplingRanges | None = None

    def kind(self, name: str) -> KindRecipe:
        """How a kind is fitted; raises `HawkError` if the recipe does not say so."""
        if name not in SHAPES:
            raise HawkError(f"unknown drafter kind {name!r}: choose from {', '.join(SHAPES)}")
        if name not in self.kinds:
            raise HawkError(f"recipe {self.name} has nothing on kind {name!r}, only on {', '.join(self.kinds)}")
        return self.kinds[name]


def load_recipe(name: str) -> Recipe:
    """Read a recipe that comes with Hawk, by its name, or a recipe file; raises `HawkError` if it is not valid."""
    bundled = sorted(path.stem for path in RECIPES_FOLDER.glob("*.yaml"))
    path = RECIPES_FOLDER / f"{name}.yaml" if name in bundled else Path(name)
    if not path.is_file():
        raise HawkError(f"no recipe {name!r}: give a YAML file, or one of {', '.join(bundled)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise HawkError(f"{path} is not YAML ({one_line(error)})") from error
    _check_keys(content, {*COUNTS, *RANGES, *SHAPES}, f"{path}")
    counts, ranges = ({name: content.pop(name, None) for name in names} for names in (COUNTS, RANGES))
    for key, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise HawkError(f"{path}: {key} must be a number above 0, not {value!r}")
    spans = {key: _span(value, RANGES[key], f"{path}: {key}") for key, value in ranges.items() if value is not None}
    kinds = {kind: _kind(kind, values, f"{path}: {kind}") for kind, values in content.items()}
    return Recipe(name, kinds, **counts, ranges=SamplingRanges(**spans) if spans else None)


def _span(value: Any, least: float, where: str) -> tuple[float, float]:
    """A range of a recipe; `HawkError` unless it holds two finite numbers in order, from `least` on."""
    numbers = value if isinstance(value, list) else []
    known = [float(number) for number in numbers if isinstance(number, int | float) and math.isfinite(number)]
    if len(known) != 2 or len(numbers) != 2 or not least <= known[0] <= known[1] <= MOST_GUIDANCE:
        raise HawkError(f"{where} must be two numbers [low, high] from {least} on, not {value!r}")
    return known[0], known[1]


def _kind(kind: str, values: Any, where: str) -> KindRecipe:
    fit_names = {field.name for field in fields(FitConfig)} - {*COMMAND_OPTIONS}
    shape_names = {field.name for field in fields(SHAPES[kind])} - {"dim"}
    _check_keys(values, fit_names | shape_names, where)
    shape = {name: value for name, value in values.items() if name in shape_names}
    wrong = [name for name, value in shape.items() if not isinstance(value, int) or value < (name != "vertical")]
    if wrong:
        raise HawkError(f"{where}: {wrong[0]} must be a number above 0, not {shape[wrong[0]]!r}")
    try:
        fit = TypeAdapter(FitConfig).validate_python({name: values[name] for name in values.keys() & fit_names})
    except ValidationError as error:
        first = error.errors()[0]
        raise HawkError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return KindRecipe(fit, shape)


def _check_keys(values: Any, names: set[str], where: str) -> None:
    """Raise `HawkError` unless `values` is a mapping whose keys are all in `names`."""
    if not isinstance(values, Mapping):
        raise HawkError(f"{where} must be a mapping of {', '.join(sorted(names))}")
    unknown = [name for name in values if name not in names]
    if unknown:
        raise HawkError(f"{where}: unknown key {unknown[0]!r}: choose from {', '.join(sorted(names))}")
