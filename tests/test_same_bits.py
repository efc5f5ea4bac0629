"""On a CPU, a node's state and logits have the same bits however many nodes are scored together with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fixtures.tiny_transformers import FAMILIES, PROMPTS, tiny
from hawk.decoding.grid import Grid
from hawk.models.folder import BUNDLED
from hawk.models.loading import load_on
from hawk.nn.layers import ROW_BLOCK, WholeBlocks, attend, product, whole_query_blocks

COUNTS = (1, 2, 3, 7, 16, 33)
"""Numbers of nodes that are scored together."""
DTYPES = [torch.float32, torch.bfloat16]
CPU = torch.device("cpu")


def names(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def windows_that_differ(target: Any, prompt: Any, grid: Grid, starts: tuple[int, ...]) -> list[tuple[int, int]]:
    """The (committed tokens, nodes) for which a window's states or logits differ from those of single nodes."""
    most, rows = max(COUNTS), 2 * len(prompt)
    prefilled = target.prefill(prompt, guided=True, capacity=grid.size + most)
    cache, after_prompt = prefilled.cache, list(prefilled.cache.lengths)
    tokens = torch.randint(target.vocab_size, (1, grid.size), generator=torch.Generator().manual_seed(1))

    def states(first: int, count: int) -> Tensor:
        positions = torch.arange(first, first + count).expand(rows, -1)
        chain = torch.ones(rows, count, count, dtype=torch.bool).tril()
        drafts = tokens.expand(rows, -1)[:, first : first + count]
        return target.forward_nodes(drafts, positions, chain, prefilled.padding, cache, grid)

    differ = []
    for start in starts:
        cache.rewind(after_prompt)
        if start:
            states(0, start)
            cache.keep([list(range(start))] * rows)
        committed, single = list(cache.lengths), []
        for node in range(most):
            single.append(states(start + node, 1))
            cache.keep([[0]] * rows)
        alone = torch.cat(single, dim=1)
        logits = torch.cat([target.head(state) for state in single], dim=1)
        for count in COUNTS:
            cache.rewind(committed)
            together = states(start, count)
            same = torch.equal(together, alone[:, :count]) and torch.equal(target.head(together), logits[:, :count])
            differ += [] if same else [(start, count)]
    return differ


@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_transformers_model_scores_a_node_among_others_as_it_scores_it_alone(name: str, dtype: torch.dtype) -> None:
    one, grid = tiny(name, dtype), Grid(8, 8)
    prompt = dataclasses.replace(one.model.condition(PROMPTS[:1], [""], one.grid), grid=grid)
    assert windows_that_differ(one.model.target, prompt, grid, (0, 27)) == []


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@torch.no_grad()
def test_the_bundled_model_scores_a_node_among_others_as_it_scores_it_alone(dtype: torch.dtype, packed: bool) -> None:
    model = load_on(BUNDLED, CPU, names(dtype), None, pack=packed, with_drafter=False)
    if not packed:
        model.target.to(dtype)
    prompt = model.condition(["a red apple"], [""], model.grid)
    assert windows_that_differ(model.target, prompt, model.grid, (0, 100)) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("committed", [5, 63, 600])
def test_attention_gives_a_query_the_same_bits_beside_any_other_queries(
    dtype: torch.dtype, kv_heads: int, committed: int
) -> None:
    most = max(COUNTS)
    q = torch.randn(2, 4, most, 64).to(dtype)
    k, v = torch.randn(2, 2, kv_heads, 640, 64).to(dtype)
    slots = torch.arange(640)
    mask = torch.zeros(2, 1, most, 640).masked_fill(slots > committed + torch.arange(most)[:, None], -torch.inf)

    def attended(first: int, count: int) -> Tensor:
        end = -(-(committed + first + count) // 64) * 64
        rows = slice(first, first + count)
        return attend(q[:, :, rows], k[:, :, :end], v[:, :, :end], whole_query_blocks(mask[:, :, rows, :end]))

    alone = torch.cat([attended(i, 1) for i in range(most)], dim=1)
    for count in COUNTS:
        assert torch.equal(attended(0, count), alone[:, :count]), count


@pytest.mark.parametrize("dtype", DTYPES, ids=names)
def test_a_product_gives_a_row_the_same_bits_beside_any_other_rows(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(2, 40, 640).to(dtype), torch.randn(48, 640).to(dtype), torch.randn(48).to(dtype)
    alone = torch.cat([product(x[:, i : i + 1], weight, bias) for i in range(40)], dim=1)
    for count in COUNTS:
        assert torch.equal(product(x[:, :count], weight, bias), alone[:, :count]), count
    torch.testing.assert_close(alone, F.linear(x, weight, bias), atol=1e-2, rtol=1e-2)
    assert product(x[0, 0], weight).shape == (48,)


def test_whole_blocks_give_other_libraries_layers_the_values_of_pytorchs_own() -> None:
    layer, x = torch.nn.Linear(8, 6).requires_grad_(False), torch.randn(2, 3, 8)
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8)
    mask = torch.zeros(2, 1, 3, 5).index_fill(3, torch.tensor(2), -torch.inf)
    plain = (layer(x), F.linear(input=x, weight=layer.weight), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    with WholeBlocks():
        ours = (
            layer(x),
            F.linear(input=x, weight=layer.weight),
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        )
        causal = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    for own, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(own, other)
    one_row = mask[:, :, :1]  # the mask of every query
    with WholeBlocks():
        folded = F.scaled_dot_product_attention(q, k, v, attn_mask=one_row)
    torch.testing.assert_close(folded, F.scaled_dot_product_attention(q, k, v, attn_mask=one_row))
    torch.testing.assert_close(causal, F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_off_the_cpu_nothing_is_added() -> None:
    mask = torch.zeros(1, 1, 1, 8, device="meta")
    assert whole_query_blocks(mask) is mask
    assert whole_query_blocks(torch.zeros(1, 1, 1, 8)).shape == (1, 1, ROW_BLOCK, 8)
