"""The fair suite of `hawk bench`: every method at several settings, with its authors' shape and with its best one.

At each setting the best shape of a method is searched first, on images that are not those of the table. Then all
methods take turns on every batch of the table, as in the other suites of methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hawk.drafters.methods import method_named
from hawk.errors import HawkError
from hawk.intervals import Interval, bootstrap
from hawk.measure.environment import environment
from hawk.measure.methods import MethodRow, TimedBatch, summarise
from hawk.measure.rounds import SEARCH, TABLE, Jobs, Rounds, check_sizes, open_rounds
from hawk.measure.shapes import Entry, Setting, authors_entries, entry_of_nodes, fair_settings, ladder
from hawk.pictures.plots import figure_class, save_figure
from hawk.pipeline import HawkPipeline

SEARCH_SEED = 1_000_000
"""The seed of the first image on which shapes are searched: none of the table's seeds is so large."""
SEARCH_ROUNDS = 2
"""Batches that each shape draws in the search."""
NODES = (32, 64)
"""Nodes of a step, root included, at which forwards are counted for all methods alike."""
EQUAL_IMAGES = 8
"""Most images on which those forwards are counted."""

OnProgress = Callable[[int, int, str], None]
"""Called after each round with (rounds done, rounds in all, what was measured)."""


@dataclass(frozen=True)
class FairRow:
    """A method with one shape at one setting and batch size.

    Attributes:
        setting: the name of the setting.
        batch: images decoded together.
        shape: the shape in words.
        chosen: why the method has this shape: "authors" (the method's default or another shape of its authors), "best"
            (the fastest one here), or both.
        speedup: `row.speedup_vs_ar` with a 95 % interval over batches; None for fewer than two batches.
        row: all figures, as in the other suites.
    """

    setting: str
    batch: int
    shape: str
    chosen: str
    speedup: Interval | None
    row: MethodRow


@dataclass(frozen=True)
class EqualNodes:
    """Target forwards an image of `hawk` and of the best other lossless method, with `nodes` nodes a step each."""

    setting: str
    nodes: int
    hawk: float
    rival: str
    rival_nfe: float
    nfe: dict[str, float]

    @property
    def fewer(self) -> float:
        """How many times fewer forwards `hawk` needs than the rival."""
        return self.rival_nfe / self.hawk


