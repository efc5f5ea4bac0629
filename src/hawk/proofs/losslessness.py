"""Losslessness, proven on this machine: the checks that `proofs` puts together and `hawk verify` runs.

Coupled verification must return the tokens of plain AR, one by one, for the same seed; and plain AR must return what
its definition says, argmax(log p + g) at every position, from a teacher-forced forward that shares nothing with the
decoder's steps. Residual and traversal verification must keep the joint distribution of the tokens: end to end by a
chi-square test against the enumerated joint of a tiny target, and exactly, to 1e-12, for the verifiers by themselves.
Relaxed verification is lossy: its drift is measured, and called that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from hawk.decoding.sampling import SamplingParams, gumbel_argmax
from hawk.decoding.stats import Generation
from hawk.decoding.tree import Window
from hawk.decoding.trees import Drafter, NoDrafter
from hawk.errors import HawkError
from hawk.proofs.law import DrawLaw, exact_law, excess
from hawk.proofs.tree_law import Continuation, TreeLaw, exact_traversal, joint_of, tree_cases

MOST_SEQUENCES = 20_000
"""Largest number of images (token sequences) whose probabilities are enumerated."""
SMALLEST_P_VALUE = 1e-3
"""A chi-square test below this fails; seeds are fixed, so it fails always or never."""
SMALLEST_CELL = 5.0
"""Expected count below which the chi-square test lumps sequences together (Cochran's rule)."""
LAW_TOLERANCE = 1e-12
ROUNDS = 6
"""Batches of images that a joint distribution is told from."""

EXACT_SETTINGS = (
    SamplingParams(),
    SamplingParams(cfg_scale=3.0),
    SamplingParams(temperature=0.7, top_k=5, top_p=0.9, cfg_scale=2.0),
    SamplingParams(temperature=1.5, top_k=4),
    SamplingParams(top_p=0.8, cfg_scale=1.5),
    SamplingParams(temperature=0.0, cfg_scale=2.0),
)
JOINT_SETTINGS = (SamplingParams(temperature=0.8, top_k=2), SamplingParams(temperature=0.6, cfg_scale=1.5))


@dataclass(frozen=True)
class Check:
    """One proof: of which method under which verifier and settings, what was measured, and whether it holds.

    Not `lossless`: what is proven is how far a lossy verifier drifts, not that it keeps the distribution.
    """

    name: str
    method: str
    verifier: str
    settings: str
    measured: str
    passed: bool
    lossless: bool = True


@dataclass(frozen=True)
class Fit:
    """Pearson's chi-square test of counts against a distribution."""

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
    """Plain AR against its definition, then each (drafter, verifier) under each of `params_list`.

    `coupled` is proven seed-exact, on one batch. `residual` and `traversal` are proven by the joint distribution of
    `rounds * len(seeds)` images: the rows of `prompt` must then all be alike and the images few enough to enumerate.
    """
    checks = []
    for params in params_list:
        plain = generate(target, Request(prompt, grid, params, seeds), NoDrafter())
        checks.append(check_definition(target, prompt, grid, params, seeds, plain))
        drawn_too = any(verifier != "coupled" for _, verifier in drafters.values())
        joint = exact_joint(target, prompt, grid, params, len(seeds)) if drawn_too else None
        for name, (drafter, verifier) in drafters.items():
            if verifier != "coupled" and joint is not None:
                checks.append(check_joint(name, verifier, target, prompt, grid, drafter, params, seeds, rounds, joint))
            else:
                checks.append(check_seed_exact(name, target, prompt, grid, drafter, params, seeds, plain))
    return checks


def check_definition(
    target: Target, prompt: Any, grid: Grid, params: SamplingParams, seeds: list[int], plain: Generation
) -> Check:
    """Plain AR's tokens are argmax(log p + g) at every position, by one teacher-forced forward over them."""
    scores = teacher_forced(target, prompt, grid, params, plain.tokens)
    noise = torch.stack([gumbel_rows(seed, 0, grid.size, target.vocab_size) for seed in seeds])
    expected = gumbel_argmax(scores, noise.to(scores))
    return Check(
        "argmax(log p + g) at every position",
        "ar",
        "coupled",
        describe(params, len(seeds)),
        _equal_tokens(plain.tokens, expected),
        bool(torch.equal(plain.tokens, expected)),
    )


def check_seed_exact(
    name: str,
    target: Target,
    prompt: Any,
    grid: Grid,
    drafter: Drafter | Window,
    params: SamplingParams,
    seeds: list[int],
    plain: Generation,
) -> Check:
    """Speculative decoding under the coupled verifier returns plain AR's tokens, one by one."""
    drawn = generate(target, Request(prompt, grid, params, seeds, "coupled"), drafter)
    spent = f"{sum(drawn.stats.accepted_by_source.values())} drafts kept, NFE {plain.stats.nfe} -> {drawn.stats.nfe}"
    return Check(
        "same seed, same tokens as plain AR",
        name,
        "coupled",
        describe(params, len(seeds)),
        f"{_equal_tokens(drawn.tokens, plain.tokens)}, {spent}",
        bool(torch.equal(drawn.tokens, plain.tokens)),
    )


def check_joint(
    name: str,
    verifier: str,
    target: Target,
    prompt: Any,
    grid: Grid,
    drafter: Drafter | Window,
    params: SamplingParams,
    seeds: list[int],
    rounds: int,
    joint: Float[Tensor, " sequences"],
) -> Check:
    """Images drawn under the verifier follow the enumerated `joint` of plain AR, by a chi-square test."""
    digits = target.vocab_size ** torch.arange(grid.size - 1, -1, -1)
    counts = torch.zeros(len(joint), dtype=torch.long)
    kept, stride = 0, max(seeds) - min(seeds) + 1
    for turn in range(rounds):
        drawn = generate(
            target, Request(prompt, grid, params, [seed + turn * stride for seed in seeds], verifier), drafter
        )
        counts += torch.bincount((drawn.tokens.cpu() * digits).sum(-1), minlength=len(joint))
        kept += sum(drawn.stats.accepted_by_source.values())
    fit = chi_square(counts, joint)
    return Check(
        "joint distribution of plain AR",
        name,
        verifier,
        describe(params, len(seeds)),
        f"{int(counts.sum())} images, {kept} drafts kept, chi-square {fit.statistic:.1f} "
        f"with {fit.freedom} degrees of freedom, p = {fit.p_value:.2g}",
        fit.p_value > SMALLEST_P_VALUE,
    )


def check_laws(vocab: int = 4) -> list[Check]:
    """The residual verifier by itself, exactly: for each kind of draws its output law is p."""
    p, cases = law_cases(vocab=vocab)
    return [check_law(name, p, draws) for name, draws in cases.items()]


def check_law(name: str, p: Float[Tensor, " vocab"], draws: Sequence[DrawLaw]) -> Check:
    """The exact law of what the residual verifier commits below a node with these draws is p."""
    off = float((exact_law(p, draws) - p).abs().max())
    measured = f"largest difference {off:.1e}"
    return Check("exact law of the verifier", "any", "residual", name, measured, off < LAW_TOLERANCE)


def check_tree_laws() -> list[Check]:
    """Traversal by itself, exactly: for each kind of tree the tokens it commits follow p, one after the other."""
    p, cases = tree_cases()
    return [check_tree_law(name, p, drafts) for name, drafts in cases.items()]


def check_tree_law(name: str, p: Continuation, drafts: TreeLaw) -> Check:
    """The exact law of what traversal commits in a step, where p says each token given those before it."""
    law = exact_traversal(p, drafts).law
    off = float((law - joint_of(p, law.dim())).abs().max())
    measured = f"largest difference {off:.1e}"
    return Check("exact law of the verifier", "any", "traversal", name, measured, off < LAW_TOLERANCE)


def check_drifts(vocab: int = 10) -> list[Check]:
    """Relaxed verification by itself: how far the exact law of what it commits is from p, a rather flat one."""
    p, cases = law_cases(vocab=vocab)
    relaxation = Relaxation.between(torch.randn(vocab, 2, generator=torch.Generator().manual_seed(0)))
    draws = cases["three draws, each from its own q"]
    return [
        check_drift("one draw", p, draws[:1], relaxation),
        check_drift("two draws, each from its own q", p, draws[:2], relaxation),
    ]


def check_drift(name: str, p: Float[Tensor, " vocab"], draws: Sequence[DrawLaw], relaxation: Relaxation) -> Check:
    """It drifts by no more than the chance that it keeps what residual verification would have rejected."""
    verify = partial(relaxed, relaxation=relaxation)
    drift = float((exact_law(p, draws, verify) - p).abs().sum() / 2)
    most = excess(p, draws, verify)
    measured = f"LOSSY: total variation {drift:.3f} from p, at most {most:.3f}"
    settings = f"delta {relaxation.delta:g}, {name}"
    passed = drift <= most + LAW_TOLERANCE
    return Check("drift of the lossy verifier", "lantern", "relaxed", settings, measured, passed, lossless=False)


def law_cases(seed: int = 7, vocab: int = 4) -> tuple[Float[Tensor, " vocab"], dict[str, list[DrawLaw]]]:
    """A distribution p with a forbidden token, and draws that a verifier must survive, by what is special in them.

    With the default seed more than one token is left after two rejections, so that every draw matters.
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
        "three draws from one q, equal ones tried again": [always(qs[0])] * 3,
        "three draws from one q without replacement": [partial(without_replacement, qs[0])] * 3,
        "q = p": [always(p)] * 2,
        "q that lacks p's likeliest token": [always(narrow / narrow.sum())] * 2,
        "one-hot drafts, one of them forbidden": [always(one_hot[token]) for token in (1, 0, 2)],
        "a one-hot draft, then a drawn one": [always(one_hot[2]), always(qs[1])],
    }


def teacher_forced(
    target: Target, prompt: Any, grid: Grid, params: SamplingParams, tokens: Int[Tensor, "b n"]
) -> Float[Tensor, "b n vocab"]:
    """log p of each next token of whole images given those before it, from one causal forward behind the prompt."""
    n = tokens.shape[1]
    prefilled = target.prefill(prompt, params.guided, n)
    inputs = tokens.repeat(2 if params.guided else 1, 1)[:, :-1]
    positions = torch.arange(n - 1, device=tokens.device).expand_as(inputs)
    causal = torch.ones(n - 1, n - 1, dtype=torch.bool, device=tokens.device).tril().expand(len(inputs), -1, -1)
    with torch.no_grad():
        hidden = target.forward_nodes(inputs, positions, causal, prefilled.padding, prefilled.cache, grid)
        return scores_of(target, torch.cat((prefilled.hidden[:, None], hidden), dim=1), params).log_p


def exact_joint(
    target: Target, prompt: Any, grid: Grid, params: SamplingParams, images: int
) -> Float[Tensor, " sequences"]:
    """Plain AR's probability of every possible image, the sequences in lexicographic order.

    All `images` rows of `prompt` must be alike. Raises `HawkError` where there are too many sequences.
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


def chi_square(counts: Int[Tensor, " cells"], probabilities: Float[Tensor, " cells"]) -> Fit:
    """Pearson's test; the rarest cells are lumped together until `SMALLEST_CELL` counts are expected in each lump.

    A count where the probability is 0 gives p = 0.
    """
    total = int(counts.sum())
    if bool(counts[probabilities == 0].any()):
        return Fit(float("inf"), 0, 0.0)
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
    return Fit(statistic, freedom, float(tail))


def describe(params: SamplingParams, images: int) -> str:
    """The settings of a check in one line."""
    return (
        f"temperature {params.temperature:g}, top-k {params.top_k}, top-p {params.top_p:g}, "
        f"cfg {params.cfg_scale:g}, batch of {images}"
    )


def _equal_tokens(tokens: Tensor, expected: Tensor) -> str:
    return f"{int((tokens == expected).sum())} of {expected.numel()} tokens equal"
