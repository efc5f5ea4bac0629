"""Numeric parity with the public LlamaGen transformer, whose outputs for weights made by formula are in the fixture."""

from __future__ import annotations

import json
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from hawk.decoding.cache import Prefilled
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import DraftTree
from hawk.decoding.trees import NoDrafter
from hawk.models.llamagen.target import CaptionPrompt, LlamaGen, LlamaGenConfig

FIXTURES = Path(__file__).parent / "fixtures"
PARITY = runpy.run_path(str(FIXTURES / "parity_weights.py"))
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """One grid: the model, its left-padded prompt, and the outputs of the public code, with rows [cond; uncond]."""

    target: LlamaGen
    grid: Grid
    prompt: CaptionPrompt
    cfg_scale: float
    tokens: Tensor
    logits: Tensor
    tree_front: int
    tree_parents: list[int]
    tree_tokens: Tensor
    tree_logits: Tensor

    @property
    def rows(self) -> int:
        return len(self.logits)

    @property
    def doubled(self) -> Tensor:
        """The greedy tokens, repeated for the rows [cond; uncond]."""
        return torch.cat((self.tokens, self.tokens))


@pytest.fixture(scope="module", params=[0, 1], ids=["4x4", "6x6"])
def case(request: pytest.FixtureRequest) -> Case:
    with safe_open(FIXTURES / "llamagen_parity.safetensors", framework="pt") as tensors:
        made: dict[str, Any] = json.loads(tensors.metadata()["made"])
        height, width = made["grids"][request.param]
        answers = {
            name: tensors.get_tensor(f"{height}x{width}.{name}")
            for name in ("tokens", "logits", "tree_tokens", "tree_logits")
        }
    config = LlamaGenConfig(**made["model"], height=height, width=width)
    target = LlamaGen(config).eval().requires_grad_(False)
    target.load_state_dict(PARITY["fill"]({name: tuple(p.shape) for name, p in target.state_dict().items()}))
    lengths = torch.tensor(made["caption_lengths"])
    mask = torch.arange(config.caption_tokens) >= config.caption_tokens - lengths[:, None]
    features = PARITY["noise"](made["features"][request.param], (*mask.shape, config.caption_dim)) * mask[..., None]
    return Case(
        target,
        Grid(height, width),
        CaptionPrompt(features, mask),
        made["cfg_scale"],
        answers["tokens"].long(),
        answers["logits"],
        made["tree_front"][request.param],
        made["tree_parents"],
        answers["tree_tokens"].long(),
        answers["tree_logits"],
    )


def prefill(case: Case) -> Prefilled:
    return case.target.prefill(case.prompt, guided=True, capacity=case.grid.size + len(case.tree_parents))


def chunk(case: Case, prefilled: Prefilled, count: int) -> Tensor:
    """The logits after each of the first `count` greedy tokens, from one forward."""
    causal = torch.ones(count, count, dtype=torch.bool).tril().repeat(case.rows, 1, 1)
    positions = torch.arange(count).repeat(case.rows, 1)
    hidden = case.target.forward_nodes(
        case.doubled[:, :count], positions, causal, prefilled.padding, prefilled.cache, case.grid
    )
    return case.target.head(hidden)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def test_prefill_and_a_chain_decoded_step_by_step(case: Case) -> None:
    prefilled = prefill(case)
    logits = [case.target.head(prefilled.hidden)]
    alone = torch.ones(case.rows, 1, 1, dtype=torch.bool)
    for position in range(case.grid.size - 1):
        tokens = case.doubled[:, position : position + 1]
        positions = torch.full_like(tokens, position)
        hidden = case.target.forward_nodes(tokens, positions, alone, prefilled.padding, prefilled.cache, case.grid)
        prefilled.cache.keep([[0]] * case.rows)
        logits.append(case.target.head(hidden[:, 0]))
    close(torch.stack(logits, dim=1), case.logits)


def test_the_whole_image_in_one_chunk(case: Case) -> None:
    close(chunk(case, prefill(case), case.grid.size - 1), case.logits[:, 1:])


def test_teacher_forcing_as_in_training(case: Case) -> None:
    prompt = case.prompt
    features = torch.cat((prompt.features, case.target.null_features(prompt.features)))
    hidden = case.target(case.doubled, features, torch.cat((prompt.mask, prompt.mask)), case.grid)
    close(case.target.head(hidden), case.logits)


def test_a_draft_tree(case: Case) -> None:
    prefilled = committed_up_to_the_tree(case)
    close(tree_logits(case, prefilled, list(range(len(case.tree_parents)))), case.tree_logits)


def test_a_node_below_a_path_kept_of_the_tree(case: Case) -> None:
    prefilled, leaf = committed_up_to_the_tree(case), len(case.tree_parents) - 1
    path = draft_tree(case).ancestors()[0, leaf].nonzero().flatten().tolist()
    assert path != list(range(leaf + 1))
    tree_logits(case, prefilled, list(range(leaf)))
    prefilled.cache.keep([path[:-1]] * case.rows)
    close(tree_logits(case, prefilled, [leaf]), case.tree_logits[:, [leaf]])


def committed_up_to_the_tree(case: Case) -> Prefilled:
    prefilled = prefill(case)
    chunk(case, prefilled, case.tree_front)
    prefilled.cache.keep([list(range(case.tree_front))] * case.rows)
    return prefilled


def draft_tree(case: Case) -> DraftTree:
    tokens = case.tree_tokens
    parents = torch.tensor(case.tree_parents).repeat(len(tokens), 1)
    return DraftTree(tokens, parents, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool), ("fixture",))


def tree_logits(case: Case, prefilled: Prefilled, nodes: list[int]) -> Tensor:
    """The logits after some nodes of the tree, from one forward; ancestors not among them must be in the cache."""
    tree = draft_tree(case)
    ancestors = torch.cat((tree.ancestors(), tree.ancestors()))
    hidden = case.target.forward_nodes(
        torch.cat((tree.tokens, tree.tokens))[:, nodes],
        case.tree_front + ancestors.sum(-1)[:, nodes] - 1,
        ancestors[:, nodes][:, :, nodes],
        prefilled.padding,
        prefilled.cache,
        case.grid,
    )
    return case.target.head(hidden)


def test_greedy_generation_with_guidance_token_by_token(case: Case) -> None:
    params = SamplingParams(temperature=0.0, cfg_scale=case.cfg_scale)
    seeds = [0] * len(case.tokens)
    generation = generate(case.target, Request(case.prompt, case.grid, params, seeds), NoDrafter())
    assert torch.equal(generation.tokens, case.tokens)
