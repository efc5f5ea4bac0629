"""The settings and the shapes of the fair table: what each method is given in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.methods import JACOBI_TREES, METHODS

TOP_K = 1000
"""The top-k of the last setting."""

WINDOWS = (16, 32, 48, 64, 96)
"""The windows among which the best one of a Jacobi method is searched."""
FRONTIER_WINDOWS = (5, 21, 37, 53)
"""The same for a Jacobi method with a tree of ten more nodes at its frontier: trees of 16, 32, 48 and 64 nodes."""
BUDGETS = (4, 8, 16, 32, 64)
"""The numbers of drafts a step among which the best one of a tree method is searched."""
AUTHORS_OTHERS = {"sjd": (96,)}
"""Windows that a method's authors use besides the method's default."""


@dataclass(frozen=True)
class Setting:
    """Sampling parameters under the names that the table gives them; equal settings are one, with several names."""

    names: tuple[str, ...]
    params: SamplingParams

    @property
    def name(self) -> str:
        """All names in one string."""
        return "; ".join(self.names)

    @property
    def folder(self) -> str:
        """The name of the folder that keeps what was measured at this setting."""
        params = self.params
        return f"t{params.temperature:g}-cfg{params.cfg_scale:g}-k{params.top_k}-p{params.top_p:g}"

    @property
    def overrides(self) -> dict[str, Any]:
        """The setting as arguments of the pipeline's call."""
        names = {"cfg_scale": "guidance_scale"}
        return {names.get(name, name): value for name, value in asdict(self.params).items()}


@dataclass(frozen=True)
class FairSettings:
    """The settings of the table, and a sentence about each that was left out."""

    settings: list[Setting]
    left_out: list[str]


def fair_settings(defaults: SamplingParams, vocab: int) -> FairSettings:
    """The settings for a model with these defaults and this number of image tokens; equal settings are merged."""
    warm = replace(defaults, temperature=1.0, cfg_scale=1.5)
    asked = {
        "the model's default": defaults,
        "temperature 1, CFG 1.5": warm,
        "temperature 1, CFG 3": replace(warm, cfg_scale=3.0),
    }
    left_out = []
    top = f"temperature 1, CFG 1.5, top-k {TOP_K}"
    if vocab > TOP_K:
        asked[top] = replace(warm, top_k=TOP_K)
    else:
        left_out.append(
            f"{top} is left out: the model has {vocab} image tokens, so that top-k {TOP_K} would keep all of them"
        )
    merged: dict[SamplingParams, list[str]] = {}
    for name, params in asked.items():
        merged.setdefault(params, []).append(name)
    return FairSettings([Setting(tuple(names), params) for params, names in merged.items()], left_out)


@dataclass(frozen=True)
class Shape:
    """Limits of a method's drafts, as the pipeline's call takes them; None leaves the choice to the method."""

    window: int | None = None
    num_draft_tokens: int | None = None

    @property
    def arguments(self) -> dict[str, int]:
        """The shape as arguments of the pipeline's call."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Entry:
    """A method with a shape."""

    method: str
    shape: Shape = Shape()

    @property
    def key(self) -> str:
        """The entry in a file's name."""
        shape = self.shape.arguments
        return "-".join([self.method, *(f"{name}{value}" for name, value in shape.items())])

    @property
    def label(self) -> str:
        """The shape in words."""
        window = self.shape.window or METHODS[self.method].window
        if window:
            return f"window {window}"
        drafts = self.shape.num_draft_tokens
        return "own" if drafts is None else f"{drafts} drafts"


def authors_entries(methods: Iterable[str], grid: Grid) -> list[Entry]:
    """The methods with the shapes of their authors, which are the methods' defaults; some authors use another, too."""
    entries = [
        Entry(method, shape)
        for method in methods
        for shape in (Shape(), *(Shape(window) for window in AUTHORS_OTHERS.get(method, ())))
    ]
    return distinct(entries, grid)


def ladder(method: str, grid: Grid) -> list[Entry]:
    """The entries among which a method's best shape is searched, the authors' first; only one where it has no choice.

    `hawk` chooses its own window by the step times of the machine, and is taken as it is.
    """
    own = authors_entries([method], grid)
    if method in ("ar", "hawk"):
        return own
    if METHODS[method].window:
        windows = FRONTIER_WINDOWS if has_tree(method) else WINDOWS
        return distinct([*own, *(Entry(method, Shape(window)) for window in windows)], grid)
    return distinct([*own, *(Entry(method, Shape(num_draft_tokens=drafts)) for drafts in BUDGETS)], grid)


def entry_of_nodes(method: str, nodes: int) -> Entry:
    """A method whose steps verify `nodes` nodes, root included, where the method and the image have so many."""
    if has_tree(method):
        tree = JACOBI_TREES[method]
        beside = tree.max_nodes - 1 - tree.window
        return Entry(method, Shape(max(1, nodes - 1 - beside), nodes - 1))
    if METHODS[method].window or method == "hawk":
        return Entry(method, Shape(nodes - 1, nodes - 1))
    return Entry(method, Shape(num_draft_tokens=nodes - 1))


def has_tree(method: str) -> bool:
    """Whether a Jacobi method has a tree at its frontier, and not a chain alone."""
    return method in JACOBI_TREES and JACOBI_TREES[method].branching > 1


def distinct(entries: Iterable[Entry], grid: Grid) -> list[Entry]:
    """The entries without those that a grid clamps to the shape of an earlier one."""
    reach = max(grid.size - 1, 1)
    found: dict[tuple[str, int | None, int | None], Entry] = {}
    for entry in entries:
        window, drafts = entry.shape.window or METHODS[entry.method].window, entry.shape.num_draft_tokens
        clamped = (entry.method, min(window, reach) if window else None, drafts)
        found.setdefault(clamped, entry)
    return list(found.values())
