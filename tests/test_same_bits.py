"""On a CPU, a node's state and logits have the same bits however many nodes are scored together with it.

`hawk verify` tells which level of "the same image" follows from that for a model on its device.
"""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from fixtures.tiny_transformers import FAMILIES, PROMPTS, Tiny, tiny
from hawk.cli import measure
from hawk.cli.tables import checks_table
from hawk.decoding.grid import Grid
from hawk.decoding.tree import Window
from hawk.models.folder import BUNDLED
from hawk.models.hf.model import TransformersModel, as_model, family_of
from hawk.models.loading import load_on
from hawk.nn.layers import ROW_BLOCK, WholeBlocks, attend, product, whole_query_blocks
from hawk.pipeline import HawkPipeline
from hawk.proofs import suite
from hawk.proofs.losslessness import Check

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


def fast(number: int) -> Any:
    """No mark for every second number: a fast test; the others are `proofs`."""
    return pytest.mark.proofs if number % 2 else ()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=fast(i + j), id=f"{name}-{names(dtype)}")
        for i, name in enumerate(FAMILIES)
        for j, dtype in enumerate(DTYPES)
    ],
)
@torch.no_grad()
def test_a_transformers_model_scores_a_node_among_others_as_it_scores_it_alone(name: str, dtype: torch.dtype) -> None:
    one, grid = tiny(name, dtype), Grid(8, 8)
    prompt = dataclasses.replace(one.model.condition(PROMPTS[:1], [""], one.grid), grid=grid)
    assert windows_that_differ(one.model.target, prompt, grid, (0, 27)) == []


