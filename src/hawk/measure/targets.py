"""`hawk bench --suite targets`: Hawk on the shapes of large published models, beside transformers' own `generate`.

The weights are random: how many of its own drafts `hawk` finds right on them says nothing of trained weights. So it is
measured as it is and with given drafts. With given drafts, each of which is the token of plain AR with a set chance
and a wrong token otherwise, `hawk` shows the speed at an accept length that a drafter reaches on trained weights.

All series take turns in one process, from prompts of the same length. The prompt's own forward is not timed.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hawk.decoding.canvas import Canvas
from hawk.decoding.grid import Grid
from hawk.decoding.pacing import mean_tokens
from hawk.decoding.planning import step_seconds
from hawk.decoding.request import Request
from hawk.decoding.stats import Stats
from hawk.decoding.tree import Window
from hawk.decoding.window import WindowState, finish, first_window, follow, pace_of
from hawk.drafters.methods import METHODS, UNTRAINED, build_drafter
from hawk.machine import machine_facts
from hawk.measure.published import PUBLISHED, MadeUp
from hawk.measure.scaling import WITHOUT_PLOTS
from hawk.models.loading import DTYPES
from hawk.pictures.plots import figure_class, save_figure

TRANSFORMERS, PLAIN, HAWK = "transformers", "ar", "hawk"


@dataclass(frozen=True)
class TargetsSweep:
    """What the suite measures.

    Attributes:
        targets: functions that make a target for a grid, by name.
        grid: the image that every series draws; few rows, since the cost of a token does not depend on their number.
        accept_lengths: tokens per forward that a window without end would commit with the given drafts.
        rounds: how often each series draws the image; medians count.
        dtype: in which Hawk holds the weights, a name in `DTYPES`; transformers holds them in float32.
    """

    targets: Mapping[str, Callable[[Grid, torch.dtype], MadeUp]] = field(default_factory=lambda: PUBLISHED)
    grid: Grid = field(default_factory=lambda: Grid(2, 24))
    accept_lengths: tuple[float, ...] = (1.5, 2.5, 4.2, 6.0)
    rounds: int = 2
    dtype: str = "float16"


@dataclass(frozen=True)
class Series:
    """Median seconds for each token of one way to draw, on one target.

    Attributes:
        series: "transformers", "ar" or "hawk".
        given: the accept length that the given drafts would have in a window without end; None where nothing is given.
        reach: the window's reach at each step; None where each step chooses it.
        accept_length: tokens committed per forward.
        identical: whether the tokens of every round are those of plain AR; None for transformers.
    """

    target: str
    series: str
    given: float | None
    reach: int | None
    seconds_per_token: float
    accept_length: float
    speedup_vs_transformers: float
    speedup_vs_ar: float
    identical: bool | None


@dataclass(frozen=True)
class TargetFacts:
    """A target's size, what transformers ran beside it, and the seconds of Hawk's step by its number of nodes."""

    target: str
    weight_bytes: int
    rival: str
    step_seconds: dict[int, float]


@dataclass(frozen=True)
class TargetsResult:
    """All series and targets, and the environment that they were measured in."""

    series: list[Series]
    targets: list[TargetFacts]
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The JSON document that `hawk bench` prints last."""
        return asdict(self)


@dataclass(frozen=True)
class Drawn:
    """One drawing: seconds for each token after the first, tokens per forward, and the tokens."""

    seconds_per_token: float
    accept_length: float
    tokens: Int[Tensor, " n"] | None = None


Draw = Callable[[int, Int[Tensor, " n"] | None], Drawn]
"""Draws the image with a seed; it is given the tokens that plain AR drew with that seed."""


