"""Settings of `hawk`'s pool: how it was fitted, the limits of a caller, and the step costs of this machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from hawk.decoding.arguments import whole_number
from hawk.decoding.grid import Grid
from hawk.decoding.pacing import Rung
from hawk.decoding.planning import WIDTHS, StepCosts, TimedTarget, kept_costs, known_seconds, step_seconds
from hawk.decoding.recording import Engine
from hawk.errors import HawkError
from hawk.files import read_fields, write_json
from hawk.machine import machine_name
from hawk.nn.layers import same_bits_in_windows

HEAD_SOURCES = ("horizontal", "vertical-1", "vertical-2")
"""Sources of the draft heads."""


DRIFT = 1.5
"""Steps are timed again when they take this many times as long as kept, or the kept seconds this many times as long."""

MOST_NODES = 1024
"""The most nodes or positions that a file may ask for; a step over so many takes longer than plain AR."""

Modest = Annotated[float, Field(ge=-1e6, le=1e6)]
Chance = Annotated[float, Field(ge=0, le=1)]
Reach = Annotated[int, Field(ge=1, le=MOST_NODES)]
Gain = Annotated[float, Field(gt=0, le=MOST_NODES)]
SourceName = Annotated[str, Field(pattern=r"^(stale|spatial|horizontal|vertical-[1-9][0-9]?)$")]
"""Numbers and names of `pool.json` that a pool can compute with; only a file is checked for them."""

REFRESH = 32
"""Positions past the frontier that every step scores where stale guesses are a source."""


MOST_DRAFTS = 1024
"""The most drafts of a step that a caller can ask for: memory grows with the square of their number."""


@dataclass(frozen=True)
class TreeLimits:
    """A caller's limits: drafts a step, and positions past the frontier; None leaves the choice to the method."""

    num_draft_tokens: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("num_draft_tokens", self.num_draft_tokens), ("window", self.window)):
            if value is None:
                continue
            number = whole_number(name, value)
            if number < 1:
                raise HawkError(f"{name} must be 1 or more, not {number}: choose method 'ar' for no drafts")
            object.__setattr__(self, name, number)

    def within(self, grid: Grid) -> TreeLimits:
        """The limits clamped to what a grid has room for, and to `MOST_DRAFTS` drafts."""
        reach = max(grid.size - 1, 1)
        return TreeLimits(
            None if self.num_draft_tokens is None else min(self.num_draft_tokens, max(reach, MOST_DRAFTS)),
            None if self.window is None else min(self.window, reach),
        )


