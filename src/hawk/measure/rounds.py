"""Rounds of a long measurement: each is drawn once, and kept in a folder as soon as it is there.

A round is one batch of images that one method drew with one shape. A folder holds the rounds of one job:

    job.json                                        what is measured: model, drafters, machine, prompts
    <setting>/batch-8/<stage>/0003-<entry>.json     round 3: its seconds, counts and tokens

A run that was killed is continued by the same command, which draws the rounds that lack a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hawk.decoding.stats import Stats
from hawk.drafters.acceptance import knowing
from hawk.drafters.parts import drafters_mark
from hawk.errors import HawkError
from hawk.files import claim_folder, read_cache, write_json
from hawk.machine import machine_facts
from hawk.measure.methods import TimedBatch, time_batch
from hawk.measure.shapes import Entry, Setting
from hawk.pictures.png import check_writable
from hawk.pipeline import HawkPipeline

Jobs = Sequence[tuple[str, int]]
"""Images as (prompt, seed)."""

OnRound = Callable[[str], None]
"""Called after each round with what was measured."""


@dataclass(frozen=True)
class KeptRound:
    """A round, and what `hawk` knew of its drafts after it."""

    batch: TimedBatch
    skill: float

    def to_json(self) -> dict[str, Any]:
        """The round as JSON values."""
        stats = asdict(self.batch.stats) | {"broken_sources": sorted(self.batch.stats.broken_sources)}
        seconds, tokens = self.batch.seconds, self.batch.tokens.tolist()
        return {"seconds": seconds, "skill": self.skill, "stats": stats, "tokens": tokens}


def read_round(path: Path) -> KeptRound | None:
    """The round in a file; None if the file is missing or damaged."""
    document = read_cache(path)
    try:
        stats = dict(document["stats"])
        stats["broken_sources"] = frozenset(stats["broken_sources"])
        tokens = torch.tensor(document["tokens"], dtype=torch.long)
        return KeptRound(TimedBatch(float(document["seconds"]), Stats(**stats), tokens), float(document["skill"]))
    except (KeyError, TypeError, ValueError):
        return None


@dataclass
class Rounds:
    """The rounds of one job in the folder `out`, drawn by `pipe` where they are missing.

    Where this process has not run a shape yet, a round of the table is drawn twice, and the second time counts: in the
    first one the caches are cold, and a GPU records its steps. Round 0 is a warm-up itself.
    """

    pipe: HawkPipeline
    out: Path
    on_round: OnRound
    warm: set[tuple[str, int, Entry]] = field(default_factory=set)

    def take(
        self, setting: Setting, batch: int, stage: str, number: int, entry: Entry, jobs: Jobs, skill: float = 0.0
    ) -> KeptRound:
        """The round with this number, from its file if there is one; `skill` is what `hawk` knows before it."""
        path = self.out / setting.folder / f"batch-{batch}" / stage / f"{number:04d}-{entry.key}.json"
        found = read_round(path)
        if found is None:
            key = (setting.folder, len(jobs), entry)
            timed = (stage == TABLE and number > 0) or (stage == SEARCH and self.pipe.engine != "eager")
            if timed and key not in self.warm:
                self._draw(setting, entry, jobs, skill)
            self.warm.add(key)
            found = self._draw(setting, entry, jobs, skill)
            write_json(path, found.to_json())
        self.on_round(f"{entry.method} at {setting.names[0]}, batch {batch}")
        return found

    def _draw(self, setting: Setting, entry: Entry, jobs: Jobs, skill: float) -> KeptRound:
        """Draw the images of a round; nothing of it changes what the pipeline knows."""
        with knowing(self.pipe, setting.params, skill):
            drawn = time_batch(self.pipe, entry.method, jobs, setting.overrides | entry.shape.arguments)
            return KeptRound(drawn, self.pipe.skills.of(setting.params))


TABLE, SEARCH = "table", "search"
"""The stages whose rounds are timed: the table itself, and the search for each method's best shape."""


def open_rounds(
    pipe: HawkPipeline, prompts: Sequence[str], seeds: int, out: Path, on_round: OnRound | None = None
) -> Rounds:
    """The rounds of a job in the folder `out`; `HawkError` if it is the folder of another job."""
    check_writable(out)
    model, machine = pipe.model, machine_facts(pipe.device, pipe.dtype)
    digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]
    job = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "drafters": drafters_mark(model.drafting),
        **{name: value for name, value in machine.items() if name != "date"},
        "engine": pipe.engine,
        "prompts": len(prompts),
        "prompts' sha256": digest,
        "seeds": seeds,
    }
    claim_folder(out, job, "measurements")
    return Rounds(pipe, out, on_round or (lambda what: None))


def check_sizes(seeds: int, batches: Sequence[int]) -> None:
    """Raise `HawkError` unless there are one or two batch sizes, and all numbers are 1 or more."""
    if seeds < 1 or not 1 <= len(set(batches)) <= 2 or min(batches) < 1:
        raise HawkError(f"seeds is {seeds} and the batch sizes {list(batches)}: give one or two sizes, all 1 or more")
