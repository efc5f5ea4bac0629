"""Three levels of losslessness in one report: equal tokens, exact laws on tiny vocabularies, and two-sample tests.

- Tokens: a coupled method promises the tokens of plain AR; the rate of equal images is measured.
- Laws: on a tiny target the probability of every possible image is enumerated, and the images of each method are
  tested against these probabilities. The power of the test says how small a difference it would have seen.
- Tests: the features of a method's images are compared with those of plain AR, beside the control `ar~`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import exp, lgamma, log, sqrt
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from hawk import __version__
from hawk.decoding.relaxed import LOSSY, Relaxation
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.methods import Method
from hawk.errors import HawkError
from hawk.evaluation.intervals import warnings_for
from hawk.evaluation.metrics import TwoSample, classifier_test, energy_test
from hawk.evaluation.run import CONTROL, Drawn, label_of, method_of
from hawk.evaluation.scoring import ByPrompt, OnStep, over_prompts
from hawk.files import read_cache, write_json
from hawk.proofs.losslessness import (
    EXACT_SETTINGS,
    JOINT_SETTINGS,
    ROUNDS,
    SMALLEST_P_VALUE,
    Check,
    check_all,
    check_drawing_laws,
    check_drifts,
    check_joint,
    check_laws,
    check_tree_laws,
    chi_square,
    exact_joint,
)
from hawk.proofs.suite import JOINT_IMAGES, MOST_DIFFERING, joint_target
from hawk.proofs.tiny import tiny_drafters, tiny_prompt, tiny_target

LEVEL = 0.05
"""The chance that any of the two-sample tests of a report calls plain AR different from itself."""
PERMUTATIONS = 2000
"""Permutations of a two-sample test."""
POWER = 0.9
"""The chance with which a difference of the stated size would have been seen."""


# --- level 1: tokens


@dataclass(frozen=True)
class TokensRow:
    """How many images of a method have the tokens of plain AR; `promised` for a method with coupled verification."""

    method: str
    promised: bool
    images: int
    equal_images: int
    rate: float
    low: float
    high: float
    equal_tokens: float


def tokens_rows(drawn: Mapping[str, Drawn], images: int, resamples: int, promised: bool = True) -> list[TokensRow]:
    """Compare every method's tokens with plain AR's.

    `images` is the number of images of a prompt; `promised` tells whether coupled methods promise the same tokens on
    this machine.
    """
    plain, rows = drawn["ar"].tokens, []
    for name, each in drawn.items():
        if name in ("ar", CONTROL):
            continue
        same = each.tokens == plain
        whole = same.all(1).double()
        rate = over_prompts(lambda x: float(x.mean()), whole.unflatten(0, (-1, images)), resamples, (0.0, 1.0))
        own_promise = promised and method_of(name).verifier == "coupled"
        ends = (rate.value, rate.low, rate.high)
        rows.append(TokensRow(name, own_promise, len(whole), int(whole.sum()), *ends, float(same.double().mean())))
    return rows


# --- level 2: exact laws on tiny vocabularies


@dataclass(frozen=True)
class Law:
    """A check of a method on a tiny vocabulary.

    `seen` says how small a total variation from plain AR's distribution the check would have seen.
    """

    method: str
    what: str
    settings: str
    measured: str
    seen: str
    same: bool


def laws_of(methods: Sequence[str], out: Path, on_step: OnStep | None = None) -> list[Law]:
    """The laws of these methods, and those of their verifiers; they are kept in the job's folder and computed once."""
    path = out / "laws.json"
    kept = {key: laws for key, laws in read_cache(path).items() if key.endswith(f" {__version__}")}
    found: list[Law] = []
    for name, prove in proofs_of(methods).items():
        key = f"{name} {__version__}"
        if key not in kept:
            if on_step is not None:
                on_step(f"laws of {name}")
            kept[key] = [asdict(law) for law in prove()]
            write_json(path, kept)
        found += [Law(**law) for law in kept[key]]
    return found


