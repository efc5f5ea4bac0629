"""Packed linear layers: the same product, rounded alike whatever the number of rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hawk import packed
from hawk.evaluation.tiny import tiny_target
from hawk.packed import PackedLinear, can_pack, pack_linears

pytestmark = pytest.mark.skipif(not can_pack(), reason="this build of PyTorch has no packed product")


@pytest.mark.parametrize(("inputs", "outputs"), [(384, 1152), (1024, 384), (384, 2048), (64, 192)])
def test_a_rows_product_has_the_same_bits_beside_any_other_rows(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs)
    layer = PackedLinear(linear.requires_grad_(False))
    x = torch.randn(64, inputs)
    together = layer(x)
    torch.testing.assert_close(together, linear(x), rtol=1e-4, atol=1e-4)
    for rows in (1, 2, 3, 7, 8, 24, 33, 63):
        assert torch.equal(layer(x[:rows]), together[:rows])
        assert torch.equal(layer(x[64 - rows :].contiguous()), together[64 - rows :])
    assert torch.equal(layer(x.view(2, 4, 8, inputs)), together.view(2, 4, 8, outputs))


def test_packing_keeps_names_and_values_and_leaves_other_dtypes_alone() -> None:
    target = tiny_target(0).float()
    names, tokens = set(target.state_dict()), torch.arange(4)[None]
    before = target.head(target.tok_embeddings(tokens))
    assert pack_linears(target) > 0
    assert set(target.state_dict()) == names
    torch.testing.assert_close(target.head(target.tok_embeddings(tokens)), before)
    assert pack_linears(target) == 0  # nothing is left to pack
    assert pack_linears(tiny_target(0)) == 0  # float64


def test_weights_too_large_for_a_second_copy_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "PACK_LIMIT", 100)
    assert pack_linears(nn.Sequential(nn.Linear(8, 8))) == 0