@dataclass(frozen=True)
class FusedSettings:
    """Settings of `FusedPool`, fitted or given.

    Args:
        weights: `weights[pattern][offset]` holds the weights of the sources that are present at an offset, in order. A
            pattern lists their indices: "0,1" is horizontal and vertical-1. The last row serves all further offsets.
        edges: bounds between the bins of `rate`, in nats of log q + g.
        rate: `rate[bin][rank]` is the measured chance that a candidate is the target's token. The bin follows from the
            lead of the first candidate over the second.
        sources: names of the pool's sources, in order.
        max_nodes: most nodes of the best-first tree, root included.
        window: most positions past the frontier in the best-first tree.
        refresh: length to which the first branch is always extended, so that the target scores these positions
            and makes the stale guesses of the next step (window refresh, as in Jacobi decoding).
        node_cost: time of one more node, as a share of a step without drafts. A tree grows while a node raises the
            expected tokens per time.
        measured_on: the machine on which `node_cost` and `refresh` were chosen; "" for any machine.
        tokens_at: `tokens_at[reach]` is the mean number of tokens that a step with a window of that reach commits.
        ladder: the reaches among which each step of a window chooses; empty where every step has the reach `refresh`.
            It follows from `tokens_at` and the step costs of the machine at hand, and is not saved.
        paced: whether each step chooses its reach anew, or all steps of a drawing have the one that is best for the
            number of images. It follows from the device, and is not saved.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    weights: dict[str, tuple[tuple[Modest, ...], ...]]
    edges: tuple[float, ...]
    rate: tuple[tuple[Chance, ...], ...]
    sources: Annotated[tuple[SourceName, ...], Field(min_length=1, max_length=8)] = HEAD_SOURCES
    max_nodes: Annotated[int, Field(le=MOST_NODES)] = 24
    window: Annotated[int, Field(le=MOST_NODES)] = 16
    refresh: Annotated[int, Field(ge=0, le=MOST_NODES)] = 0
    node_cost: Annotated[float, Field(ge=0)] = 0.03
    measured_on: str = ""
    tokens_at: Annotated[dict[Reach, Gain], Field(max_length=64)] = field(default_factory=dict)
    ladder: Annotated[tuple[Rung, ...], Field(max_length=0)] = ()
    paced: bool = True

    @property
    def windows(self) -> bool:
        """Whether the drafts are a window, whose reach can be chosen anew at each step."""
        return bool(self.refresh and self.tokens_at) and self.sources == ("stale",)

    @property
    def widths(self) -> list[int]:
        """The numbers of nodes whose steps must be timed to choose node cost and window."""
        return sorted({*WIDTHS, *(reach + 1 for reach in self.tokens_at)})

    def rates(self, lead: float) -> tuple[float, ...]:
        """Chance of each rank where the first candidate leads by `lead` nats."""
        return self.rate[sum(lead >= edge for edge in self.edges)]

    def limited(self, limits: TreeLimits) -> FusedSettings:
        """The settings within a caller's limits."""
        nodes, refresh, most = self.max_nodes, self.refresh, limits.num_draft_tokens
        if limits.window is not None and refresh:
            refresh = limits.window
        if most is not None:  # the window comes first, since it makes the stale guesses of the next step
            refresh = min(refresh, most)
            nodes = most + 1 - refresh
        ladder = self.ladder if limits == TreeLimits() else ()  # a caller who names a width gets that width
        return replace(self, max_nodes=nodes, refresh=refresh, window=limits.window or self.window, ladder=ladder)

    def at_costs(self, seconds: dict[int, float], machine: str, paced: bool = False) -> FusedSettings:
        """The settings for a machine whose steps take `seconds[nodes]`.

        The node cost is the slope of a line through the seconds, as a share of a step of one node. The window is the
        one with the fewest seconds for each committed token. The ladder holds all of them, and plain AR.
        """
        slope, intercept = statistics.linear_regression(list(seconds), list(seconds.values()))
        step = max(intercept + slope, 1e-9)
        refresh = self.refresh
        if refresh and self.tokens_at:
            refresh = min(self.tokens_at, key=lambda reach: seconds[reach + 1] / self.tokens_at[reach])
        rungs = {0: 1.0, **self.tokens_at} if self.windows else {}
        ladder = tuple(Rung(reach, seconds[reach + 1], tokens) for reach, tokens in sorted(rungs.items()))
        cost = max(slope, 0.0) / step
        return replace(self, node_cost=cost, refresh=refresh, measured_on=machine, ladder=ladder, paced=paced)

    def save(self, folder: Path) -> None:
        """Write `pool.json`."""
        own = {name: value for name, value in asdict(self).items() if name not in ("ladder", "paced")}
        write_json(folder / "pool.json", own)

    @classmethod
    def load(cls, folder: Path) -> FusedSettings:
        """Read `pool.json`; `HawkError` where the file is missing or does not have this form."""
        path = folder / "pool.json"
        if not path.is_file():
            raise HawkError(f"no {path}: fit the pool with `hawk train drafter --kind heads`")
        try:
            return read_fields(cls, path)
        except HawkError as error:
            wrong = str(error).removeprefix(f"{path}: ")
            raise HawkError(f"{path} is not a pool that `hawk train drafter` wrote: {wrong}") from error

    @classmethod
    def unfitted(cls, sources: tuple[str, ...] = HEAD_SOURCES) -> FusedSettings:
        """Equal weights and rough chances of acceptance, for sources whose pool is not fitted."""
        count = len(sources)
        patterns = [c for size in range(1, count + 1) for c in combinations(range(count), size)]
        weights: dict[str, tuple[tuple[float, ...], ...]] = {
            pattern_key(c): ((1.0 / len(c),) * len(c),) for c in patterns
        }
        rate = tuple(tuple(first * 0.5**rank for rank in range(6)) for first in (0.4, 0.6, 0.8, 0.95))
        return cls(weights, (0.5, 1.5, 4.0), rate, sources, refresh=REFRESH if "stale" in sources else 0)