def proofs_of(methods: Sequence[str]) -> dict[str, Callable[[], list[Law]]]:
    """What to prove, by a name for each proof: every method once, and every verifier that they use once."""
    chosen = {name: method_of(name) for name in methods if name != CONTROL}
    proofs: dict[str, Callable[[], list[Law]]] = {}
    for name, method in chosen.items():
        proofs[name] = partial(coupled_laws if method.verifier == "coupled" else joint_laws, method)
    verifiers = {method.verifier for method in chosen.values()}
    exact = {
        "residual": (check_laws, check_drawing_laws),
        "traversal": (check_tree_laws,),
        "relaxed": (check_drifts,),
    }
    return proofs | {
        f"verifier {name}": partial(exact_laws, checks) for name, checks in exact.items() if name in verifiers
    }


def exact_laws(checks: Sequence[Callable[[], list[Check]]]) -> list[Law]:
    """The laws of a verifier, and of the images that are drawn with it, computed and not sampled."""
    seen = "any above 1e-12 (nothing is sampled)"
    found = [one for check in checks for one in check()]
    return [Law(c.verifier, c.name, c.settings, c.measured, seen, c.passed and c.lossless) for c in found]


def coupled_laws(method: Method) -> list[Law]:
    """A coupled method draws the tokens of plain AR, seed by seed, so that both have one law."""
    target = tiny_target(0)
    drafter = tiny_drafters(target)[method.name][0]
    drafters = {} if method.name == "ar" else {method.name: (drafter, "coupled")}
    checks = check_all(target, tiny_prompt(target, 3), target.grid, drafters, EXACT_SETTINGS, [1, 2, 3])
    shown = checks if method.name == "ar" else [check for check in checks if check.method == method.name]
    seen = "any (the tokens of a seed are compared)"
    return [Law(c.method, c.name, c.settings, c.measured, seen, c.passed) for c in shown]


def joint_laws(method: Method, settings: Sequence[SamplingParams] = JOINT_SETTINGS, rounds: int = ROUNDS) -> list[Law]:
    """The images of a method that draws its drafts, tested against the probability of every possible image."""
    target, images = joint_target(), len(JOINT_IMAGES)
    prompt = tiny_prompt(target, images, alike=True)
    lossy = method.verifier in LOSSY
    drafter = tiny_drafters(target, verifier="residual" if lossy else method.verifier)[method.name][0]
    every = torch.arange(target.vocab_size)
    relaxation = Relaxation.between(target.embed(every)) if lossy else None
    found = []
    for params in settings:
        joint = exact_joint(target, prompt, target.grid, params, images)
        request = Request(prompt, target.grid, params, JOINT_IMAGES, method.verifier, relaxation)
        check = check_joint(method.name, target, request, drafter, rounds, joint)
        draws = rounds * images
        visible = visible_variation(draws, freedom_of(joint, draws))
        seen = f"{visible:.3f}, with a chance of {POWER:.0%} at {draws} images"
        found.append(Law(check.method, check.name, check.settings, check.measured, seen, check.passed))
    return found


def freedom_of(joint: Float[Tensor, " cells"], draws: int) -> int:
    """The degrees of freedom of the chi-square test of so many draws against a distribution."""
    counts = torch.zeros(len(joint), dtype=torch.long)
    counts[joint.argmax()] = draws
    return chi_square(counts, joint).freedom


def visible_variation(draws: int, freedom: int, level: float = SMALLEST_P_VALUE, power: float = POWER) -> float:
    """The total variation that a chi-square test with a p-value below `level` sees with a chance of `power` at least.

    A distribution at total variation d from the expected one has a noncentrality of at least 4 d^2 draws, by the
    inequality of Cauchy and Schwarz, however the difference is spread over the cells of the test.
    """
    critical = bisected(lambda x: upper_tail(x, freedom) < level, 0.0, 10.0 * freedom + 200.0)
    needed = bisected(lambda shift: shifted_tail(critical, freedom, shift) > power, 0.0, 10.0 * freedom + 400.0)
    return sqrt(needed / (4 * draws))


def bisected(true_above: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition that holds above some number begins to hold."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if true_above(middle) else (middle, high)
    return high


def upper_tail(x: float, freedom: int) -> float:
    """The chance that a chi-square variable exceeds x."""
    return float(torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(x / 2).double()))


