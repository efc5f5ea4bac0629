"""Transformer layers: the properties of rotary positions, masked attention and the norms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hawk.nn.layers import RMSNorm, SwiGLU, attend, rotary_angles, rotate

HEAD = 16
cells = st.tuples(st.integers(0, 40), st.integers(0, 40))


def turned(vector: Tensor, cell: tuple[int, int]) -> Tensor:
    """A head's vector, rotated to a (row, column)."""
    angles = rotary_angles(torch.tensor([[cell]]), HEAD).double()
    return rotate(vector.view(1, 1, 1, HEAD), angles).flatten()


def test_angles_are_points_on_the_unit_circle_one_for_each_channel_pair() -> None:
    angles = rotary_angles(torch.tensor([[0, 0], [3, 5]]), HEAD)
    assert angles.shape == (2, HEAD // 2, 2)
    torch.testing.assert_close(angles.square().sum(-1), torch.ones(2, HEAD // 2))
    assert torch.equal(angles[0, :, 0], torch.ones(HEAD // 2))


def test_the_first_half_of_the_head_turns_with_the_row_the_second_with_the_column() -> None:
    origin, down, right = rotary_angles(torch.tensor([[2, 2], [7, 2], [2, 7]]), HEAD)
    quarter = HEAD // 4
    assert torch.equal(down[quarter:], origin[quarter:])
    assert torch.equal(right[:quarter], origin[:quarter])
    assert torch.equal(down[:quarter], right[quarter:])  # both axes turn alike
    assert not torch.isclose(down[:quarter], origin[:quarter]).all(-1).any()


def test_the_slowest_pair_of_an_axis_has_the_wavelength_that_the_base_gives() -> None:
    per_axis, base = HEAD // 2, 10000.0
    cos, sin = rotary_angles(torch.tensor([1, 0]), HEAD, base).unbind(-1)
    pairs = torch.arange(per_axis // 2)
    torch.testing.assert_close(torch.atan2(sin, cos)[: per_axis // 2], base ** (-2 * pairs / per_axis))


@pytest.mark.parametrize("axes", [1, 2, 4])
def test_any_number_of_axes_shares_the_head_evenly(axes: int) -> None:
    coordinates = torch.zeros(axes, dtype=torch.long)
    for axis in range(axes):
        moved = rotary_angles(coordinates.index_fill(0, torch.tensor(axis), 9), HEAD)
        changed = ~torch.isclose(moved, rotary_angles(coordinates, HEAD)).all(-1)
        share = HEAD // 2 // axes
        assert changed.nonzero().flatten().tolist() == list(range(axis * share, (axis + 1) * share))


@given(first=cells, second=cells, shift=cells)
def test_dot_products_depend_on_coordinate_differences_only(
    first: tuple[int, int], second: tuple[int, int], shift: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(7)
    q, k = torch.randn(2, HEAD, generator=generator, dtype=torch.float64)

    def moved(cell: tuple[int, int]) -> tuple[int, int]:
        return cell[0] + shift[0], cell[1] + shift[1]

    here = turned(q, first) @ turned(k, second)
    there = turned(q, moved(first)) @ turned(k, moved(second))
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)  # angles are float32
    torch.testing.assert_close(turned(q, first).norm(), q.norm(), atol=1e-5, rtol=0)


def test_dot_products_do_depend_on_the_difference_and_on_its_sign() -> None:
    q, k = torch.randn(2, HEAD, dtype=torch.float64)
    origin = turned(q, (5, 5)) @ turned(k, (5, 5))
    for other in ((5, 6), (6, 5), (5, 4), (4, 5)):
        assert (turned(q, (5, 5)) @ turned(k, other) - origin).abs() > 1e-2
    left, right = (turned(q, (5, 5)) @ turned(k, (5, col)) for col in (4, 6))
    assert (left - right).abs() > 1e-2


def test_the_origin_leaves_a_vector_alone_and_zeros_erase_it() -> None:
    x = torch.randn(2, 3, 4, HEAD)
    origin = rotary_angles(torch.zeros(1, 3, 2, dtype=torch.long), HEAD)
    torch.testing.assert_close(rotate(x, origin), x)
    assert not rotate(x, torch.zeros_like(origin)).any()


def test_each_row_may_stand_at_its_own_positions() -> None:
    x = torch.randn(2, 3, 4, HEAD)
    coordinates = torch.randint(0, 9, (2, 3, 2))
    together = rotate(x, rotary_angles(coordinates, HEAD))
    for row in range(2):
        alone = rotate(x[row : row + 1], rotary_angles(coordinates[row : row + 1], HEAD))
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rotation_keeps_the_dtype_and_turns_in_at_least_float32(dtype: torch.dtype) -> None:
    x = torch.randn(1, 4, 2, HEAD).to(dtype)
    angles = rotary_angles(torch.randint(0, 30, (1, 4, 2)), HEAD)
    out = rotate(x, angles)
    assert out.dtype == dtype
    if dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(out, rotate(x.float(), angles).to(dtype))


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Textbook softmax attention, in which each group of query heads has its own key head."""
    group = q.shape[1] // k.shape[1]
    heads = []
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // group].transpose(1, 2) / math.sqrt(q.shape[-1]) + mask[:, 0]
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(weights @ v[:, head // group])
    return torch.cat(heads, dim=-1)


@pytest.mark.parametrize("kv_heads", [6, 3, 1], ids=["full", "grouped", "one key head"])
def test_attention_under_an_additive_mask_is_the_plain_softmax(kv_heads: int) -> None:
    q = torch.randn(2, 6, 5, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, 7, 8, dtype=torch.float64)
    hidden = (torch.rand(2, 1, 5, 7) < 0.4).index_fill(3, torch.tensor(3), False)  # one key is seen by all
    mask = torch.zeros(2, 1, 5, 7).masked_fill(hidden, -torch.inf)
    mask[:, :, :, 3] = 0.7  # a finite bias counts too
    out = attend(q, k, v, mask)
    assert out.shape == (2, 5, 48)
    torch.testing.assert_close(out, plain_attention(q, k, v, mask.double()), atol=1e-12, rtol=0)


def test_attention_in_training_has_the_values_and_gradients_of_the_fused_kernel() -> None:
    q, k, v = (torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.zeros(2, 1, 5, 5, dtype=torch.float64).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    with torch.no_grad():
        fused = attend(q, k, v, mask)
    trained = attend(q, k, v, mask)
    assert trained.grad_fn is not None
    torch.testing.assert_close(trained.detach(), fused, atol=1e-12, rtol=0)
    pull = torch.randn_like(trained)
    expected = torch.autograd.grad(plain_attention(q, k, v, mask), (q, k, v), pull)
    for ours, plain in zip(torch.autograd.grad(trained, (q, k, v), pull), expected, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_no_mask_means_causal(kv_heads: int) -> None:
    q = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, 5, 8, dtype=torch.float64)
    causal = torch.zeros(2, 1, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(attend(q, k, v, None), plain_attention(q, k, v, causal.double()), atol=1e-12, rtol=0)


def test_the_values_of_a_masked_key_do_not_matter() -> None:
    q = torch.randn(1, 2, 3, 8)
    k, v = torch.randn(2, 1, 2, 4, 8)
    mask = torch.zeros(1, 1, 3, 4).index_fill(3, torch.tensor(2), -torch.inf)
    before = attend(q, k, v, mask)
    k[:, :, 2], v[:, :, 2] = 50.0, -50.0
    assert torch.equal(attend(q, k, v, mask), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rms_norm_is_the_formula_in_at_least_float32(dtype: torch.dtype) -> None:
    norm = RMSNorm(12, eps=1e-3)
    norm.weight.data = torch.randn(12)
    x = (3 * torch.randn(4, 12)).to(dtype)
    wide = x.double()
    normal = wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    out = norm(x)
    assert out.dtype == dtype
    tolerance = {torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(out.double(), normal * norm.weight.double(), atol=tolerance, rtol=tolerance)


def test_swiglu_gates_the_first_projection() -> None:
    layer = SwiGLU(6, 10)
    x = torch.randn(3, 6)
    gate = x @ layer.w1.weight.T
    expected = (gate * gate.sigmoid() * (x @ layer.w3.weight.T)) @ layer.w2.weight.T
    torch.testing.assert_close(layer(x), expected)
    assert [name for name, _ in layer.named_parameters()] == ["w1.weight", "w3.weight", "w2.weight"]
