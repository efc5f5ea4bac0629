"""All proofs of losslessness that `hawk verify` runs: those on tiny targets, and the check of the model at hand.

Each proof on a tiny target makes everything anew from fixed seeds, so that these proofs can run in any process and in
any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.decoding.trees import Drafter
from hawk.drafters.methods import METHODS, build_drafter
from hawk.errors import HawkError
from hawk.models.llamagen.target import LlamaGen
from hawk.nn.layers import same_bits_in_windows
from hawk.pipeline import HawkPipeline, PipelineOutput
from hawk.processes import process_pool
from hawk.proofs.lanes import check_schedules
from hawk.proofs.losslessness import (
    EXACT_SETTINGS,
    JOINT_SETTINGS,
    ROUNDS,
    Check,
    check_all,
    check_drawing_laws,
    check_drifts,
    check_joint,
    check_laws,
    check_tree_laws,
    exact_joint,
)
from hawk.proofs.tiny import tiny_drafters, tiny_prompt, tiny_target

DRAWN = ("residual", "traversal")
"""The lossless verifiers of drafts that are drawn from q. They keep the distribution, not the tokens of a seed."""
JOINT_IMAGES = list(range(250))
"""Seeds of the batch of images on which a joint distribution is tested."""

MOST_PROCESSES = 8
"""Most processes that run proofs; each takes 0.6 GB for PyTorch and the images of a proof."""
AT_ONCE = 3
"""Images that are drawn at once where a check draws them beside others."""
MOST_DIFFERING = 0.01
"""Largest share of the model's own images that may differ from plain AR's where the same tokens are promised."""

LEVELS = {
    0: "the proofs failed, so the distribution is not proven to be plain AR's",
    1: "the same distribution as plain AR",
    2: "the same tokens as plain AR for the same seed",
    3: "the same tokens as plain AR run at the window's shape for the same seed",
}
"""What each level of "the same image" promises. Level 1 is proven for every lossless method."""


@dataclass(frozen=True)
class LevelCheck(Check):
    """A check of the model at hand against level 2 or 3 of `LEVELS`.

    `holds` is whether the level held; `passed` is also true for a level that did not hold and is not promised.
    """

    level: int = 2
    holds: bool = True


Proof = Callable[[], list[Check]]


def proofs(target: LlamaGen | None = None) -> list[Proof]:
    """All proofs, for every drafter. The seed-exact ones run on `target`, or on a tiny random LlamaGen if it is None.

    Raises:
        HawkError: `target` is not in float64, where rounding does not decide between tokens.
    """
    if target is not None and target.dtype != torch.float64:
        raise HawkError(f"equality of tokens is proven in float64, not {target.dtype}: use target.double()")
    joint = [
        partial(prove_joint, verifier, name, params)
        for verifier in DRAWN
        for name in drawn_for(verifier, joint_target())
        for params in JOINT_SETTINGS
    ]
    exact = [partial(prove_exact, params, target) for params in EXACT_SETTINGS]
    laws = [check_laws, check_tree_laws, check_drawing_laws, check_drifts]
    return [*exact, prove_definition, check_schedules, *joint, *laws]


def run_in_processes(every: Sequence[Proof], processes: int) -> Iterator[list[Check]]:
    """Run the proofs in several processes and yield the checks of each proof, in the order of the proofs.

    A process has one thread, because tiny models do not gain from more. If the caller stops early (Ctrl-C), the
    processes are ended.
    """
    with process_pool(min(processes, MOST_PROCESSES), partial(torch.set_num_threads, 1)) as pool:
        for pending in [pool.submit(proof) for proof in every]:
            yield pending.result()


def prove_exact(params: SamplingParams, target: LlamaGen | None = None) -> list[Check]:
    """With every drafter, coupled verification returns plain AR's tokens; plain AR follows its definition."""
    target = target or tiny_target(0)
    exact = {name: (drafter, "coupled") for name, (drafter, _) in tiny_drafters(target).items()}
    return check_all(target, tiny_prompt(target, 3), target.grid, exact, [params], [1, 2, 3])


def prove_definition() -> list[Check]:
    """Plain AR follows its definition on the target whose joint distribution is enumerated."""
    small, images = joint_target(), len(JOINT_IMAGES)
    return check_all(small, tiny_prompt(small, images, alike=True), small.grid, {}, JOINT_SETTINGS, JOINT_IMAGES)


def prove_joint(verifier: str, name: str, params: SamplingParams) -> list[Check]:
    """The images of one method under a verifier of `DRAWN` follow plain AR's joint distribution."""
    small, images = joint_target(), len(JOINT_IMAGES)
    prompt = tiny_prompt(small, images, alike=True)
    drafter = drawn_for(verifier, small)[name]
    joint = exact_joint(small, prompt, small.grid, params, images)
    request = Request(prompt, small.grid, params, JOINT_IMAGES, verifier)
    return [check_joint(name, small, request, drafter, ROUNDS, joint)]