@dataclass(frozen=True)
class KnownWindow:
    """How far past the frontier the steps of `hawk` reach on a machine, and since when that is known.

    `measured` is the day of the measurement, None where that is not known: the settings came with the drafter, or an
    earlier version of Hawk measured.
    """

    reach: int
    measured: date | None = None


def settings_for(
    settings: FusedSettings, target: TimedTarget, model: str, engine: Engine = "eager", anew: bool = False
) -> FusedSettings:
    """The settings with the node cost and window of this machine and engine; settings measured on both stay.

    Times a few steps once for a `model` (its fingerprint), device, dtype of weights and engine
    (`planning.known_seconds`), or once more if `anew`.
    """
    machine = machine_name(target.device, target.weight_dtype)
    here = name_with_engine(machine, engine)
    # Where rounding depends on the shape of a step, reaches that change would make the image depend on them.
    paced = same_bits_in_windows(target.device, target.dtype)
    if settings.measured_on == "" or (settings.measured_on == here and not settings.windows):
        return settings
    widths = settings.widths
    key = costs_key(model, machine, engine)
    seconds = known_seconds(key, widths, lambda: step_seconds(target, widths, 5, engine), anew)
    return settings.at_costs(seconds, here, paced)


def known_window(settings: FusedSettings, model: str, machine: str, engine: Engine) -> KnownWindow | None:
    """The window that `settings_for` chooses on a machine, if no step has to be timed for it; else None."""
    if settings.measured_on in ("", name_with_engine(machine, engine)):
        return KnownWindow(settings.refresh or settings.window)
    costs = kept_costs().get(costs_key(model, machine, engine))
    seconds = None if costs is None else costs.at(settings.widths)
    if costs is None or seconds is None:
        return None
    at_costs = settings.at_costs(seconds, machine)
    return KnownWindow(at_costs.refresh or at_costs.window, costs.measured)


def costs_of(target: TimedTarget, model: str, engine: Engine) -> StepCosts | None:
    """The costs that are kept for a model's steps on this machine and engine; None where there are none."""
    return kept_costs().get(costs_key(model, machine_name(target.device, target.weight_dtype), engine))


def drifted(drawn: float, target: TimedTarget, costs: StepCosts | None, engine: Engine, nodes: int) -> bool | None:
    """Whether steps over about `nodes` nodes take `DRIFT` times as long as the seconds kept in `costs`, or the reverse.

    `drawn` is the mean seconds of a step while an image was drawn, and `nodes` its mean number of nodes. The seconds
    include the drawing of noise, so they are only a hint that steps got slower: a few steps are then timed to be sure.
    None means that `drawn` gives no hint, or that no seconds are kept.
    """
    if costs is None or not costs.seconds:
        return None
    nodes = min(costs.seconds, key=lambda width: abs(width - nodes))
    kept = costs.seconds[nodes]
    if kept / DRIFT <= drawn < DRIFT * kept:
        return None
    return drawn < kept or step_seconds(target, [nodes], 5, engine)[nodes] >= DRIFT * kept


def costs_key(model: str, machine: str, engine: Engine) -> str:
    """The key under which the step costs of a model on a machine are kept."""
    return f"{model}, {machine}, {engine}"


def name_with_engine(machine: str, engine: Engine) -> str:
    """What `FusedSettings.measured_on` says of a machine and an engine."""
    return machine if engine == "eager" else f"{machine}, {engine}"


def pattern_key(sources: Iterable[int]) -> str:
    """The key in `FusedSettings.weights` of a set of present sources."""
    return ",".join(map(str, sorted(sources)))


def depth_of(name: str) -> int:
    """The number of rows that a vertical source looks up; 0 for any other source."""
    return int(name.removeprefix("vertical-")) if name.startswith("vertical-") else 0
