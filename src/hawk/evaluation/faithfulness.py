"""Whether pictures show what their prompts ask for, as far as it can be told without a network that reads text.

It works for prompts about the things that the bundled model was taught: the object is looked up among the taught
pictures in feature space, the background is read from the picture's edge, place and size from the object's outline.
The same scores of the taught pictures themselves are the ceiling, those of other prompts the floor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hawk.evaluation.features import FeatureExtractor, read_picture
from hawk.evaluation.questions import PALETTE, Question, Reader
from hawk.evaluation.run import Drawn, EvalJob
from hawk.evaluation.scoring import FEW_PROMPTS, Figure, OnStep, judged, kept_features, over_prompts
from hawk.evaluation.things import Layout, Pixels, Things, cut_out, object_features, read_things
from hawk.intervals import Interval
from hawk.training.scenes.scores import NEAR as NEAR_ENOUGH
from hawk.training.scenes.scores import nearest_colour

SMALL, LARGE = 0.58, 0.82
"""The longest side of an object, in sides of the picture, below which it is small and above which it is large.

The model was taught objects of 0.47, 0.70 and 0.94 sides."""
FIRST = 5
"""An object also counts if its thing is among so many nearest ones."""


@dataclass(frozen=True)
class Part:
    """A part of a prompt that is scored.

    `named` tells whether a question asks for the part; `score` gives 1 or 0 for every picture.
    """

    title: str
    meaning: str
    named: Callable[[Question], bool]
    score: Callable[[Seen, Question, Sequence[str]], list[bool]]


@dataclass(frozen=True)
class Seen:
    """What is seen in pictures: the ranks of all taught things, `[pictures, labels]`, and the layouts."""

    ranks: Tensor
    layouts: Sequence[Layout]


def _is_object(most: int) -> Callable[[Seen, Question, Sequence[str]], list[bool]]:
    def score(seen: Seen, question: Question, labels: Sequence[str]) -> list[bool]:
        numbers = [number for number, label in enumerate(labels) if label in question.things]
        near = (seen.ranks[:, numbers] <= most).any(1).tolist()
        return [bool(found) and layout.middle is not None for found, layout in zip(near, seen.layouts, strict=True)]

    return score


def _is_background(seen: Seen, question: Question, labels: Sequence[str]) -> list[bool]:
    return [nearest_colour(layout.behind, PALETTE) == question.background for layout in seen.layouts]


def _is_place(seen: Seen, question: Question, labels: Sequence[str]) -> list[bool]:
    assert question.place is not None
    x, y = question.place
    middles = [layout.middle for layout in seen.layouts]
    return [each is not None and max(abs(each[0] - x), abs(each[1] - y)) < NEAR_ENOUGH for each in middles]


def _is_size(seen: Seen, question: Question, labels: Sequence[str]) -> list[bool]:
    extents = [layout.extent for layout in seen.layouts]
    return [
        extent is not None and (extent < SMALL if question.size == "small" else extent > LARGE) for extent in extents
    ]


PARTS = {
    "object": Part(
        "Object", "share of images whose nearest taught thing is the prompt's", lambda q: bool(q.things), _is_object(1)
    ),
    "object-5": Part(
        f"Object among the nearest {FIRST}",
        f"share of images with the prompt's thing among the {FIRST} nearest taught things",
        lambda q: bool(q.things),
        _is_object(FIRST),
    ),
    "background": Part(
        "Background colour", "share of images on the prompt's colour", lambda q: bool(q.background), _is_background
    ),
    "place": Part(
        "Place", "share of images with the object where the prompt says", lambda q: q.place is not None, _is_place
    ),
    "size": Part(
        "Size", "share of images with the object as large or small as the prompt says", lambda q: bool(q.size), _is_size
    ),
}
"""The parts of a prompt, by the names of their figures."""


@dataclass(frozen=True)
class Limits:
    """What a figure can be: the score of the taught pictures themselves, and that of plain AR for other prompts."""

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
    folder: Path,
    extractor: FeatureExtractor,
    out: Path,
    resamples: int,
    on_step: OnStep | None = None,
) -> Faithfulness:
    """Score what every method drew; `folder` is a data set that `hawk data build` wrote.

    Features of the objects are kept in the job's folder. Raises `HawkError` if the folder holds no complete data set.
    """
    say = on_step or (lambda what: None)
    say("taught things")
    things = read_things(folder, extractor, out)
    reader = Reader(things.names)
    questions = [reader.question(item.prompt) for item in job.prompts.items]
    say("taught pictures")
    captions = [reader.question(caption) for _, caption in things.pictures]
    ceiling = _seen([picture for picture, _ in things.pictures], things, extractor, out, "taught", "1")
    seen = {}
    for method, each in drawn.items():
        say(f"objects of {method}")
        mark = hashlib.sha256(each.tokens.to(torch.int32).numpy().tobytes()).hexdigest()
        pictures = [read_picture(path).permute(1, 2, 0).numpy() for path in each.paths]
        seen[method] = _seen(pictures, things, extractor, out, method, mark)
    found: list[Figure] = []
    limits: dict[str, Limits] = {}
    left_out = []
    for name, part in PARTS.items():
        asked = [number for number, question in enumerate(questions) if part.named(question)]
        if not asked:
            left_out.append(f"{part.title} was left out: no prompt names it, or not together with one taught thing")
            continue
        say(f"{name} of all methods")
        rows = []
        every = {
            method: torch.tensor([part.score(each, questions[number], things.labels) for number in asked])
            for method, each in seen.items()
        }
        for method, scores in every.items():
            own = _by_prompt(scores, asked, job.images)
            interval = over_prompts(_mean, own[range(len(asked)), range(len(asked))], resamples, (0.0, 1.0))
            rows.append(_figure(name, part, method, interval, len(asked), job.images))
        found += judged(rows)
        limits[name] = Limits(
            _ceiling(part, ceiling, captions, things, resamples),
            _floor(_by_prompt(every["ar"], asked, job.images), resamples),
            len(asked),
        )
    return Faithfulness(found, limits, len(things.labels), left_out)


def _seen(
    pictures: Sequence[Pixels], things: Things, extractor: FeatureExtractor, out: Path, name: str, mark: str
) -> Seen:
    """What is seen in pictures; the features of their objects are kept under `name`."""
    objects = [cut_out(picture) for picture in pictures]
    path = out / "features" / extractor.name / f"objects-{name}.safetensors"
    features = kept_features(path, mark, lambda: object_features((each for each, _ in objects), extractor))
    return Seen(things.ranks(features), [layout for _, layout in objects])


def _by_prompt(scores: Tensor, asked: Sequence[int], images: int) -> Float[Tensor, "questions prompts images"]:
    """The scores of the images of the prompts that name a part, for each question, `[questions, all images]`."""
    return scores.double().unflatten(1, (-1, images))[:, list(asked)]


def _mean(scores: Tensor) -> float:
    return float(scores.mean())


def _ceiling(part: Part, seen: Seen, captions: Sequence[Question], things: Things, resamples: int) -> Interval:
    """The score of the taught pictures, each for its own caption."""
    scores = []
    for number, caption in enumerate(captions):
        if part.named(caption):
            own = Seen(seen.ranks[number : number + 1], seen.layouts[number : number + 1])
            scores.append(part.score(own, caption, things.labels))
    if not scores:
        return Interval(*(float("nan"),) * 3)
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
    from dataclasses import asdict

    return {"taught things": found.things, "limits": {name: asdict(each) for name, each in found.limits.items()}}
