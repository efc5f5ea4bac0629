"""All proofs of losslessness that `hawk verify` runs: those on tiny targets, and the check of the model at hand.

Each proof on a tiny target makes everything anew from fixed seeds, so that these proofs can run in any process and in
any order.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from hawk.decoding.grid import Grid
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.decoding.trees import Drafter
from hawk.errors import HawkError
from hawk.models.llamagen.target import LlamaGen
from hawk.pipeline import HawkPipeline, PipelineOutput
from hawk.proofs.losslessness import (
    EXACT_SETTINGS,
    JOINT_SETTINGS,
    ROUNDS,
    Check,
    check_all,
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
MOST_DIFFERING = 0.01
"""Largest share of the model's own images that rounding may make differ from plain AR's."""

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
    return [*exact, prove_definition, *joint, check_laws, check_tree_laws, check_drifts]


def run_in_processes(every: Sequence[Proof], processes: int) -> Iterator[list[Check]]:
    """Run the proofs in several processes and yield the checks of each proof, in the order of the proofs.

    A process has one thread, because tiny models do not gain from more.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(processes, MOST_PROCESSES), spawn, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        pending = [pool.submit(proof) for proof in every]
        for each in pending:
            yield each.result()


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
    """`hawk` draws the prompts with the tokens of plain AR, on the pipeline's own model, device and dtype."""
    same, images = identical_images(pipe, prompts), len(prompts)
    settings = f"{pipe.model.name}, {pipe.dtype}, {pipe.device.type}"
    measured, passed = f"{same} of {images} images identical to ar", same >= (1 - MOST_DIFFERING) * images
    return [Check("the model itself, same seed", "hawk", "coupled", settings, measured, passed)]


def identical_images(pipe: HawkPipeline, prompts: Sequence[str]) -> int:
    """Number of prompts that `hawk` draws with the same tokens as plain AR; the seed of prompt i is i."""
    same = 0
    for seed, prompt in enumerate(prompts):
        plain, hawk = (pipe(prompt, seed=seed, method=method) for method in ("ar", "hawk"))
        assert isinstance(plain, PipelineOutput)
        assert isinstance(hawk, PipelineOutput)
        same += torch.equal(plain.tokens, hawk.tokens)
    return same


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
