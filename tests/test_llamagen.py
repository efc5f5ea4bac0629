"""LlamaGen: training and decoding agree on one distribution, on any grid; parameters are named as officially."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from hawk.decoding.cache import Prefilled
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.trees import NoDrafter
from hawk.errors import HawkError
from hawk.models.llamagen.target import CaptionPrompt, LlamaGen, LlamaGenConfig
from hawk.nn.layers import rotate
from hawk.nn.packed import multiplies_bfloat16

TINY = LlamaGenConfig(dim=32, n_layer=2, n_head=2, multiple_of=16, vocab_size=12, caption_dim=10, caption_tokens=5)
GROUPED = LlamaGenConfig(
    dim=32, n_layer=2, n_head=4, n_kv_head=2, multiple_of=16, vocab_size=12, caption_dim=10, caption_tokens=5
)
KEYED = LlamaGenConfig(**{**TINY.to_dict(), "caption_keys": True})
GRIDS = [Grid(4, 4), Grid(3, 5), Grid(6, 2), Grid(1, 7), Grid(5, 1)]
LENGTHS = (3, 5, 1)  # words of the three captions, padded on the left to five


def lively(config: LlamaGenConfig, dtype: torch.dtype = torch.float64) -> LlamaGen:
    """Random weights with an output head that is not zero."""
    target = LlamaGen(config)
    target.initialize(0.3)
    target.output.weight.data.normal_()
    return target.to(dtype).eval().requires_grad_(False)


def captions(config: LlamaGenConfig = TINY, dtype: torch.dtype = torch.float64) -> CaptionPrompt:
    mask = torch.arange(config.caption_tokens) >= config.caption_tokens - torch.tensor(LENGTHS)[:, None]
    features = torch.randn(*mask.shape, config.caption_dim, dtype=dtype) * mask[..., None]
    return CaptionPrompt(features, mask)


def rows_of(target: LlamaGen, prompt: CaptionPrompt) -> tuple[Tensor, Tensor]:
    """[cond; uncond] features and masks under the null caption."""
    features = torch.cat((prompt.features, target.null_features(prompt.features)))
    return features, torch.cat((prompt.mask, prompt.mask))


def decode_one_by_one(target: LlamaGen, prefilled: Prefilled, tokens: Tensor, grid: Grid) -> Tensor:
    """Hidden states of a chain, from one forward for each token; the first state is the prefill's."""
    rows = len(tokens)
    states = [prefilled.hidden]
    for position in range(grid.size - 1):
        hidden = target.forward_nodes(
            tokens[:, position : position + 1],
            torch.full((rows, 1), position),
            torch.ones(rows, 1, 1, dtype=torch.bool),
            prefilled.padding,
            prefilled.cache,
            grid,
        )
        prefilled.cache.keep([[0]] * rows)
        states.append(hidden[:, 0])
    return torch.stack(states, dim=1)


# --- one distribution, in training and in decoding -----------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.height}x{grid.width}")
@pytest.mark.parametrize("config", [TINY, GROUPED, KEYED], ids=["full", "grouped", "caption keys"])
def test_teacher_forcing_equals_decoding_step_by_step(config: LlamaGenConfig, grid: Grid) -> None:
    target, prompt = lively(config), captions(config)
    tokens = torch.randint(0, config.vocab_size, (3, grid.size)).repeat(2, 1)
    features, mask = rows_of(target, prompt)
    forced = target(tokens, features, mask, grid)
    assert forced.shape == (6, grid.size, config.dim)
    stepped = decode_one_by_one(target, target.prefill(prompt, guided=True, capacity=grid.size), tokens, grid)
    torch.testing.assert_close(stepped, forced, atol=1e-10, rtol=0)


def test_without_guidance_the_rows_are_the_conditional_ones() -> None:
    target, prompt, grid = lively(TINY), captions(), Grid(3, 4)
    tokens = torch.randint(0, 12, (3, grid.size))
    plain = decode_one_by_one(target, target.prefill(prompt, guided=False, capacity=grid.size), tokens, grid)
    guided = target.prefill(prompt, guided=True, capacity=grid.size)
    both = decode_one_by_one(target, guided, tokens.repeat(2, 1), grid)
    torch.testing.assert_close(both[:3], plain, atol=1e-10, rtol=0)
    assert not torch.allclose(both[3:], plain)


def test_features_in_the_padding_do_not_matter_and_those_in_the_caption_do() -> None:
    target, prompt, grid = lively(TINY), captions(), Grid(2, 3)
    tokens = torch.randint(0, 12, (3, grid.size))
    states = target(tokens, prompt.features, prompt.mask, grid)
    noise = torch.randn_like(prompt.features)
    padded = torch.where(prompt.mask[..., None], prompt.features, noise)
    torch.testing.assert_close(target(tokens, padded, prompt.mask, grid), states, atol=1e-12, rtol=0)
    filled = CaptionPrompt(padded, prompt.mask)
    before, after = (target.prefill(given, guided=False, capacity=1).hidden for given in (prompt, filled))
    torch.testing.assert_close(after, before, atol=1e-12, rtol=0)
    other = torch.where(prompt.mask[..., None], noise, prompt.features)
    assert (target(tokens, other, prompt.mask, grid) - states).abs().amax((1, 2)).min() > 1e-3