def shifted_tail(x: float, freedom: int, shift: float) -> float:
    """The chance that a chi-square variable with the noncentrality `shift` exceeds x: a Poisson mixture of tails."""
    if shift == 0:
        return upper_tail(x, freedom)
    mean = shift / 2
    reach = 8 * sqrt(mean) + 20
    first, last = max(int(mean - reach), 0), int(mean + reach)
    weights = (exp(j * log(mean) - mean - lgamma(j + 1)) for j in range(first, last + 1))
    counts = torch.arange(first, last + 1, dtype=torch.float64)
    tails = torch.special.gammaincc(freedom / 2 + counts, torch.full_like(counts, x / 2))
    return float((torch.tensor(list(weights), dtype=torch.float64) * tails).sum())


# --- level 3: two-sample tests


@dataclass(frozen=True)
class SampleTest:
    """A two-sample test of a method's images against those of plain AR, image by image of the same prompts.

    `differs` is whether the p-value is below `threshold`, which is small enough for all tests of the report together.
    """

    method: str
    test: str
    meaning: str
    statistic: float
    p_value: float
    threshold: float
    differs: bool
    warning: str | None = None


def sample_tests(drawn: Mapping[str, ByPrompt], on_step: OnStep | None = None) -> tuple[list[SampleTest], list[str]]:
    """The tests of every method against plain AR, and a line for each that was left out because images are too few.

    Labels are swapped within pairs of one prompt, so that what prompts differ in does not hide what methods differ in.
    """
    plain = drawn["ar"].flatten(0, 1)
    found: list[tuple[str, str, str, TwoSample]] = []
    left_out: list[str] = []
    for method, by_prompt in drawn.items():
        if method == "ar":
            continue
        if on_step is not None:
            on_step(f"tests of {method}")
        features = by_prompt.flatten(0, 1)
        for name, (meaning, test) in TESTS.items():
            try:
                found.append((method, name, meaning, test(plain, features, permutations=PERMUTATIONS, paired=True)))
            except HawkError as error:
                left_out.append(f"the {name} test was left out: {error}")
    threshold = LEVEL / max(len(found), 1)
    images, width = plain.shape
    return [
        SampleTest(
            method,
            name,
            meaning,
            result.statistic,
            result.p_value,
            threshold,
            result.p_value < threshold,
            warnings_for(name, images, width),
        )
        for method, name, meaning, result in found
    ], list(dict.fromkeys(left_out))


TESTS: dict[str, tuple[str, Callable[..., TwoSample]]] = {
    "energy": ("energy distance", energy_test),
    "classifier": ("accuracy of telling the two apart; 0.5 is chance", classifier_test),
}
"""The two-sample tests by name: what the statistic is, and the function."""


# --- the three levels together


@dataclass(frozen=True)
class Verdict:
    """What the three levels say of a method, and whether all of it agrees with plain AR."""

    method: str
    label: str
    lossless: bool
    tokens: str
    laws: str
    tests: str
    agrees: bool


def verdicts(
    methods: Sequence[str], tokens: Sequence[TokensRow], laws: Sequence[Law], tests: Sequence[SampleTest]
) -> list[Verdict]:
    """One line for each method; a level that was not measured is not held against the method."""
    found = []
    for name in methods:
        if name in ("ar", CONTROL):
            continue
        own_laws = [law for law in laws if law.method == name]
        own_tests = [test for test in tests if test.method == name]
        own_tokens = next((row for row in tokens if row.method == name), None)
        said = ""
        if own_tokens is not None:
            rate = f"{own_tokens.equal_images} of {own_tokens.images} images equal"
            said = rate if own_tokens.promised else f"{rate} (not promised)"
        broken = sum(not law.same for law in own_laws)
        differing = [test.test for test in own_tests if test.differs]
        promise_kept = own_tokens is None or not own_tokens.promised or own_tokens.rate >= 1 - MOST_DIFFERING
        found.append(
            Verdict(
                name,
                label_of(name),
                method_of(name).lossless,
                said,
                "" if not own_laws else f"{len(own_laws) - broken} of {len(own_laws)} laws are plain AR's",
                "" if not own_tests else (f"differs: {', '.join(differing)}" if differing else "no difference seen"),
                promise_kept and not broken and not differing,
            )
        )
    return found
