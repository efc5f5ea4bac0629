"""Packed linear layers give the same product, with the same rounding for any number of rows."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from hawk.errors import HawkError
from hawk.nn import packed
from hawk.nn.layers import RMSNorm
from hawk.nn.packed import (
    FrozenLinear,
    can_pack,
    can_pack_bfloat16,
    can_pack_float16,
    has_onednn,
    pack_after_norm,
    pack_linears,
    packed_linear,
    products_in,
)
from hawk.proofs.tiny import tiny_target

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = [
    pytest.param(F32, marks=pytest.mark.skipif(not (can_pack() or has_onednn()), reason="no packed product here")),
    pytest.param(BF16, marks=pytest.mark.skipif(not packed.multiplies_bfloat16(), reason="no bfloat16 products here")),
    pytest.param(F16, marks=pytest.mark.skipif(not can_pack_float16(), reason="no product with float16 weights here")),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(384, 1152), (384, 384), (1024, 384), (384, 2048), (64, 192)])
def test_a_rows_product_has_the_same_bits_beside_any_other_rows(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs).requires_grad_(False)
    if dtype == F16:
        linear.weight.copy_(linear.weight.bfloat16())  # what a checkpoint holds
    layer = packed_linear(linear.weight, dtype, linear.bias)
    for _ in range(5):  # a difference would be rare: in a single element
        x = torch.randn(128, inputs)
        together = layer(x)
        assert together.dtype == products_in(dtype)
        near = {F32: 1e-4, BF16: 3e-2, F16: 1e-4}[dtype]
        torch.testing.assert_close(together.float(), linear(x), rtol=near, atol=near)
        for rows in (1, 2, 3, 7, 8, 24, 33, 63):
            assert torch.equal(layer(x[:rows]), together[:rows])
            assert torch.equal(layer(x[128 - rows :].contiguous()), together[128 - rows :])
        assert torch.equal(layer(x.view(2, 4, 16, inputs)), together.view(2, 4, 16, outputs))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_without_a_packed_product_the_layer_computes_the_same(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear, x = nn.Linear(48, 16), torch.randn(5, 48)
    here = packed_linear(linear.weight, dtype, linear.bias)
    monkeypatch.setattr(packed, "can_pack", lambda: False)
    monkeypatch.setattr(packed, "has_onednn", lambda: False)
    plain = packed_linear(linear.weight, dtype, linear.bias)
    assert isinstance(plain, FrozenLinear)
    torch.testing.assert_close(plain(x), here(x), rtol=2e-2, atol=2e-2)


def test_without_a_product_for_float16_weights_the_layer_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(16, 48), torch.randn(5, 48)
    monkeypatch.setattr(packed, "can_pack_float16", lambda: False)
    torch.testing.assert_close(packed_linear(weight, F16)(x), x @ weight.half().float().T)


@pytest.mark.skipif(not can_pack_float16(), reason="no product with float16 weights here")
def test_weights_beyond_float16_are_refused() -> None:
    with pytest.raises(HawkError, match=r"weights up to 7e\+04 do not fit into float16: use dtype bfloat16 or float32"):
        packed_linear(torch.full((2, 8), -7e4), F16)
    with pytest.raises(HawkError, match="weights are not finite: the file that holds them is damaged"):
        packed_linear(torch.tensor([[1.0, torch.nan]]), F16)


@pytest.mark.skipif(not can_pack_float16(), reason="no product with float16 weights here")
@torch.no_grad()
def test_a_bfloat16_target_with_float16_weights_computes_what_it_computes_in_float32() -> None:
    """The norms' gains stay apart, so that no weight is rounded; the logits differ by the order of sums alone."""
    wide, tokens = (tiny_target(0).bfloat16().float() for _ in range(2)), torch.arange(4)[None]
    logits = []
    for target, dtype in zip(wide, (F32, F16), strict=True):
        for block in target.layers:
            block.attention_norm.weight.normal_(1, 0.2, generator=torch.Generator().manual_seed(1))
        target.pack(dtype)
        states = target.embed(tokens)
        logits.append(target.head(target.layers[0].feed_forward(target.layers[0].attention.wqkv(states)[..., :32])))
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("biased", [True, False])
def test_packing_after_a_norm_keeps_the_bias(biased: bool) -> None:
    block = nn.ModuleDict({"norm": RMSNorm(64), "layer": nn.Linear(64, 32, bias=biased)}).requires_grad_(False)
    x = torch.randn(3, 64)
    before = block["layer"](block["norm"](x))
    pack_after_norm(block, "norm", "layer", F32)
    torch.testing.assert_close(block["layer"](block["norm"](x)), before)


def test_packing_replaces_only_float32_layers() -> None:
    target = tiny_target(0).float()
    tokens = torch.arange(4)[None]
    before = target.head(target.tok_embeddings(tokens))
    assert pack_linears(target) > 0
    torch.testing.assert_close(target.head(target.tok_embeddings(tokens)), before)
    assert pack_linears(target) == 0  # nothing is left to pack
    assert pack_linears(tiny_target(0)) == 0  # float64


@pytest.mark.parametrize("intel", [True, False])
def test_packed_weights_are_held_once(intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (torch.backends.mkl.is_available() and has_onednn()):
        pytest.skip("this build of PyTorch has one of the two")
    monkeypatch.setattr(packed, "made_by_intel", lambda: intel)
    layer = nn.Linear(256, 512)
    weight = weakref.ref(layer.weight)
    made = packed_linear(layer.weight, F32, layer.bias)
    del layer
    gc.collect()
    assert weight() is None
    assert sum(tensor.untyped_storage().nbytes() for tensor in made.buffers()) < 100


def test_what_this_machine_can_pack_is_known() -> None:
    assert can_pack_bfloat16() or not packed.multiplies_bfloat16()


@pytest.mark.parametrize("intel", [True, False])
def test_float32_is_packed_by_the_library_that_is_fast_on_the_processor(
    intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (torch.backends.mkl.is_available() and has_onednn()):
        pytest.skip("this build of PyTorch has one of the two")
    monkeypatch.setattr(packed, "made_by_intel", lambda: intel)
    layer = packed_linear(torch.ones(4, 8), F32)
    assert isinstance(layer, packed.MKLLinear if intel else packed.OneDNNLinear)
    assert torch.equal(layer(torch.ones(2, 8)), torch.full((2, 4), 8.0))
