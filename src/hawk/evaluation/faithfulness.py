"""Whether pictures show what their prompts ask for, as far as it can be told without a network that reads text.

It works for prompts about one drawn thing on a plain background, which the bundled model was taught: the thing is
looked up among all kinds of figures in all colours, and its place and size are read off its outline. The same scores of
the training's own pictures are the ceiling, those of plain AR's images for other prompts the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hawk.evaluation.features import read_picture
from hawk.evaluation.gallery import Gallery, Seen
from hawk.evaluation.questions import Question, question
from hawk.evaluation.run import Drawn, EvalJob
from hawk.evaluation.scoring import FEW_PROMPTS, Figure, OnStep, judged, over_prompts
from hawk.intervals import Interval
from hawk.training.scenes.kinds import KINDS
from hawk.training.scenes.plain import plain_caption, plain_question
from hawk.training.scenes.scene import render

SMALL, LARGE = 0.4, 0.6
"""The longest side of a figure, in sides of the picture, below which it is small and above which it is large."""
LOW_EDGE, HIGH_EDGE = 0.4, 0.617
"""Between them, in sides of the picture, lies the middle of a figure that is in the middle."""
FIRST = 5
"""A thing also counts if it is among so many closest ones."""
TAUGHT = 200
"""How many of the training's own pictures give the ceiling."""
LOW, HIGH = (-1.0, LOW_EDGE), (HIGH_EDGE, 2.0)
EDGES = {"left": LOW, "top": LOW, "centre": (LOW_EDGE, HIGH_EDGE), "right": HIGH, "bottom": HIGH}
"""Where the middle of a figure lies, from and to, by the word for it."""


@dataclass(frozen=True)
class Part:
    """A part of a prompt that is scored.

    `named` tells whether a question asks for the part; `holds` whether a picture shows what is asked for.
    """

    title: str
    meaning: str
    named: Callable[[Question], bool]
    holds: Callable[[Seen, Question], bool]


def _is_kind(most: int) -> Callable[[Seen, Question], bool]:
    return lambda seen, asked: asked.kind in seen.kinds[:most]


def _is_colour(seen: Seen, asked: Question) -> bool:
    return seen.colours.get(asked.kind) == asked.colour


def _is_place(seen: Seen, asked: Question) -> bool:
    if seen.middle is None or asked.place is None:
        return False
    edges = zip(seen.middle, (EDGES[word] for word in asked.place), strict=True)
    return all(low <= middle <= high for middle, (low, high) in edges)


def _is_size(seen: Seen, asked: Question) -> bool:
    return 0 < seen.extent < SMALL if asked.size == "small" else seen.extent > LARGE


PARTS = {
    "object": Part("Object", "share of images that show the prompt's thing", lambda q: bool(q.kind), _is_kind(1)),
    "object-5": Part(
        f"Object among the closest {FIRST}",
        f"share of images with the prompt's thing among the {FIRST} closest ones",
        lambda q: bool(q.kind),
        _is_kind(FIRST),
    ),
    "colour": Part(
        "Colour", "share of images with the thing in the prompt's colour", lambda q: bool(q.colour), _is_colour
    ),
    "background": Part(
        "Background colour",
        "share of images on the prompt's colour",
        lambda q: bool(q.background),
        lambda seen, asked: seen.behind == asked.background,
    ),
    "place": Part(
        "Place", "share of images with the thing where the prompt says", lambda q: q.place is not None, _is_place
    ),
    "size": Part(
        "Size", "share of images with the thing as large or small as the prompt says", lambda q: bool(q.size), _is_size
    ),
}
"""The parts of a prompt, by the names of their figures."""


@dataclass(frozen=True)
class Limits:
    """What a figure can be: the score of the training's own pictures, and that of plain AR for other prompts."""

    ceiling: Interval
    floor: Interval
    prompts: int