def run_targets(
    sweep: TargetsSweep | None = None,
    on_progress: Callable[[str], None] = lambda what: None,
    on_target: Callable[[TargetsResult], None] = lambda result: None,
) -> TargetsResult:
    """Measure every target of the sweep (None: the default one) on this machine's CPU.

    `on_progress` is called after each part with the name of what was measured, `on_target` with the result of each
    target as soon as that target is measured.
    """
    sweep = sweep or TargetsSweep()
    environment = machine_facts(torch.device("cpu"), sweep.dtype) | {"settings": settings(sweep)}
    results: list[TargetsResult] = []
    for name, make in sweep.targets.items():
        made = make(sweep.grid, DTYPES[sweep.dtype])
        on_progress(f"{name}: made")
        seconds = step_seconds(made.target, UNTRAINED.fused.widths, 3)
        on_progress(f"{name}: steps")
        series = series_of(name, made, seconds, sweep, on_progress)
        results.append(TargetsResult(series, [TargetFacts(name, made.weights, made.rival, seconds)], environment))
        on_target(results[-1])
        # The memory is needed for the next target; transformers' modules refer to each other in circles.
        del made
        gc.collect()
    series = [one for result in results for one in result.series]
    return TargetsResult(series, [facts for result in results for facts in result.targets], environment)


def settings(sweep: TargetsSweep) -> dict[str, Any]:
    """What the figures depend on, beside the machine."""
    return {"grid": [sweep.grid.height, sweep.grid.width], "rounds": sweep.rounds, "seeds": list(range(sweep.rounds))}


def series_of(
    name: str, made: MadeUp, seconds: dict[int, float], sweep: TargetsSweep, on_progress: Callable[[str], None]
) -> list[Series]:
    """Every series on one target; they take turns, in each round with another seed."""
    windows = {length: best_window(length, seconds) for length in sweep.accept_lengths}
    draws: dict[tuple[str, float | None], Draw] = {
        (PLAIN, None): lambda seed, truth: drawn_by_window(made, Window(0), sweep.grid, seed),
        (TRANSFORMERS, None): lambda seed, truth: drawn_by_transformers(made, sweep.grid, seed),
        (HAWK, None): by_own_drafts(made, seconds, sweep.grid),
        **{(HAWK, length): by_given_drafts(made, length, windows[length], sweep.grid) for length in windows},
    }
    rounds: dict[tuple[str, float | None], list[Drawn]] = {key: [] for key in draws}
    same = dict.fromkeys(draws, True)
    for seed in range(sweep.rounds):
        truth: Int[Tensor, " n"] | None = None
        for key, draw in draws.items():
            drawn = draw(seed, truth)
            truth = drawn.tokens if key == (PLAIN, None) else truth
            same[key] &= drawn.tokens is None or (truth is not None and torch.equal(drawn.tokens, truth))
            rounds[key].append(replace(drawn, tokens=None))
            on_progress(f"{name}: {key[0]}{'' if key[1] is None else f' at {key[1]}'}")
    median = {key: statistics.median(one.seconds_per_token for one in found) for key, found in rounds.items()}
    return [
        Series(
            target=name,
            series=kind,
            given=length,
            reach=0 if kind == PLAIN else None if length is None else windows[length].reach,
            seconds_per_token=median[kind, length],
            accept_length=statistics.fmean(one.accept_length for one in found),
            speedup_vs_transformers=median[TRANSFORMERS, None] / median[kind, length],
            speedup_vs_ar=median[PLAIN, None] / median[kind, length],
            identical=None if kind == TRANSFORMERS else same[kind, length],
        )
        for (kind, length), found in rounds.items()
    ]


def chance_of(accept_length: float) -> float:
    """The chance that a draft is right under which a window without end commits so many tokens a step: 1 - 1/a."""
    return 1 - 1 / accept_length


def best_window(accept_length: float, seconds: Mapping[int, float]) -> Window:
    """The window that takes the least time for each token, among those whose steps were timed."""
    chance = chance_of(accept_length)
    return Window(min(seconds, key=lambda nodes: seconds[nodes] / mean_tokens(chance, nodes - 1)) - 1)


def by_own_drafts(made: MadeUp, seconds: dict[int, float], grid: Grid) -> Draw:
    """`hawk` as it draws a model without a trained drafter; what a round taught of the drafts is known in the next."""
    fused = UNTRAINED.fused.at_costs(seconds, "here", paced=True)
    drafter = build_drafter(METHODS[HAWK], replace(UNTRAINED, fused=fused), made.target)
    assert isinstance(drafter, Window)
    learnt = [0.0]

    def draw(seed: int, truth: Int[Tensor, " n"] | None) -> Drawn:
        return drawn_by_window(made, replace(drafter, skill=learnt[0]), grid, seed, learnt=learnt)

    return draw