def in_float32(one: Tiny) -> TransformersModel:
    """A tiny model with its weights in float32."""
    decoder = getattr(one.model.family, "decoder", None)
    return as_model("wide", family_of(one.hf.float(), one.tokenizer, decoder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=names)
@pytest.mark.parametrize("name", [pytest.param(name, marks=fast(i)) for i, name in enumerate(FAMILIES)])
@torch.no_grad()
def test_a_packed_transformers_model_scores_a_node_among_others_as_it_scores_it_alone(
    name: str, dtype: torch.dtype
) -> None:
    # Both hold the numbers of a bfloat16 checkpoint, which fit into float16.
    half, grid = tiny(name, torch.bfloat16), Grid(8, 8)
    plain = in_float32(tiny(name, torch.bfloat16))
    model = half.model if dtype == torch.float16 else in_float32(half)
    model.pack(dtype)
    assert (model.target.dtype, model.target.weight_dtype) == (torch.float32, dtype)
    assert not [module for module in model.family.backbone.modules() if isinstance(module, torch.nn.Linear)]
    prompt = dataclasses.replace(model.condition(PROMPTS[:1], [""], half.grid), grid=grid)
    assert windows_that_differ(model.target, prompt, grid, (0, 27)) == []
    prefilled, expected = (each.target.prefill(prompt, True, 4) for each in (model, plain))
    torch.testing.assert_close(prefilled.hidden, expected.hidden)
    torch.testing.assert_close(model.target.head(prefilled.hidden), plain.target.head(expected.hidden))
    assert model.target.parameter_count == plain.target.parameter_count


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


# --- what hawk verify tells of a model


def checks_of(saved_model: Any, monkeypatch: pytest.MonkeyPatch, device: str, same: int, in_shape: int) -> list[Check]:
    """The checks of the tiny model where so many of four images are equal, as on that device."""
    monkeypatch.setattr(suite, "identical_images", lambda pipe, prompts: same)
    monkeypatch.setattr(suite, "identical_in_shape", lambda pipe, prompts, window: in_shape)
    monkeypatch.setattr(suite, "window_of", lambda pipe: ("hawk", Window(16)))
    pipe = HawkPipeline.from_pretrained(saved_model, "cpu", "float32")
    return suite.prove_on_model(dataclasses.replace(pipe, device=torch.device(device)), ["a cat"] * 4)


def test_the_window_is_hawks_own_or_scds_where_hawk_drafts_trees(saved_model: Any) -> None:
    pipe = HawkPipeline.from_pretrained(saved_model, "cpu", "float32")
    parts = pipe.priced
    stale = dataclasses.replace(parts, fused=dataclasses.replace(parts.fused, sources=("stale",), refresh=5))
    trees = dataclasses.replace(parts, fused=dataclasses.replace(parts.fused, sources=("horizontal", "stale")))
    pipe.__dict__["priced"] = stale
    assert suite.window_of(pipe) == ("hawk", Window(5))
    pipe.__dict__["priced"] = trees
    assert suite.window_of(pipe) == ("scd", Window(64, above=False))


@pytest.mark.parametrize(
    ("device", "same", "in_shape", "level", "passes"),
    [
        ("cpu", 4, 4, 2, True),
        ("cpu", 3, 4, 3, False),  # level 2 is promised on CPUs
        ("cuda", 1, 4, 3, True),
        ("cuda", 4, 4, 2, True),
        ("cuda", 1, 3, 1, False),  # level 3 is promised everywhere
    ],
)
def test_a_model_fails_only_where_a_level_that_is_promised_does_not_hold(
    saved_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    same: int,
    in_shape: int,
    level: int,
    passes: bool,
) -> None:
    checks = checks_of(saved_model, monkeypatch, device, same, in_shape)
    *levels, beside = checks
    assert [check.measured.split(" images")[0] for check in levels] == [f"{same} of 4", f"{in_shape} of 4"]
    assert beside.measured == "4 of 4 images identical to those drawn alone (no part of a level)"
    assert suite.level_held(checks) == level
    assert all(check.passed for check in checks) is passes
    table = io.StringIO()
    Console(width=200, file=table).print(checks_table(checks))
    assert ("FAILED" in table.getvalue()) is not passes
    assert ("not promised" in table.getvalue()) is (device == "cuda" and same < 4)


def test_no_level_holds_where_a_proof_fails(saved_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Check("tokens", "medusa", "coupled", "cfg 2", "1 differs", passed=False)
    assert suite.level_held([failed, *checks_of(saved_model, monkeypatch, "cpu", 4, 4)]) == 0
    assert suite.level_held([dataclasses.replace(failed, passed=True)]) == 1


def test_images_are_counted_against_plain_ar_at_the_windows_shape(
    saved_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = HawkPipeline.from_pretrained(saved_model, "cpu", "float32")
    prompts = ["a red apple", "a cat"]
    assert suite.identical_in_shape(pipe, prompts, Window(5)) == 2
    drawn = suite.generate

    def spoilt(target: Any, request: Any, window: Window, **options: Any) -> Any:
        """A generation whose window draws the image with seed 1 wrongly."""
        generation = drawn(target, request, window, **options)
        if window.keeps and list(request.seeds) == [1]:
            return dataclasses.replace(generation, tokens=generation.tokens + 1)
        return generation

    monkeypatch.setattr(suite, "generate", spoilt)
    assert suite.identical_in_shape(pipe, prompts, Window(5)) == 1


def test_verify_loads_one_model_and_names_its_level(
    saved_model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = []

    def load(model: str, device: str, dtype: str, *others: Any) -> HawkPipeline:
        loaded.append(dtype)
        return HawkPipeline.from_pretrained(model, device, dtype)

    monkeypatch.setattr(measure, "load_pipeline", load)
    monkeypatch.setattr(suite, "run_in_processes", lambda every, processes: [])
    monkeypatch.setattr("hawk.measure.methods.bench_prompts", lambda wanted: ["a red apple"] * int(wanted))
    measure.verify(model=str(saved_model), prompts=1, device="cpu", dtype="float32")
    *_, sentence, last = capsys.readouterr().out.splitlines()
    assert loaded == ["float32"]
    assert sentence == f"level 2: {suite.LEVELS[2]}"
    document = json.loads(last)
    assert (document["passed"], document["level"]) == (True, 2)
    assert [check.get("level") for check in document["checks"]] == [2, 3, None]