@dataclass(frozen=True)
class FairResult:
    """All rows, the forwards at equal nodes, sentences about both, and the environment of the measurement."""

    rows: list[FairRow]
    equal_nodes: list[EqualNodes]
    summary: list[str]
    left_out: list[str]
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The JSON document that `hawk bench` prints last."""
        equal = [asdict(each) | {"fewer": each.fewer} for each in self.equal_nodes]
        return asdict(self) | {"equal_nodes": equal}


@dataclass
class Progress:
    """Counts rounds against the number that is known so far."""

    total: int
    tell: OnProgress | None
    done: int = 0

    def __call__(self, what: str) -> None:
        """Count a round."""
        self.done += 1
        if self.tell is not None:
            self.tell(self.done, self.total, what)


def run_fair(
    pipe: HawkPipeline,
    methods: Sequence[str],
    prompts: Sequence[str],
    out: Path,
    seeds: int = 1,
    batches: Sequence[int] = (1, 8),
    on_progress: OnProgress | None = None,
) -> FairResult:
    """Measure all methods at all settings and batch sizes; what the folder `out` holds already is not drawn again.

    Args:
        methods: method names; `ar` and `hawk` are always run.
        out: the folder of this measurement; after a kill, the same call goes on where it stopped.
        batches: one or two numbers of images decoded together.

    Raises:
        HawkError: unknown method, a number below 1, a prompt that the model cannot read, or the folder of another job.
    """
    check_sizes(seeds, batches)
    names = [method_named(name).name for name in dict.fromkeys(("ar", *methods, "hawk"))]
    pipe.condition(prompts)  # fail on a bad prompt before measuring
    found = fair_settings(pipe.defaults, pipe.model.target.vocab_size)
    jobs = [(prompt, seed) for prompt in prompts for seed in range(seeds)]
    sizes = list(dict.fromkeys(batches))
    progress = Progress(len(found.settings) * rounds_of(pipe, names, len(jobs), sizes), on_progress)
    rounds = open_rounds(pipe, prompts, seeds, out, progress)
    rows, equal, summary = [], [], []
    for setting in found.settings:
        for batch in sizes:
            entries = entries_of(rounds, setting, batch, names, prompts)
            progress.total -= (most_entries(pipe, names) - len(entries)) * (1 + len(parts_of(jobs, batch)))
            here = table_rows(rounds, setting, batch, entries, jobs)
            rows += here
            summary += sentences(here)
        compared = equal_nodes(rounds, setting, names, jobs[:EQUAL_IMAGES])
        equal += compared
        summary += [sentence_of_nodes(each) for each in compared]
    facts = environment(pipe, len(prompts), seeds, sizes[0], {})
    facts["settings"] = {"prompts": len(prompts), "seeds": seeds, "batches": sizes}
    facts["sampling"] = {setting.name: asdict(setting.params) for setting in found.settings}
    return FairResult(rows, equal, summary, found.left_out, facts)


def parts_of(jobs: Jobs, batch: int) -> list[Jobs]:
    """The images in batches."""
    return [jobs[start : start + batch] for start in range(0, len(jobs), batch)]


def most_entries(pipe: HawkPipeline, names: Iterable[str]) -> int:
    """The most rows that a table can have: the authors' shapes, and for each method a best one that differs."""
    grid = pipe.model.grid
    return len(authors_entries(names, grid)) + sum(len(ladder(name, grid)) > 1 for name in names)


