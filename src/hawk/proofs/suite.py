"""All proofs of losslessness: what `hawk verify` runs, in as many processes as there are cores.

Each proof makes what it needs anew from fixed seeds, so that they may run anywhere and in any order.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.decoding.trees import Drafter
from hawk.errors import HawkError
from hawk.models.llamagen.target import LlamaGen
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
"""Verifiers of drafts that are drawn; what they keep is the distribution."""
JOINT_IMAGES = list(range(250))
"""Seeds of the images that are drawn together where their joint distribution is tested."""

MOST_PROCESSES = 8
"""Each holds PyTorch and a proof's images: 0.6 GB."""

Proof = Callable[[], list[Check]]


def proofs(target: LlamaGen | None = None) -> list[Proof]:
    """Every proof, for every drafter. The seed-exact ones run on `target`, or else on a tiny random LlamaGen.

    A `target` must be in float64, where rounding does not decide between tokens (`HawkError`).
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
    """The checks of each proof, in their order, from processes of one thread each: tiny models gain nothing by more."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(processes, MOST_PROCESSES), spawn, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        pending = [pool.submit(proof) for proof in every]
        for each in pending:
            yield each.result()


def prove_exact(params: SamplingParams, target: LlamaGen | None = None) -> list[Check]:
    """Coupled verification of every drafter returns plain AR's tokens, and plain AR what its definition says."""
    target = target or tiny_target(0)
    exact = {name: (drafter, "coupled") for name, (drafter, _) in tiny_drafters(target).items()}
    return check_all(target, tiny_prompt(target, 3), target.grid, exact, [params], [1, 2, 3])


def prove_definition() -> list[Check]:
    """Plain AR is its definition on the target whose joint distribution is enumerated."""
    small, images = joint_target(), len(JOINT_IMAGES)
    return check_all(small, tiny_prompt(small, images, alike=True), small.grid, {}, JOINT_SETTINGS, JOINT_IMAGES)


def prove_joint(verifier: str, name: str, params: SamplingParams) -> list[Check]:
    """Images of one method under a verifier of drawn drafts follow plain AR's joint distribution."""
    small, images = joint_target(), len(JOINT_IMAGES)
    prompt = tiny_prompt(small, images, alike=True)
    drafter = drawn_for(verifier, small)[name]
    joint = exact_joint(small, prompt, small.grid, params, images)
    return [check_joint(name, verifier, small, prompt, small.grid, drafter, params, JOINT_IMAGES, ROUNDS, joint)]


def joint_target() -> LlamaGen:
    """A target with few enough images that the probability of each can be told."""
    return tiny_target(3, vocab=3, grid=Grid(3, 2), dim=16)


def drawn_for(verifier: str, target: LlamaGen) -> dict[str, Drafter | Window]:
    """The drafters of methods that draw their drafts, made for this verifier, where it can verify them."""
    drafters = tiny_drafters(target, verifier=verifier)
    return {
        name: drafter
        for name, (drafter, own) in drafters.items()
        if own == "residual" and verifier in drafter.lossless_with
    }