def test_a_state_sees_no_token_that_comes_after_it() -> None:
    target, prompt, grid = lively(TINY), captions(), Grid(3, 4)
    tokens = torch.randint(0, 12, (3, grid.size))
    states = target(tokens, prompt.features, prompt.mask, grid)
    for position in (0, 5, grid.size - 1):
        other = tokens.clone()
        other[:, position] = (other[:, position] + 1) % 12
        moved = (target(other, prompt.features, prompt.mask, grid) - states).abs().amax((0, 2)) > 1e-9
        assert moved.tolist() == [step > position for step in range(grid.size)]


def test_the_grid_gives_the_same_tokens_other_neighbours() -> None:
    target, prompt = lively(TINY), captions()
    tokens = torch.randint(0, 12, (3, 12))
    wide, high = (target(tokens, prompt.features, prompt.mask, grid) for grid in (Grid(3, 4), Grid(4, 3)))
    same = (wide - high).abs().amax((0, 2)) < 1e-9
    assert same.tolist() == [step <= 3 for step in range(12)]  # until the narrower grid starts its second row


def test_the_trained_grid_is_only_a_default() -> None:
    assert LlamaGen(TINY).grid == Grid(16, 16)
    target = lively(LlamaGenConfig(**{**TINY.to_dict(), "height": 2, "width": 3}))
    assert target.grid == Grid(2, 3)
    params = SamplingParams(temperature=0.0)
    generation = generate(target, Request(captions(), Grid(4, 5), params, [1, 2, 3]), NoDrafter())
    assert generation.tokens.shape == (3, 20)


@pytest.mark.parametrize("config", [TINY, KEYED], ids=["erased", "kept"])
def test_images_choose_among_the_words_only_where_the_caption_keeps_its_keys(config: LlamaGenConfig) -> None:
    target, grid = lively(config), Grid(2, 2)
    heads = torch.randn(1, 3, config.n_head, config.head_dim, dtype=torch.float64)  # two words and an image token
    angles = torch.cat((target._prefix_angles(2, heads), target._angles(torch.tensor([1]), grid)))[None]
    turned = rotate(heads, angles)
    to_words = torch.einsum("hd,nhd->nh", turned[0, 2], turned[0, :2])
    assert bool((to_words[0] != to_words[1]).all()) == config.caption_keys


# --- guidance ------------------------------------------------------------------------------------------------


def test_the_null_caption_stands_in_for_each_caption_under_its_mask() -> None:
    target, prompt = lively(TINY), captions()
    null = target.null_features(prompt.features)
    assert torch.equal(null, target.cls_embedding.uncond_embedding.expand(3, -1, -1))
    guided = target.prefill(prompt, guided=True, capacity=1)
    spelt_out = target.prefill(CaptionPrompt(null, prompt.mask), guided=False, capacity=1)
    torch.testing.assert_close(guided.hidden[3:], spelt_out.hidden, atol=1e-12, rtol=0)
    assert guided.padding.tolist() == [5 - n for n in LENGTHS] * 2