def rounds_of(pipe: HawkPipeline, names: Sequence[str], images: int, sizes: Sequence[int]) -> int:
    """The most rounds that a setting can take."""
    tried = sum(len(steps) for name in names if len(steps := ladder(name, pipe.model.grid)) > 1)
    tables = sum(SEARCH_ROUNDS * tried + most_entries(pipe, names) * (1 - (-images // size)) for size in sizes)
    compared = sum(name != "ar" and method_named(name).lossless for name in names)
    return tables + len(NODES) * compared * min(images, EQUAL_IMAGES)


def entries_of(
    rounds: Rounds, setting: Setting, batch: int, names: Sequence[str], prompts: Sequence[str]
) -> dict[Entry, str]:
    """The entries of the table in its order, each with the reason why it is there: "authors", "best" or both."""
    grid = rounds.pipe.model.grid
    jobs = search_jobs(prompts, batch)
    steps = {name: ladder(name, grid) for name in names}
    tried = [entry for entries in steps.values() if len(entries) > 1 for entry in entries]
    seconds = dict.fromkeys(tried, 0.0)
    for number, part in enumerate(parts_of(jobs, batch)):
        turn = number * len(tried) // SEARCH_ROUNDS  # no shape always runs after the same other shape
        for entry in tried[turn:] + tried[:turn]:
            seconds[entry] += rounds.take(setting, batch, SEARCH, number, entry, part).batch.seconds
    table: dict[Entry, str] = {}
    for name, entries in steps.items():
        authors = authors_entries([name], grid)
        best = min(entries, key=seconds.__getitem__) if len(entries) > 1 else None
        for entry in [*authors, *([best] if best is not None and best not in authors else [])]:
            table[entry] = " and ".join(["authors"] * (entry in authors) + ["best"] * (entry == best))
    return table


def search_jobs(prompts: Sequence[str], batch: int) -> Jobs:
    """The images of the search: the table's prompts with seeds that the table does not have."""
    return [(prompts[i % len(prompts)], SEARCH_SEED + i) for i in range(SEARCH_ROUNDS * batch)]


def table_rows(rounds: Rounds, setting: Setting, batch: int, entries: dict[Entry, str], jobs: Jobs) -> list[FairRow]:
    """The rows of one table. Round 0 of every entry is a warm-up on another image, and counts for nothing."""
    order = list(entries)
    warm_up = [(prompt, SEARCH_SEED + number) for number, (prompt, _) in enumerate(parts_of(jobs, batch)[0])]
    skills = dict.fromkeys(order, 0.0)
    timed: dict[Entry, list[TimedBatch]] = {entry: [] for entry in order}
    for number, part in enumerate([warm_up, *parts_of(jobs, batch)]):
        turn = number % len(order)
        for entry in order[turn:] + order[:turn]:
            kept = rounds.take(setting, batch, TABLE, number, entry, part, skills[entry])
            skills[entry] = kept.skill
            if number:
                timed[entry].append(kept.batch)
    plain = next(timed[entry] for entry in order if entry.method == "ar")
    return [
        FairRow(
            setting=setting.name,
            batch=batch,
            shape="" if entry.method == "ar" else entry.label,
            chosen=chosen,
            speedup=speedup_interval(timed[entry], plain),
            row=summarise(entry.method, timed[entry], plain),
        )
        for entry, chosen in entries.items()
    ]


def speedup_interval(ours: Sequence[TimedBatch], plain: Sequence[TimedBatch]) -> Interval | None:
    """The speed-up over plain AR, whose batches are the same images, with a 95 % interval; None for one batch."""
    if len(ours) < 2:
        return None
    pairs = zip(plain, ours, strict=True)
    seconds = torch.tensor([[theirs.seconds, mine.seconds] for theirs, mine in pairs], dtype=torch.float64)
    return bootstrap(ratio_of_medians, seconds)


def ratio_of_medians(seconds: Tensor) -> float:
    """The median of the first column over the median of the second, as `MethodRow.speedup_vs_ar`."""
    first, second = seconds.quantile(0.5, dim=0).tolist()
    return float(first / second)


def equal_nodes(rounds: Rounds, setting: Setting, names: Sequence[str], jobs: Jobs) -> list[EqualNodes]:
    """The forwards of every lossless method at the same numbers of nodes, an image at a time."""
    drafting = [name for name in names if name != "ar" and method_named(name).lossless]
    found = []
    for nodes in NODES:
        nfe = {}
        for name in drafting:
            entry, skill, forwards = entry_of_nodes(name, nodes), 0.0, 0
            for number, job in enumerate(jobs):
                kept = rounds.take(setting, 1, "equal-nodes", number, entry, [job], skill)
                skill, forwards = kept.skill, forwards + kept.batch.stats.nfe
            nfe[name] = forwards / len(jobs)
        rivals = {name: value for name, value in nfe.items() if name != "hawk"}
        if rivals:
            best = min(rivals, key=rivals.__getitem__)
            found.append(EqualNodes(setting.name, nodes, nfe["hawk"], best, rivals[best], nfe))
    return found


def sentence_of_nodes(equal: EqualNodes) -> str:
    """What the forwards at equal nodes say."""
    compared = f"{equal.hawk:.1f} forwards an image, {equal.rival} {equal.rival_nfe:.1f}"
    more = f"{equal.fewer:.2f}x fewer" if equal.fewer >= 1 else f"{1 / equal.fewer:.2f}x more"
    return f"{equal.setting}, {equal.nodes} nodes a step: hawk needs {more} than the best rival ({compared})."


def sentences(rows: Sequence[FairRow]) -> list[str]:
    """Whether `hawk` is first among the lossless methods of one table: in forwards, and in seconds."""
    lossless = [row for row in rows if row.row.lossless]
    ours = next(row for row in lossless if row.row.method == "hawk")
    others = [row for row in lossless if row.row.method != "hawk"]
    if not others:
        raise HawkError("a table has a row of plain AR at least")
    by_nfe, by_seconds = (lambda row: row.row.nfe), (lambda row: row.row.seconds_per_image)
    return [
        placed(ours, min(others, key=by_nfe), by_nfe, "forwards an image", 1),
        placed(ours, min(others, key=by_seconds), by_seconds, "seconds an image", 2) + doubt(ours, others),
    ]


def placed(ours: FairRow, best: FairRow, figure: Callable[[FairRow], float], unit: str, digits: int) -> str:
    """One sentence that compares `hawk` with the best other lossless row in one figure, of which less is better."""
    mine, theirs = figure(ours), figure(best)
    rival = f"{best.row.method} ({best.shape})" if best.shape else best.row.method
    is_first = "is first" if mine < theirs else "is not first"
    figures = f"hawk {mine:.{digits}f}, the best other lossless method, {rival}, {theirs:.{digits}f}"
    return f"{ours.setting}, batch {ours.batch}: hawk {is_first} in {unit} ({figures})."


def doubt(ours: FairRow, others: Sequence[FairRow]) -> str:
    """A clause for rows whose intervals of speed overlap that of `hawk`; "" where there are none."""
    mine = ours.speedup
    near = [
        each.row.method
        for each in others
        if mine and each.speedup and each.speedup.high >= mine.low and each.speedup.low <= mine.high
    ]
    return f" The intervals of {', '.join(dict.fromkeys(near))} overlap that of hawk." if near else ""


def draw_plots(result: FairResult, folder: Path) -> list[Path]:
    """Draw the speed-up of every row to FOLDER/fair.png, a panel for each table; `HawkError` without matplotlib."""
    figure_of = figure_class(": or leave out --plots")
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[tuple[str, int], list[FairRow]] = {}
    for row in result.rows:
        tables.setdefault((row.setting, row.batch), []).append(row)
    sizes = len({batch for _, batch in tables})
    settings, most = len(tables) // sizes, max(map(len, tables.values()))
    figure = figure_of(figsize=(7 * sizes, (0.24 * most + 1.2) * settings), layout="constrained")
    where = f"{result.environment['model']} on {result.environment['processor']}"
    figure.suptitle(f"How many times as fast as plain decoding each method draws an image\n{where}", fontsize=11)
    for number, ((setting, batch), rows) in enumerate(tables.items(), start=1):
        plot = figure.add_subplot(settings, sizes, number)
        for place, row in enumerate(reversed(rows)):
            value, span = row.row.speedup_vs_ar, row.speedup
            error = None if span is None else [[max(0, value - span.low)], [max(0, span.high - value)]]
            plot.barh(place, value, xerr=error, color=bar_colour(row), ecolor="black", capsize=2)
        plot.set_yticks(range(len(rows)), [bar_label(row) for row in reversed(rows)], fontsize=7)
        plot.axvline(1, color="black", linewidth=0.8)
        plot.set_xlabel("times as fast as plain decoding (bars: 95 % interval)", fontsize=8)
        together = "one image at a time" if batch == 1 else f"{batch} images together"
        plot.set_title(f"{setting}; {together}", fontsize=9)
    for colour, label in COLOURS.values():
        figure.axes[0].bar(0, 0, color=colour, label=label)
    figure.legend(loc="outside lower center", ncols=len(COLOURS), fontsize=8)
    path = folder / "fair.png"
    save_figure(figure, path)
    return [path]


COLOURS = {
    "hawk": ("tab:blue", "hawk (lossless)"),
    "lossless": ("tab:gray", "other lossless methods"),
    "lossy": ("tab:red", "lossy: the method changes the distribution of the images"),
}
"""The colour and the legend of each kind of bar."""


def bar_colour(row: FairRow) -> str:
    """The colour of a row's bar."""
    kind = "hawk" if row.row.method == "hawk" else "lossless" if row.row.lossless else "lossy"
    return COLOURS[kind][0]


def bar_label(row: FairRow) -> str:
    """A row's method and shape."""
    label = method_named(row.row.method).label
    return f"{label}, {row.shape}" if row.shape else label
