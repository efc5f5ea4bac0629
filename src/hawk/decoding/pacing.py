"""How far each step of a window reaches: chosen while an image is drawn, by its accepted drafts and the costs of steps.

A wide window pays where drafts are accepted, and costs time where they are not. The chance that a draft is accepted
differs between models, sampling parameters and parts of one image, so it is learnt from the drafts of the steps so far.
The tokens of the image do not depend on the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import copysign, exp, log

import numpy as np

GAIN = 1.06
"""A step changes its reach only where the new one commits so many times as many tokens for its time, or is plain AR."""

BELIEF = 6.0
"""The number of drafts as which the acceptance in earlier images counts at first."""

SHORT, LONG = 24.0, 512.0
"""The number of past drafts on which the two estimates rest: of the last rows, and of the whole image."""

MOST_SKILL = 12.0
"""Bound of `Pace.skill`: a chance of acceptance then lies within 1e-5 of 0 or 1."""

PROBE = 2
"""Steps with drafts in a row by which a plain image looks whether drafts are accepted again."""

LEAST_REST, MOST_REST = 0.5, 1.0
"""Rows of an image without drafts between two probes: the first rest, and the longest after failed probes."""

CHANCE = 0.7
"""Deviations of the log-odds from earlier images that change nothing: a few drafts decide on as much by chance."""


@dataclass(frozen=True)
class Rung:
    """A reach that a step may have.

    `seconds` is the time of such a step, and `tokens` the mean number of tokens that a window of this reach commits in
    a step, on the images by which it was chosen; reach 0 is plain AR, which commits 1.
    """

    reach: int
    seconds: float
    tokens: float

    @cached_property
    def odds(self) -> float:
        """Log-odds of the chance that a draft is accepted which explains `tokens`, if it is the same at every depth."""
        return log_odds(chance_of(self.tokens, self.reach))

    def tokens_at(self, skill: float) -> float:
        """Mean tokens of a step if the log-odds of acceptance are higher by `skill`."""
        return mean_tokens(chance(self.odds + skill), self.reach) if self.reach else 1.0


def in_batch(ladder: Sequence[Rung], images: int) -> tuple[Rung, ...]:
    """The rungs with the seconds of steps that so many images share.

    The time of a step depends on the number of nodes of all its images. Between the numbers that were timed, and
    beyond them, the time is taken to be linear. So many images fill a processor without drafts.
    """
    if images == 1 or len(ladder) < 2:
        return tuple(ladder)
    nodes, seconds = [rung.reach + 1 for rung in ladder], [rung.seconds for rung in ladder]
    half = min(range(len(ladder) - 1), key=lambda i: abs(2 * nodes[i] - nodes[-1]))
    slope = max((seconds[-1] - seconds[half]) / (nodes[-1] - nodes[half]), 0.0)

    def at(count: int) -> float:
        return float(np.interp(count, nodes, seconds)) + slope * max(count - nodes[-1], 0)

    return tuple(replace(rung, seconds=at(images * (rung.reach + 1))) for rung in ladder)


def mean_tokens(accepted: float, reach: int) -> float:
    """Mean tokens of a step if each draft behind accepted ones is accepted with this chance: 1 + a + ... + a^reach."""
    return (1 - accepted ** (reach + 1)) / (1 - accepted) if accepted < 1 else reach + 1.0


def chance_of(tokens: float, reach: int) -> float:
    """The chance of acceptance under which a step of this reach commits so many tokens, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_tokens(middle, reach) < tokens else (low, middle)
    return (low + high) / 2


def log_odds(probability: float) -> float:
    """log(p / (1 - p)), bounded."""
    bounded = min(max(probability, exp(-MOST_SKILL)), 1 - exp(-MOST_SKILL))
    return log(bounded / (1 - bounded))


def chance(odds: float) -> float:
    """The probability of log-odds."""
    return 1 / (1 + exp(-min(max(odds, -40.0), 40.0)))