def prove_on_model(pipe: HawkPipeline, prompts: Sequence[str]) -> list[Check]:
    """Which levels the pipeline's own model keeps on its device and in its dtype, by images of the prompts.

    Level 2 compares `hawk` with plain AR, and may fail only where it is not promised. Level 3 compares a window with
    plain AR run at that window's shape.
    """
    images, (method, window) = len(prompts), window_of(pipe)
    settings = f"{pipe.model.name}, {pipe.dtype}, {pipe.device.type}"
    same, in_shape = identical_images(pipe, prompts), identical_in_shape(pipe, prompts, window)
    beside = identical_beside_others(pipe, prompts)
    holds, holds_in_shape = (count >= (1 - MOST_DIFFERING) * images for count in (same, in_shape))
    shape = f"{settings}, window {window.reach}"
    return [
        LevelCheck(
            "the model itself, same seed",
            "hawk",
            "coupled",
            settings,
            f"{same} of {images} images identical to ar",
            holds or not promises_same_tokens(pipe),
            level=2,
            holds=holds,
        ),
        LevelCheck(
            "the model itself, same seed and shape",
            method,
            "coupled",
            shape,
            f"{in_shape} of {images} images identical to ar at the window's shape",
            holds_in_shape,
            level=3,
            holds=holds_in_shape,
        ),
        Check(
            "the model itself, beside other images",
            "hawk",
            "coupled",
            f"{settings}, up to {AT_ONCE} images at once",
            f"{beside} of {images} images identical to those drawn alone (no part of a level)",
            True,
        ),
    ]


def promises_same_tokens(pipe: HawkPipeline) -> bool:
    """Whether level 2 is promised (`same_bits_in_windows`)."""
    return same_bits_in_windows(pipe.device, pipe.model.target.dtype)


def level_held(checks: Sequence[Check]) -> int:
    """The strongest level of `LEVELS` that holds, 0 if a proof of level 1 failed."""
    if not all(check.passed for check in checks if not isinstance(check, LevelCheck)):
        return 0
    held = {check.level for check in checks if isinstance(check, LevelCheck) and check.holds}
    return next((level for level in (2, 3) if level in held), 1)


def identical_images(pipe: HawkPipeline, prompts: Sequence[str]) -> int:
    """Number of prompts that `hawk` draws with the same tokens as plain AR; the seed of prompt i is i."""
    same = 0
    for seed, prompt in enumerate(prompts):
        plain, hawk = (pipe(prompt, seed=seed, method=method) for method in ("ar", "hawk"))
        assert isinstance(plain, PipelineOutput)
        assert isinstance(hawk, PipelineOutput)
        same += torch.equal(plain.tokens, hawk.tokens)
    return same


def identical_beside_others(pipe: HawkPipeline, prompts: Sequence[str]) -> int:
    """Number of prompts that have the same tokens alone and beside other images; the seed of prompt i is i."""
    seeds = list(range(len(prompts)))
    together = pipe(prompts, seed=seeds, batch_size=AT_ONCE)
    assert isinstance(together, PipelineOutput)
    same = 0
    for seed, prompt in enumerate(prompts):
        alone = pipe(prompt, seed=seed)
        assert isinstance(alone, PipelineOutput)
        same += torch.equal(alone.tokens[0], together.tokens[seed])
    return same


def identical_in_shape(pipe: HawkPipeline, prompts: Sequence[str], window: Window) -> int:
    """Number of prompts that a window draws with the same tokens as plain AR at its shape; prompt i has the seed i."""
    same = 0
    for seed, prompt in enumerate(prompts):
        request = Request(pipe.condition([prompt]), pipe.model.grid, pipe.defaults, [seed])
        drawn, plain = (
            generate(pipe.model.target, request, each, recordings=pipe.recordings)
            for each in (window, replace(window, keeps=False))
        )
        same += torch.equal(drawn.tokens, plain.tokens)
    return same


def window_of(pipe: HawkPipeline) -> tuple[str, Window]:
    """The method whose window stands for the model at level 3, and the window: `hawk`, or `scd` if `hawk` drafts trees.

    Plain AR can be run at the shape of a window of fixed reach, but not at shapes that change with every step.
    """
    for method, parts in (("hawk", pipe.priced), ("scd", None)):
        drafter = build_drafter(METHODS[method], parts, pipe.model.target)
        if isinstance(drafter, Window):
            return method, replace(drafter, ladder=())
    raise AssertionError("scd drafts in a window")


def joint_target() -> LlamaGen:
    """A target with so few possible images that the probability of each one can be enumerated."""
    return tiny_target(3, vocab=3, grid=Grid(3, 2), dim=16)


def drawn_for(verifier: str, target: LlamaGen) -> dict[str, Drafter | Window]:
    """The drafters that draw their drafts from q and that this verifier can verify, by the name of their method."""
    drafters = tiny_drafters(target, verifier=verifier)
    return {
        name: drafter
        for name, (drafter, own) in drafters.items()
        if own == "residual" and verifier in drafter.lossless_with
    }