def by_given_drafts(made: MadeUp, accept_length: float, window: Window, grid: Grid) -> Draw:
    """`hawk` with given drafts."""
    chance = chance_of(accept_length)

    def draw(seed: int, truth: Int[Tensor, " n"] | None) -> Drawn:
        assert truth is not None
        generator = torch.Generator().manual_seed(seed)

        def give(state: WindowState, reach: int) -> None:
            first = int(state.committed)
            drafts = given_drafts(truth[first : first + reach], made.target.vocab_size, chance, generator)
            state.tokens[0, first : first + len(drafts)] = drafts

        return drawn_by_window(made, window, grid, seed, give)

    return draw


def given_drafts(
    truth: Int[Tensor, " reach"], vocab: int, chance: float | Float[Tensor, " reach"], generator: torch.Generator
) -> Int[Tensor, " reach"]:
    """Drafts of the tokens of plain AR: each is right with this chance or with its own, and wrong otherwise."""
    right = torch.rand(len(truth), generator=generator) < chance
    return torch.where(right, truth, (truth + 1) % vocab)


def drawn_by_window(
    made: MadeUp,
    window: Window,
    grid: Grid,
    seed: int,
    give: Callable[[WindowState, int], None] | None = None,
    learnt: list[float] | None = None,
) -> Drawn:
    """Draw one image by window decoding; the clock starts when the prompt is read and the first token drawn."""

    def mark(canvas: Canvas, stats: Stats) -> None:
        marks.append((time.perf_counter(), stats.committed))

    with torch.inference_mode():
        state = first_window(made.target, Request(made.prompt, grid, made.params, [seed]), window)
        pace, marks = pace_of(window, grid), [(time.perf_counter(), 1)]
        follow(made.target, state, pace, mark, give)
        drawn = finish(state)
    if learnt is not None:
        learnt[0] = pace.image.skill
    return Drawn(seconds_between(marks), drawn.stats.committed / drawn.stats.nfe, drawn.tokens[0])


def drawn_by_transformers(made: MadeUp, grid: Grid, seed: int) -> Drawn:
    """Draw as many tokens by transformers' `generate`."""
    marks = made.generate(grid.size, seed)
    return Drawn(seconds_between([(seconds, count + 1) for count, seconds in enumerate(marks)]), 1.0)


def seconds_between(marks: list[tuple[float, int]]) -> float:
    """Seconds for each token between the first and the last mark; a mark is a time and the tokens drawn by then."""
    (started, before), (ended, after) = marks[0], marks[-1]
    return (ended - started) / (after - before)


def draw_plots(result: TargetsResult, folder: Path) -> list[Path]:
    """Write targets.png: speed-up over transformers by accept length, and the cost of a step by its nodes.

    Returns its path. Raises `HawkError` if matplotlib is missing.
    """
    figure_of = figure_class(WITHOUT_PLOTS)
    figure = figure_of(figsize=(10, 4), layout="constrained")
    speeds, costs = figure.subplots(1, 2)
    for facts in result.targets:
        found = [one for one in result.series if one.target == facts.target]
        plain = next(one for one in found if one.series == PLAIN)
        given = [(one.given, one.speedup_vs_transformers) for one in found if one.given is not None]
        points = [(1.0, plain.speedup_vs_transformers), *given]
        speeds.plot(*zip(*points, strict=True), marker="o", label=facts.target)
        step = facts.step_seconds
        costs.plot(list(step), [seconds / step[1] for seconds in step.values()], marker="o", label=facts.target)
    speeds.axhline(1, color="gray", linewidth=1)
    speeds.set(xlabel="accept length of the drafts (1: plain AR)", ylabel="speed-up over transformers' generate")
    costs.set(xlabel="nodes in a step", ylabel="time, in steps of one node", xscale="log")
    costs.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    costs.minorticks_off()
    for plot in (speeds, costs):
        plot.grid(True, alpha=0.3)
        plot.set_ylim(bottom=0)
    speeds.legend()
    here = result.environment
    figure.suptitle(
        f"{here['processor']}, {here['threads']} threads, random weights in {here['dtype']}, transformers in float32",
        fontsize=9,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "targets.png"
    save_figure(figure, path)
    return [path]
