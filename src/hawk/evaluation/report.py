"""The report of an evaluation: `report.json` with every figure, and one self-contained `report.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from hawk.evaluation.drawn_on import machines_of
from hawk.evaluation.elsewhere import drawing_promises_tokens
from hawk.evaluation.faithfulness import Faithfulness, as_json, faithfulness
from hawk.evaluation.features import FeatureExtractor
from hawk.evaluation.learned import LearnedScore, learned_figures
from hawk.evaluation.losslessness import (
    LEVEL,
    Law,
    SampleTest,
    TokensRow,
    Verdict,
    laws_of,
    sample_tests,
    tokens_rows,
    verdicts,
)
from hawk.evaluation.nearest import NearestRow, nearest_rows
from hawk.evaluation.prompt_sets import reference_pictures
from hawk.evaluation.report_html import page
from hawk.evaluation.run import CONTROL, SEED_RULE, Drawn, EvalJob, drawn_by, label_of, method_of
from hawk.evaluation.scoring import (
    FAITHFULNESS,
    FEW_PROMPTS,
    OF_REFERENCES,
    OWN_METRICS,
    PAIR_METRICS,
    ByPrompt,
    Figure,
    OnStep,
    ReferenceSample,
    bands_of,
    features_of,
    figures,
    over_prompts,
    reference_features,
)
from hawk.files import write_bytes, write_json
from hawk.intervals import Interval
from hawk.machine import machine_facts
from hawk.pipeline import HawkPipeline


@dataclass(frozen=True)
class References:
    """Real pictures to compare with; `crop` cuts the middle of each to the drawn images' shape and resizes it."""

    folder: Path
    crop: bool = False


@dataclass(frozen=True)
class Asked:
    """What a report is to hold: its metrics, the resamples of each interval, and what metrics need.

    `learned` are the metrics by large networks, loaded.
    """

    metrics: tuple[str, ...]
    references: References | None = None
    learned: Mapping[str, LearnedScore] = field(default_factory=dict)
    resamples: int = 200
    command: str = ""
    of_prompts: int | None = None


@dataclass(frozen=True)
class Decoding:
    """How a method decoded: target forwards and seconds of an image, and tokens of a forward, with their intervals."""

    method: str
    label: str
    verifier: str
    lossless: bool
    images: int
    nfe: Interval
    accept_length: Interval
    seconds: Interval


@dataclass(frozen=True)
class Report:
    """Everything that a report holds; `facts` are of the machine that scores, `drawn_on` of those that drew."""

    job: EvalJob
    asked: Asked
    extractor: str
    facts: dict[str, Any]
    drawn_on: list[dict[str, Any]]
    decoding: list[Decoding]
    figures: list[Figure]
    nearest: list[NearestRow]
    faithfulness: Faithfulness | None
    tokens: list[TokensRow]
    laws: list[Law]
    tests: list[SampleTest]
    verdicts: list[Verdict]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """The document of `report.json`; a number that is not finite is null."""
        prompts = self.job.prompts
        document = {
            "command": self.asked.command,
            "seeds": SEED_RULE,
            "environment": self.facts,
            "drawn on": self.drawn_on,
            "job": self.job.identity() | {"methods": list(self.job.methods)},
            "prompts": {
                "set": prompts.name,
                "used": len(prompts.items),
                "in the set": self.asked.of_prompts or len(prompts.items),
                "images of each": self.job.images,
            },
            "extractor": self.extractor,
            "intervals": f"95%, from {self.asked.resamples} random halves of the prompts",
            "decoding": [asdict(row) for row in self.decoding],
            "figures": [asdict(row) for row in self.figures],
            "faithfulness": None if self.faithfulness is None else as_json(self.faithfulness),
            "nearest references": [asdict(row) for row in self.nearest],
            "losslessness": {
                "tokens": [asdict(row) for row in self.tokens],
                "laws": [asdict(row) for row in self.laws],
                "tests": [asdict(row) for row in self.tests],
                "verdicts": [asdict(row) for row in self.verdicts],
                "level of all tests together": LEVEL,
            },
            "AR-AR intervals": {name: [band.low, band.high] for name, band in bands_of(self.figures).items()},
            "inside the AR-AR interval": self.placed,
            "warnings": self.warnings,
        }
        finite: dict[str, Any] = only_finite(document)
        return finite

    @property
    def placed(self) -> dict[str, dict[str, list[str]]]:
        """For each method, the metrics whose value lies inside the AR-AR interval, and those whose value does not."""
        names = [name for name in self.job.methods if name not in ("ar", CONTROL)]
        return {
            name: {
                "inside": [row.metric for row in self.figures if row.method == name and row.inside],
                "outside": [row.metric for row in self.figures if row.method == name and row.inside is False],
            }
            for name in names
        }


