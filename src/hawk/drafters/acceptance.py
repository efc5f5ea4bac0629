"""How good a model's drafts were in earlier images: kept by its sampling parameters, as the prior of the next image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from hawk.decoding.pacing import MOST_SKILL
from hawk.decoding.planning import costs_file
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.stats import Generation
from hawk.decoding.tree import Window
from hawk.decoding.trees import Drafter
from hawk.files import read_cache, write_json

CHANGE = 0.25
"""The file is written where an estimate changed by more than so many nats of log-odds."""


def acceptance_file() -> Path:
    """The file that keeps estimates, beside the step costs."""
    return costs_file().with_name("acceptance.json")


@dataclass
class Skills:
    """The `Pace.skill` of a model (its fingerprint) under each of the sampling parameters that it was drawn with.

    `kept` are the estimates as they stand in the file, as far as this process knows.
    """

    model: str
    known: dict[SamplingParams, float] = field(default_factory=dict)
    kept: dict[SamplingParams, float] = field(default_factory=dict)

    def of(self, params: SamplingParams) -> float:
        """The estimate for an image with these parameters; 0 where nothing is known."""
        if params not in self.known:
            self.known[params] = self.kept[params] = self.stored().get(key_of(params), 0.0)
        return self.known[params]

    def taught(self, drafter: Drafter | Window, params: SamplingParams) -> Drafter | Window:
        """The drafter with the estimate for these parameters, if it is a window with a ladder; else the drafter."""
        if not (isinstance(drafter, Window) and drafter.ladder):
            return drafter
        return replace(drafter, skill=self.of(params))

    def learn(self, params: SamplingParams, generations: list[Generation]) -> None:
        """Move the estimate half-way to what each of these drawings found, and keep it in the file if it moved."""
        found = [each.stats.skill for each in generations if each.stats.skill is not None]
        if not found:  # no drawing with a ladder
            return
        skill = self.of(params)
        for each in found:
            skill = (skill + each) / 2
        self.known[params] = skill
        if abs(skill - self.kept[params]) > CHANGE:
            self.kept[params] = skill
            # The file is a cache: where it cannot be written, the next process begins without the estimate.
            with suppress(OSError):
                own = self.stored() | {key_of(params): round(skill, 2)}
                write_json(acceptance_file(), read_cache(acceptance_file()) | {self.model: own})

    def stored(self) -> dict[str, float]:
        """The estimates of this model in the file, by the key of their parameters; none where it is unreadable."""
        entry = read_cache(acceptance_file()).get(self.model)
        if not isinstance(entry, dict):
            return {}
        return {key: float(skill) for key, skill in entry.items() if is_estimate(skill)}


class KeptSkills(Skills):
    """Skills that are kept with the images of a measurement, and not in the user's cache."""

    def learn(self, params: SamplingParams, generations: list[Generation]) -> None:
        """Move the estimate half-way to what each of these drawings found."""
        for generation in generations:
            if generation.stats.skill is not None:
                self.known[params] = (self.of(params) + generation.stats.skill) / 2


@contextmanager
def knowing(pipe: Any, params: SamplingParams, skill: float) -> Iterator[None]:
    """In the body, the `HawkPipeline` knows so much of its drafts from earlier images and writes nothing down."""
    before = pipe.skills
    pipe.skills = KeptSkills(before.model, {params: skill}, {params: skill})
    try:
        yield
    finally:
        pipe.skills = before


def is_estimate(value: object) -> bool:
    """Whether a value from a file can be an estimate."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and abs(value) <= MOST_SKILL
    )


def key_of(params: SamplingParams) -> str:
    """Sampling parameters in one string."""
    return f"temperature {params.temperature:g}, top-k {params.top_k}, top-p {params.top_p:g}, cfg {params.cfg_scale:g}"
