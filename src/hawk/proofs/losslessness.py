"""The checks of losslessness that `hawk verify` runs on this machine; `hawk.proofs.suite` puts them together.

- Plain AR must follow its definition: the token at every position is argmax(log p + g), where log p comes from a
  teacher-forced forward that shares no code with the decoder's steps.
- Coupled verification must return the same tokens as plain AR for the same seed.
- Residual and traversal verification must keep the joint distribution of the tokens. A chi-square test compares whole
  images with the enumerated joint distribution of a tiny target. The verifiers alone, and the decoder with residual
  verification over several steps, are checked exactly, to 1e-12.
- Relaxed verification is lossy: the check measures how far it drifts from p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hawk.decoding.forward import Target, scores_of
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.noise import gumbel_rows
from hawk.decoding.relaxed import Relaxation, relaxed
from hawk.decoding.request import Request
from hawk.decoding.sampling import BatchParams, SamplingParams, gumbel_argmax
from hawk.decoding.stats import Generation
from hawk.decoding.tree import Window
from hawk.decoding.trees import Drafter, NoDrafter
from hawk.errors import HawkError
from hawk.proofs.drawing_law import Drawing, drawing_cases
from hawk.proofs.law import DrawLaw, exact_law, excess
from hawk.proofs.tree_law import Continuation, TreeLaw, exact_traversal, joint_of, tree_cases

MOST_SEQUENCES = 20_000
"""Largest number of possible images (token sequences) whose probabilities are enumerated."""
SMALLEST_P_VALUE = 1e-3
"""A chi-square test with a smaller p-value fails. Seeds are fixed, so a test fails either always or never."""
SMALLEST_CELL = 5.0
"""Sequences are lumped together until the chi-square test expects this many counts in each lump (Cochran's rule)."""
LAW_TOLERANCE = 1e-12
"""Largest difference between an exact law and p that rounding may cause."""
ROUNDS = 6
"""Batches of images that the test of a joint distribution draws."""

EXACT_SETTINGS = (
    SamplingParams(),
    SamplingParams(cfg_scale=3.0),
    SamplingParams(temperature=0.7, top_k=5, top_p=0.9, cfg_scale=2.0),
    SamplingParams(temperature=1.5, top_k=4),
    SamplingParams(top_p=0.8, cfg_scale=1.5),
    SamplingParams(temperature=0.0, cfg_scale=2.0),
)
"""Settings under which every drafter is proven seed-exact."""
JOINT_SETTINGS = (SamplingParams(temperature=0.8, top_k=2), SamplingParams(temperature=0.6, cfg_scale=1.5))
"""Settings under which joint distributions are tested; the temperature is low, so that drafts are accepted."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check: what was checked, what was measured, and whether the check passed.

    `lossless` is False for a check of a lossy verifier: it proves a bound on the drift, not that there is none.
    """

    name: str
    method: str
    verifier: str
    settings: str
    measured: str
    passed: bool
    lossless: bool = True


@dataclass(frozen=True)
class ChiSquare:
    """The result of Pearson's chi-square test; `freedom` is its number of degrees of freedom."""

    statistic: float
    freedom: int
    p_value: float


def check_all(
    target: Target,
    prompt: Any,
    grid: Grid,
    drafters: dict[str, tuple[Drafter | Window, str]],
    params_list: Sequence[SamplingParams],
    seeds: list[int],
    rounds: int = ROUNDS,
) -> list[Check]:
    """Check plain AR against its definition, then every (drafter, verifier), all of it under each of `params_list`.

    Under `coupled` one batch must be seed-exact. Under `residual` and `traversal` the joint distribution of
    `rounds * len(seeds)` images is tested: the rows of `prompt` must then be alike, and the possible images few enough
    to enumerate (`HawkError`).
    """
    checks = []
    for params in params_list:
        request = Request(prompt, grid, params, seeds)
        plain = generate(target, request, NoDrafter())
        checks.append(check_definition(target, request, plain))
        any_drawn = any(verifier != "coupled" for _, verifier in drafters.values())
        joint = exact_joint(target, prompt, grid, params, len(seeds)) if any_drawn else None
        for name, (drafter, verifier) in drafters.items():
            asked = replace(request, verifier=verifier)
            if verifier != "coupled" and joint is not None:
                checks.append(check_joint(name, target, asked, drafter, rounds, joint))
            else:
                checks.append(check_seed_exact(name, target, asked, drafter, plain))
    return checks


def check_definition(target: Target, request: Request, plain: Generation) -> Check:
    """Plain AR's tokens are argmax(log p + g) at every position, by one teacher-forced forward over these tokens."""
    params, grid = request.params, request.grid
    scores = teacher_forced(target, request.conditions, grid, params, plain.tokens)
    noise = torch.stack([gumbel_rows(seed, 0, grid.size, target.vocab_size) for seed in request.seeds])
    expected = gumbel_argmax(scores, noise.to(scores))
    return Check(
        "argmax(log p + g) at every position",
        "ar",
        "coupled",
        describe(params, request.images),
        _equal_tokens(plain.tokens, expected),
        bool(torch.equal(plain.tokens, expected)),
    )


def check_seed_exact(
    name: str, target: Target, request: Request, drafter: Drafter | Window, plain: Generation
) -> Check:
    """Speculative decoding under the coupled verifier returns the same tokens as plain AR (`plain`)."""
    drawn = generate(target, request, drafter)
    spent = f"{_accepted(drawn)} drafts accepted, NFE {plain.stats.nfe} -> {drawn.stats.nfe}"
    return Check(
        "same seed, same tokens as plain AR",
        name,
        "coupled",
        describe(request.params, request.images),
        f"{_equal_tokens(drawn.tokens, plain.tokens)}, {spent}",
        bool(torch.equal(drawn.tokens, plain.tokens)),
    )


def check_joint(
    name: str,
    target: Target,
    request: Request,
    drafter: Drafter | Window,
    rounds: int,
    joint: Float[Tensor, " sequences"],
) -> Check:
    """Images drawn under the request's verifier follow the joint distribution of plain AR, by a chi-square test.

    Draws `rounds` batches, each with seeds of its own; `joint` is what `exact_joint` returns for the request.
    """
    digits = target.vocab_size ** torch.arange(request.grid.size - 1, -1, -1)
    counts = torch.zeros(len(joint), dtype=torch.long)
    accepted, stride = 0, max(request.seeds) - min(request.seeds) + 1
    for turn in range(rounds):
        drawn = generate(target, replace(request, seeds=[seed + turn * stride for seed in request.seeds]), drafter)
        counts += torch.bincount((drawn.tokens.cpu() * digits).sum(-1), minlength=len(joint))
        accepted += _accepted(drawn)
    fit = chi_square(counts, joint)
    return Check(
        "joint distribution of plain AR",
        name,
        request.verifier,
        describe(request.params, request.images),
        f"{int(counts.sum())} images, {accepted} drafts accepted, chi-square {fit.statistic:.1f} "
        f"with {fit.freedom} degrees of freedom, p = {fit.p_value:.2g}",
        fit.p_value > SMALLEST_P_VALUE,
    )


def check_laws(vocab: int = 4) -> list[Check]:
    """Check the residual verifier alone, exactly: its law is p for each kind of draws."""
    p, cases = law_cases(vocab=vocab)
    return [check_law(name, p, draws) for name, draws in cases.items()]


def check_law(name: str, p: Float[Tensor, " vocab"], draws: Sequence[DrawLaw]) -> Check:
    """The token that the residual verifier commits below a node with these draws has exactly the law p."""
    off = float((exact_law(p, draws) - p).abs().max())
    measured = f"largest difference {off:.1e}"
    return Check("exact law of the verifier", "any", "residual", name, measured, off < LAW_TOLERANCE)


def check_tree_laws() -> list[Check]:
    """Check traversal alone, exactly: the tokens that it commits have the joint law of p for each kind of tree."""
    p, cases = tree_cases()
    return [check_tree_law(name, p, drafts) for name, drafts in cases.items()]


def check_tree_law(name: str, p: Continuation, drafts: TreeLaw) -> Check:
    """The tokens that a step of traversal commits on these trees have exactly the joint law of p."""
    law = exact_traversal(p, drafts).law
    off = float((law - joint_of(p, law.dim())).abs().max())
    measured = f"largest difference {off:.1e}"
    return Check("exact law of the verifier", "any", "traversal", name, measured, off < LAW_TOLERANCE)


def check_drawing_laws() -> list[Check]:
    """Check the whole decoder with residual verification, exactly: its images have the law of plain AR."""
    return [check_drawing_law(name, drawing) for name, drawing in drawing_cases().items()]


def check_drawing_law(name: str, drawing: Drawing) -> Check:
    """Images that this drafter helps to draw, over several steps, have exactly the joint law of plain AR."""
    drift = drawing.drift()
    measured = f"total variation {drift:.1e}"
    return Check("exact law of the images", "any", "residual", name, measured, drift < LAW_TOLERANCE)


def check_drifts(vocab: int = 10) -> list[Check]:
    """Measure relaxed verification alone: how far the law of the token that it commits is from p, a rather flat one."""
    p, cases = law_cases(vocab=vocab)
    relaxation = Relaxation.between(torch.randn(vocab, 2, generator=torch.Generator().manual_seed(0)))
    draws = cases["three draws, each from its own q"]
    return [
        check_drift("one draw", p, draws[:1], relaxation),
        check_drift("two draws, each from its own q", p, draws[:2], relaxation),
    ]


def check_drift(name: str, p: Float[Tensor, " vocab"], draws: Sequence[DrawLaw], relaxation: Relaxation) -> Check:
    """The drift is at most the chance that relaxed verification accepts what residual verification rejects."""
    verify = partial(relaxed, relaxation=relaxation)
    drift = float((exact_law(p, draws, verify) - p).abs().sum() / 2)
    most = excess(p, draws, verify)
    measured = f"LOSSY: total variation {drift:.3f} from p, at most {most:.3f}"
    settings = f"delta {relaxation.delta:g}, {name}"
    passed = drift <= most + LAW_TOLERANCE
    return Check("drift of the lossy verifier", "lantern", "relaxed", settings, measured, passed, lossless=False)


def law_cases(seed: int = 7, vocab: int = 4) -> tuple[Float[Tensor, " vocab"], dict[str, list[DrawLaw]]]:
    """A distribution p with a forbidden token, and kinds of draws under which a verifier must be lossless, by name.

    With the default seed, more than one token is still possible after two rejections, so that every draw matters.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, vocab, generator=generator, dtype=torch.float64)
    p, *qs = (logits * torch.tensor([[0.5], [2.0], [2.0], [2.0]])).softmax(-1)
    p[1] = 0
    p = p / p.sum()
    narrow = torch.where(torch.arange(vocab) == int(p.argmax()), 0.0, qs[0])
    one_hot = torch.eye(vocab, dtype=torch.float64)

    def always(q: Tensor) -> DrawLaw:
        return lambda tokens: q

    def without_replacement(q: Tensor, tokens: tuple[int, ...]) -> Tensor:
        left = q.index_fill(0, torch.tensor(tokens, dtype=torch.long), 0.0)
        return left / left.sum()

    return p, {
        "no draw": [],
        "one draw": [always(qs[0])],
        "three draws, each from its own q": [always(q) for q in qs],
        "three draws from one q, a repeated token tried again": [always(qs[0])] * 3,
        "three draws from one q without replacement": [partial(without_replacement, qs[0])] * 3,
        "q = p": [always(p)] * 2,
        "a q that lacks p's most likely token": [always(narrow / narrow.sum())] * 2,
        "one-hot drafts, one of them forbidden": [always(one_hot[token]) for token in (1, 0, 2)],
        "a one-hot draft, then a drawn one": [always(one_hot[2]), always(qs[1])],
    }


def teacher_forced(
    target: Target, prompt: Any, grid: Grid, params: SamplingParams, tokens: Int[Tensor, "b n"]
) -> Float[Tensor, "b n vocab"]:
    """log p at every position of whole images, given the tokens before it, from one causal forward after the prompt."""
    n = tokens.shape[1]
    prefilled = target.prefill(prompt, params.guided, n)
    batch = BatchParams.alike(params, len(tokens), target.vocab_size, prefilled.hidden)
    inputs = batch.rows_of(tokens)[:, :-1]
    positions = torch.arange(n - 1, device=tokens.device).expand_as(inputs)
    causal = torch.ones(n - 1, n - 1, dtype=torch.bool, device=tokens.device).tril().expand(len(inputs), -1, -1)
    with torch.no_grad():
        hidden = target.forward_nodes(inputs, positions, causal, prefilled.padding, prefilled.cache, grid)
        return scores_of(target, torch.cat((prefilled.hidden[:, None], hidden), dim=1), batch).log_p


def exact_joint(
    target: Target, prompt: Any, grid: Grid, params: SamplingParams, images: int
) -> Float[Tensor, " sequences"]:
    """Probability of every possible image under plain AR, in lexicographic order of the token sequences.

    `prompt` has `images` rows, which must all be alike. Raises `HawkError` if there are more than `MOST_SEQUENCES`.
    """
    total = target.vocab_size**grid.size
    if total > MOST_SEQUENCES:
        raise HawkError(
            f"{target.vocab_size} tokens on {grid.height}x{grid.width} cells make more than {MOST_SEQUENCES} images, "
            "too many to enumerate: prove residual verification on a smaller grid or vocabulary"
        )
    sequences = torch.cartesian_prod(*[torch.arange(target.vocab_size)] * grid.size)
    indices = torch.arange(-(-total // images) * images).clamp(max=total - 1)
    logs = []
    for chunk in indices.split(images):
        scores = teacher_forced(target, prompt, grid, params, sequences[chunk]).cpu()
        logs.append(scores.gather(-1, sequences[chunk][..., None]).sum((1, 2)))
    return torch.cat(logs)[:total].double().exp()


def chi_square(counts: Int[Tensor, " cells"], probabilities: Float[Tensor, " cells"]) -> ChiSquare:
    """Pearson's chi-square test of counts against a distribution.

    The rarest cells are lumped together until `SMALLEST_CELL` counts are expected in each lump. A count in a cell of
    probability 0 gives a p-value of 0. Raises `HawkError` if there are too few counts for two lumps.
    """
    total = int(counts.sum())
    if bool(counts[probabilities == 0].any()):
        return ChiSquare(float("inf"), 0, 0.0)
    observed, expected = [0.0], [0.0]
    for cell in probabilities.argsort().tolist():
        if expected[-1] >= SMALLEST_CELL:
            observed.append(0.0)
            expected.append(0.0)
        observed[-1] += float(counts[cell])
        expected[-1] += float(probabilities[cell]) * total
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    freedom = len(expected) - 1
    if freedom < 1:
        raise HawkError(f"{total} draws are too few for a chi-square test: draw more")
    tail = torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), torch.tensor(statistic / 2).double())
    return ChiSquare(statistic, freedom, float(tail))


def describe(params: SamplingParams, images: int) -> str:
    """The settings of a check, in one line."""
    return (
        f"temperature {params.temperature:g}, top-k {params.top_k}, top-p {params.top_p:g}, "
        f"cfg {params.cfg_scale:g}, batch of {images}"
    )


def _accepted(drawn: Generation) -> int:
    """Number of drafts that were accepted."""
    return sum(drawn.stats.accepted_by_source.values())


def _equal_tokens(tokens: Tensor, expected: Tensor) -> str:
    return f"{int((tokens == expected).sum())} of {expected.numel()} tokens equal"