@dataclass(frozen=True)
class Faithfulness:
    """The figures of all methods, the limits of each figure, and a line for each part that no prompt names."""

    figures: list[Figure]
    limits: dict[str, Limits]
    things: int
    left_out: list[str]


def faithfulness(
    drawn: Mapping[str, Drawn],
    job: EvalJob,
    resamples: int,
    on_step: OnStep | None = None,
    gallery: Gallery | None = None,
) -> Faithfulness:
    """Score what every method drew, by a gallery (default: a new one)."""
    say, gallery = on_step or (lambda what: None), gallery or Gallery()
    questions = [question(item.prompt) for item in job.prompts.items]
    say("the training's own pictures")
    scenes = [plain_question(number) for number in range(TAUGHT)]
    captions = [question(plain_caption(scene)) for scene in scenes]
    taught = [gallery.see(render(scene)) for scene in scenes]
    seen = {}
    for method, each in drawn.items():
        say(f"things of {method}")
        seen[method] = [gallery.see(read_picture(path).permute(1, 2, 0).numpy()) for path in each.paths]
    found: list[Figure] = []
    limits: dict[str, Limits] = {}
    left_out = []
    for name, part in PARTS.items():
        asked = [number for number, each in enumerate(questions) if part.named(each)]
        if not asked:
            left_out.append(f"{part.title} was left out: no prompt names it of one taught thing on a plain background")
            continue
        every = {
            method: torch.tensor([[part.holds(one, questions[number]) for one in each] for number in asked])
            for method, each in seen.items()
        }
        rows = []
        for method, scores in every.items():
            own = _by_prompt(scores, asked, job.images)
            interval = over_prompts(_mean, own[range(len(asked)), range(len(asked))], resamples, (0.0, 1.0))
            rows.append(_figure(name, part, method, interval, len(asked), job.images))
        found += judged(rows)
        limits[name] = Limits(
            _ceiling(part, taught, captions, resamples),
            _floor(_by_prompt(every["ar"], asked, job.images), resamples),
            len(asked),
        )
    return Faithfulness(found, limits, len(KINDS), left_out)


def _by_prompt(scores: Tensor, asked: Sequence[int], images: int) -> Float[Tensor, "questions prompts images"]:
    """The scores of the images of the prompts that name a part, for each question, `[questions, all images]`."""
    return scores.double().unflatten(1, (-1, images))[:, list(asked)]


def _mean(scores: Tensor) -> float:
    return float(scores.mean())


def _ceiling(part: Part, taught: Sequence[Seen], captions: Sequence[Question], resamples: int) -> Interval:
    """The score of the training's own pictures, each for its own caption."""
    pairs = [(seen, caption) for seen, caption in zip(taught, captions, strict=True) if part.named(caption)]
    scores = [[part.holds(seen, caption)] for seen, caption in pairs]
    return over_prompts(_mean, torch.tensor(scores).double(), resamples, (0.0, 1.0))


def _floor(scores: Float[Tensor, "questions prompts images"], resamples: int) -> Interval:
    """The score of every image for the questions of all other prompts."""
    count = len(scores)
    if count < 2:
        return Interval(*(float("nan"),) * 3)
    others = scores * (1 - torch.eye(count, dtype=torch.float64))[:, :, None]
    return over_prompts(_mean, others.sum(0) / (count - 1), resamples, (0.0, 1.0))


def _figure(name: str, part: Part, method: str, interval: Interval, prompts: int, images: int) -> Figure:
    few = f"{part.title.lower()} rests on {prompts} prompts, which are few: the value says little"
    ends = (interval.value, interval.low, interval.high)
    warning = few if prompts < FEW_PROMPTS else None
    return Figure(name, part.title, part.meaning, "", method, *ends, prompts * images, warning=warning)


def as_json(found: Faithfulness) -> dict[str, Any]:
    """The limits of the figures for `report.json`; the figures themselves stand among the other ones."""
    return {"taught things": found.things, "limits": {name: asdict(each) for name, each in found.limits.items()}}