def only_finite(value: Any) -> Any:
    """A JSON value with null in place of every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: only_finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [only_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def decoding_rows(drawn: Mapping[str, Drawn], job: EvalJob, resamples: int) -> list[Decoding]:
    """How each method decoded, from what was kept of its batches."""
    size, rows = job.grid[0] * job.grid[1], []
    for name, each in drawn.items():
        nfe, seconds = (x.unflatten(0, (-1, job.images)) for x in (each.nfe, each.seconds))
        method = method_of(name)
        rows.append(
            Decoding(
                name,
                label_of(name),
                method.verifier,
                method.lossless,
                len(each.nfe),
                over_prompts(lambda x: float(x.mean()), nfe, resamples),
                over_prompts(lambda x: float(size / x.mean()), nfe, resamples),
                over_prompts(lambda x: float(x.median()), seconds, resamples),
            )
        )
    return rows


def warnings_of(
    job: EvalJob, found: Sequence[Figure], tests: Sequence[SampleTest], machines: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What a reader must know before they trust the figures; each of it once."""
    few = (
        f"{len(job.prompts.items)} prompts are few: intervals are taken over prompts, and those of fewer than "
        f"{FEW_PROMPTS} say little"
    )
    lines = [few] if len(job.prompts.items) < FEW_PROMPTS else []
    if len(machines) > 1:
        lines.append("the pictures were drawn on several machines or with several versions: the seconds mix them")
    lines += [row.warning for row in found if row.warning] + [test.warning for test in tests if test.warning]
    return list(dict.fromkeys(lines))


def reference_sample(
    job: EvalJob, references: References, pixels: tuple[int, int], extractor: FeatureExtractor, out: Path
) -> ReferenceSample:
    """The features of the reference pictures; `pixels` are height and width of a drawn image."""
    paths = reference_pictures(job.prompts, references.folder)
    found = reference_features(paths, extractor, out, pixels if references.crop else None)
    return ReferenceSample(found, paired=all(item.id in job.prompts.references for item in job.prompts.items))


def evaluate(
    pipe: HawkPipeline,
    job: EvalJob,
    out: Path,
    asked: Asked,
    extractor: FeatureExtractor | None,
    on_step: OnStep | None = None,
) -> Report:
    """Score what was drawn into the folder of a job, and write `report.json` and `report.html` there.

    Args:
        extractor: what computes the features; None only if no metric of `asked` reads features (`needs_features`).

    Raises:
        HawkError: pictures are missing, or the references are.
        OSError: the disk is full.
    """
    drawn, machines = {name: drawn_by(job, out, name) for name in job.methods}, machines_of(out)
    features: dict[str, ByPrompt] = {}
    real = None
    if extractor is not None:
        pixels = (job.grid[0] * pipe.model.cell, job.grid[1] * pipe.model.cell)
        if asked.references is not None:
            real = reference_sample(job, asked.references, pixels, extractor, out)
        for name, each in drawn.items() if needs_features(asked.metrics) else ():
            if on_step is not None:
                on_step(f"features of {name}")
            features[name] = features_of(each, job, extractor, out)
    found, left_out = figures(asked.metrics, features, real, asked.resamples, on_step) if features else ([], [])
    faithful = None
    if FAITHFULNESS in asked.metrics:
        faithful = faithfulness(drawn, job, asked.resamples, on_step)
        found, left_out = found + faithful.figures, left_out + faithful.left_out
    found = found + learned_figures(asked.learned, drawn, job, out, asked.resamples, on_step)
    near = nearest_rows(features, real) if features and real is not None and {*asked.metrics} & {*OF_REFERENCES} else []
    promised = drawing_promises_tokens(pipe, job)
    tokens = tokens_rows(drawn, job.images, asked.resamples, promised) if "tokens" in asked.metrics else []
    laws = laws_of(job.methods, out, on_step) if "laws" in asked.metrics else []
    tests, without_test = sample_tests(features, on_step) if features and "tests" in asked.metrics else ([], [])
    facts = {"model": job.model, "target_parameters": pipe.model.target.parameter_count}
    report = Report(
        job,
        asked,
        "" if extractor is None else extractor.name,
        facts | machine_facts(pipe.device, pipe.dtype),
        machines,
        decoding_rows(drawn, job, asked.resamples),
        found,
        near,
        faithful,
        tokens,
        laws,
        tests,
        verdicts(job.methods, tokens, laws, tests),
        warnings_of(job, found, tests, machines) + left_out + without_test,
    )
    write_report(report, drawn, out)
    return report


def needs_features(names: Sequence[str]) -> bool:
    """Whether one of these metrics reads features of the pictures."""
    return any(name in (*PAIR_METRICS, *OWN_METRICS, "tests") for name in names)


def write_report(report: Report, drawn: Mapping[str, Drawn], out: Path) -> None:
    """Write both files of a report, each completely or not at all."""
    document = report.to_json()
    write_json(out / "report.json", document)
    write_bytes(out / "report.html", page(document, pictures_of(report.job, drawn)).encode())


def pictures_of(job: EvalJob, drawn: Mapping[str, Drawn]) -> list[tuple[str, dict[str, list[Path]]]]:
    """Each prompt with the files of its pictures by method, prompts in an even stride through their groups."""
    items, per = job.prompts.items, job.images
    found = []
    for number in strided(len(items)):
        rows = slice(number * per, (number + 1) * per)
        found.append((items[number].prompt, {name: each.paths[rows] for name, each in drawn.items()}))
    return found


def strided(count: int, most: int = 16) -> list[int]:
    """At most `most` numbers below `count`, evenly apart."""
    return [number * count // min(count, most) for number in range(min(count, most))]