@dataclass
class Estimate:
    """By how much the log-odds of acceptance are higher than those of the ladder (`skill`).

    `weight` is the number of drafts that the estimate rests on, at most `memory`.
    """

    skill: float
    memory: float
    weight: float = BELIEF

    def update(self, rung: Rung, accepted: float, rejected: float) -> None:
        """Move the estimate by the drafts of a step: the mean numbers that were accepted and rejected in an image."""
        right = chance(rung.odds + self.skill) * self.weight + accepted
        total = self.weight + accepted + rejected
        if total:
            self.skill = min(max(log_odds(right / total) - rung.odds, -MOST_SKILL), MOST_SKILL)
            self.weight = min(total, self.memory)


@dataclass
class Pace:
    """The reach of the next step, and what is known of this image's drafts.

    Without a ladder every step has the reach `widest`. `known` is the skill that earlier images taught. The estimate
    of the whole image and that of the last rows count alike: what is easy for some rows is hard again after them.
    `rest` counts the tokens until plain steps are interrupted by a probe.
    """

    widest: int
    width: int
    ladder: tuple[Rung, ...] = ()
    known: float = 0.0
    probing: int = 0
    pause: float = LEAST_REST
    rest: float = field(init=False)
    image: Estimate = field(init=False)
    rows: Estimate = field(init=False)
    rung: Rung = field(init=False)

    def __post_init__(self) -> None:
        self.image, self.rows = Estimate(self.known, LONG), Estimate(self.known, SHORT)
        self.rung = self.best() if self.ladder else Rung(self.widest, 1.0, 1.0)
        self.rest = self.pause * self.width

    @property
    def skill(self) -> float:
        """The estimate by which the next reach is chosen: small deviations from `known` are taken for chance."""
        deviation = (self.image.skill + self.rows.skill) / 2 - self.known
        return self.known + copysign(max(abs(deviation) - CHANCE, 0.0), deviation)

    @property
    def reach(self) -> int:
        """How far past the frontier the next step reaches."""
        return self.rung.reach

    def best(self, drafts: bool = False) -> Rung:
        """The rung that commits the most tokens in its time; with `drafts`, the best one beside plain AR."""
        rungs = self.ladder[1:] if drafts else self.ladder
        return max(rungs, key=self.speed)

    def speed(self, rung: Rung) -> float:
        """Tokens a second of steps of this reach."""
        return rung.tokens_at(self.skill) / rung.seconds

    def change(self, ladder: tuple[Rung, ...]) -> None:
        """Go on with other costs of the same reaches, as those of another number of images (`in_batch`)."""
        self.ladder = ladder
        if ladder:
            self.rung = next((rung for rung in ladder if rung.reach == self.reach), None) or self.best()

    def learn(self, reach: int, committed: Sequence[int]) -> None:
        """Take note of a step of that reach, by the tokens that it committed of each image, and choose the next reach.

        `committed` holds the images that had room for more tokens than the step reached.
        """
        if not self.ladder or not committed:
            return
        seen = next((rung for rung in self.ladder if rung.reach == reach), None)
        first_after_rest = self.probing == PROBE  # its drafts are the tokens of the row above, never scored before
        if seen is not None and reach and not first_after_rest:
            accepted = sum(count - 1 for count in committed) / len(committed)
            rejected = sum(count <= reach for count in committed) / len(committed)
            for estimate in (self.image, self.rows):
                estimate.update(seen, accepted, rejected)
        self.turn(sum(committed) / len(committed))

    def turn(self, tokens: float) -> None:
        """Choose the reach of the next step, after one that committed so many tokens."""
        if self.probing:
            self.probing -= 1
            if self.probing:
                return
        best = self.best()
        if not self.rung.reach:
            self.rest -= tokens
            if self.rest <= 0:
                self.probing, self.rung = PROBE, self.best(drafts=True)
            return
        if not best.reach or self.speed(best) > GAIN * self.speed(self.rung):
            self.rung = best
        if not self.rung.reach:
            self.rest = self.pause * self.width
            self.pause = min(2 * self.pause, MOST_REST)
        elif self.rung is best:
            self.pause = LEAST_REST