def test_a_negative_prompt_takes_its_place_with_a_mask_of_its_own() -> None:
    target, prompt = lively(TINY), captions()
    negative = captions()
    mask = torch.tensor([[False, False, False, False, True]]).repeat(3, 1)
    guided = target.prefill(CaptionPrompt(prompt.features, prompt.mask, negative.features, mask), True, 1)
    alone = target.prefill(CaptionPrompt(negative.features, mask), False, 1)
    torch.testing.assert_close(guided.hidden[3:], alone.hidden, atol=1e-12, rtol=0)
    assert guided.padding.tolist() == [5 - n for n in LENGTHS] + [4] * 3


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize(("tokens", "width"), [(4, 10), (6, 10), (5, 9)])
def test_captions_of_a_wrong_shape_are_refused(tokens: int, width: int, guided: bool) -> None:
    prompt = CaptionPrompt(torch.zeros(2, tokens, width), torch.ones(2, tokens, dtype=torch.bool))
    with pytest.raises(HawkError, match=rf"caption features are {tokens}x{width}, this model takes 5x10"):
        LlamaGen(TINY).prefill(prompt, guided, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_logits_come_in_at_least_float32(dtype: torch.dtype) -> None:
    target = lively(TINY, dtype)
    hidden = target.prefill(captions(), guided=True, capacity=1).hidden  # features of another dtype are converted
    assert hidden.dtype == dtype
    assert target.head(hidden).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


# --- the official checkpoints --------------------------------------------------------------------------------

OFFICIAL = re.compile(
    r"""
    cls_embedding\.(uncond_embedding|cap_proj\.fc[12]\.weight)
  | tok_embeddings\.weight
  | layers\.\d+\.(attention\.w(qkv|o)|feed_forward\.w[123]|attention_norm|ffn_norm)\.weight
  | norm\.weight
  | output\.weight
    """,
    re.VERBOSE,
)


def test_parameter_names_are_the_official_ones() -> None:
    names = list(LlamaGen(TINY).state_dict())
    assert [name for name in names if not OFFICIAL.fullmatch(name)] == []
    assert len(names) == len(set(names)) == 3 + 1 + 7 * TINY.n_layer + 2


def test_the_xl_model_has_the_official_shapes_and_size() -> None:
    with torch.device("meta"):
        state = LlamaGen(LlamaGenConfig()).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 777_923_840  # as the public GPT-XL, type t2i
    assert {name: tuple(tensor.shape) for name, tensor in state.items() if not name.startswith("layers.")} == {
        "cls_embedding.uncond_embedding": (120, 2048),
        "cls_embedding.cap_proj.fc1.weight": (1280, 2048),
        "cls_embedding.cap_proj.fc2.weight": (1280, 1280),
        "tok_embeddings.weight": (16384, 1280),
        "norm.weight": (1280,),
        "output.weight": (16384, 1280),
    }
    last = {name.removeprefix("layers.35."): tuple(t.shape) for name, t in state.items() if "layers.35." in name}
    assert last == {
        "attention.wqkv.weight": (3840, 1280),
        "attention.wo.weight": (1280, 1280),
        "feed_forward.w1.weight": (3584, 1280),
        "feed_forward.w3.weight": (3584, 1280),
        "feed_forward.w2.weight": (1280, 3584),
        "attention_norm.weight": (1280,),
        "ffn_norm.weight": (1280,),
    }


def test_fresh_weights_start_from_a_uniform_guess_and_train() -> None:
    target = LlamaGen(TINY, dropout=0.1)
    target.initialize()
    prompt, grid = captions(dtype=torch.float32), Grid(2, 3)
    tokens = torch.randint(0, 12, (3, grid.size))
    logits = target.head(target(tokens, prompt.features, prompt.mask, grid))
    assert not logits.any()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    assert target.output.weight.grad is not None
    assert target.output.weight.grad.any()


# --- packed for decoding on a CPU

WIDE = LlamaGenConfig(
    dim=128, n_layer=2, n_head=2, multiple_of=576, vocab_size=64, caption_dim=10, caption_tokens=5, height=6, width=6
)
"""A feed-forward wider than `layers.WIDE`, where the order of the sums depends on the number of rows."""


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, 0.25)])
@pytest.mark.parametrize("config", [TINY, GROUPED, WIDE], ids=["full", "grouped", "wide"])
def test_packing_changes_rounding_only(config: LlamaGenConfig, dtype: torch.dtype, near: float) -> None:
    target = lively(config, torch.float32)
    prompt, grid = captions(config, torch.float32), Grid(4, 6)
    tokens = torch.randint(config.vocab_size, (6, grid.size))
    before = target.prefill(prompt, guided=True, capacity=grid.size)
    plain = target.head(decode_one_by_one(target, before, tokens, grid))
    target.pack(dtype)
    assert target.dtype == dtype
    after = target.prefill(prompt, guided=True, capacity=grid.size)
    assert after.cache.keys.dtype == dtype
    logits = target.head(decode_one_by_one(target, after, tokens, grid))
    assert logits.dtype == torch.float32
    assert (logits - plain).abs().mean() < near * plain.std()


@pytest.mark.skipif(not multiplies_bfloat16(), reason="bfloat16 is not what this CPU decodes in")
def test_in_bfloat16_a_state_has_the_same_bits_however_many_nodes_are_verified_with_it() -> None:
    target = lively(WIDE, torch.float32)
    target.pack(torch.bfloat16)
    prompt, grid = captions(WIDE, torch.float32), target.grid
    for seed in range(4):
        tokens = torch.randint(64, (6, grid.size), generator=torch.Generator().manual_seed(seed))
        single = decode_one_by_one(target, target.prefill(prompt, guided=True, capacity=grid.size), tokens, grid)
        for count in (2, 3, 17, grid.size - 1):
            prefilled = target.prefill(prompt, guided=True, capacity=grid.size)
            nodes = target.forward_nodes(
                tokens[:, :count],
                torch.arange(count).expand(6, -1),
                torch.ones(6, count, count, dtype=torch.bool).tril(),
                prefilled.padding,
                prefilled.cache,
                grid,
            )
            assert torch.equal(nodes, single[:, 1 : count + 1]), count
