"""The bundled image tokenizer: the quantiser's codes, flat backgrounds, the encoder's small view, any image size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hawk.models.tokenizers.fsq import FSQ, FSQConfig, FSQTokenizer, ImageTokenizer

LEVELS = [(8, 8, 8, 4), (8, 8, 6, 5), (3, 2, 5), (7,)]
SMALL = FSQConfig(levels=(8, 8, 8, 4), encoder_widths=(8, 12, 16), decoder_widths=(8, 8, 12), decoder_depths=(1, 1, 1))
SIZES = [(8, 8), (32, 32), (16, 40), (48, 8)]


@pytest.fixture(scope="module", params=[0, 1, 2])
def tokenizer(request: pytest.FixtureRequest) -> FSQTokenizer:
    """A tokenizer in which all weights are random, even the convolutions that start at zero in training."""
    torch.manual_seed(request.param)
    model = FSQTokenizer(SMALL)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


# --- finite scalar quantisation ------------------------------------------------------------------------------


def sweep(fsq: FSQ, count: int = 4001, reach: float = 9.0) -> Tensor:
    """Unbounded latents `[count, channels]` in which every channel runs from -reach to reach."""
    return torch.linspace(-reach, reach, count)[:, None].expand(-1, len(fsq.sizes)).contiguous()


def one_latent_per_level(fsq: FSQ) -> list[Tensor]:
    """For each channel, one unbounded value that is quantised to each level; found by search, not by the formula."""
    z = sweep(fsq)
    quantised = fsq(z)
    return [
        torch.stack([z[quantised[:, c] == value, c].median() for value in quantised[:, c].unique()])
        for c in range(len(fsq.sizes))
    ]


@pytest.mark.parametrize("levels", LEVELS)
def test_each_channel_rises_through_exactly_its_levels_within_minus_one_and_one(levels: tuple[int, ...]) -> None:
    quantised = FSQ(levels)(sweep(FSQ(levels)))
    for channel, count in enumerate(levels):
        values = quantised[:, channel]
        assert len(values.unique()) == count
        assert (values.diff() >= 0).all()
        assert values.min() == -1
        assert values.max() <= 1
        steps = values.unique().diff()
        torch.testing.assert_close(steps, torch.full_like(steps, 1 / (count // 2)))


@pytest.mark.parametrize("levels", LEVELS)
def test_all_codes_round_trip_through_latents(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels)
    reached = one_latent_per_level(fsq)
    every = torch.cartesian_prod(*reached).view(-1, len(levels))
    codes = fsq.codes(every)
    assert codes.sort().values.tolist() == list(range(fsq.codebook_size))
    torch.testing.assert_close(fsq.latents(codes), fsq(every), atol=1e-6, rtol=0)
    assert len(fsq.latents(torch.arange(fsq.codebook_size)).unique(dim=0)) == fsq.codebook_size


@given(st.lists(st.floats(-50, 50, width=32), min_size=4, max_size=4))
def test_any_latent_gets_a_code_that_stands_for_its_quantised_value(values: list[float]) -> None:
    fsq, z = FSQ((8, 8, 8, 4)), torch.tensor([values])
    code = fsq.codes(z)
    assert 0 <= code.item() < 2048
    torch.testing.assert_close(fsq.latents(code), fsq(z), atol=1e-6, rtol=0)


@pytest.mark.parametrize("levels", LEVELS)
def test_gradients_pass_the_rounding_as_if_it_were_not_there(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels)
    z = sweep(fsq).double().requires_grad_()
    quantised = fsq(z)
    (slope,) = torch.autograd.grad(quantised.sum(), z)
    assert (slope > 0).all()
    # The gradient is the slope of a smooth curve: its integral follows the quantised stairs, to half a step.
    step = z[1, 0].item() - z[0, 0].item()
    climbed = (slope[1:] + slope[:-1]).cumsum(0) * step / 2
    half_step = 0.5 / (fsq.sizes // 2)
    offset = quantised[1:] - quantised[0] - climbed
    assert (offset.abs() <= half_step + 2e-2).all()
    # A channel's gradient does not depend on the other channels.
    one = sweep(fsq)[2000:2001].requires_grad_()
    jacobian = torch.autograd.functional.jacobian(fsq, one)[0, :, 0]
    assert torch.equal(jacobian, torch.diag(jacobian.diagonal()))


# --- flat colour ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_constant_colour_is_one_code_for_any_weights(tokenizer: FSQTokenizer, height: int, width: int) -> None:
    colours = torch.rand(64, 3, 1, 1) * 2 - 1
    codes = tokenizer.encode(colours.expand(64, 3, height, width)).flatten(1)
    assert (codes == codes[:, :1]).all()
    assert len(codes.unique()) > 16  # different colours do get different codes


def test_the_background_around_an_object_is_the_code_of_its_colour(tokenizer: FSQTokenizer) -> None:
    colour = torch.tensor([0.3, -0.6, 0.8]).view(1, 3, 1, 1)
    image = colour.repeat(1, 1, 64, 48)
    flat = tokenizer.encode(image)
    image[:, :, 24:40, 16:32] = torch.rand(1, 3, 16, 16) * 2 - 1
    changed = (tokenizer.encode(image) != flat)[0].nonzero()
    rows, cols = changed.unbind(1)
    assert len(changed) > 0
    assert rows.min() >= 2
    assert rows.max() <= 5
    assert cols.min() >= 1
    assert cols.max() <= 4


# --- the encoder's view --------------------------------------------------------------------------------------


def seen_by(pixel: int, cells: int) -> set[int]:
    """The cells that see a pixel, along one axis: a cell sees its own 8 pixels and 2 more on either side."""
    return {cell for cell in range(cells) if 8 * cell - 2 <= pixel <= 8 * cell + 9}


def test_one_pixel_changes_only_the_cells_that_see_it(tokenizer: FSQTokenizer) -> None:
    rows, cols = 4, 5
    image = torch.rand(1, 3, 8 * rows, 8 * cols) * 2 - 1
    latents, codes = tokenizer.encoder(image), tokenizer.encode(image)
    pixels = [(y, x) for y in (0, 1, 5, 6, 9, 10, 15, 16, 31) for x in (0, 8, 13, 14, 17, 18, 39)]
    for y, x in pixels:
        poked = image.clone()
        poked[0, :, y, x] *= -1
        moved = (tokenizer.encoder(poked) != latents).any(1)[0]
        assert {tuple(cell) for cell in moved.nonzero().tolist()} == {
            (row, col) for row in seen_by(y, rows) for col in seen_by(x, cols)
        }
        assert not ((tokenizer.encode(poked) != codes)[0] & ~moved).any()


# --- sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_multiple_of_eight_is_encoded_and_decoded(tokenizer: FSQTokenizer, height: int, width: int) -> None:
    images = torch.rand(2, 3, height, width) * 2 - 1
    codes = tokenizer.encode(images)
    assert codes.shape == (2, height // 8, width // 8)
    assert codes.min() >= 0
    assert codes.max() < tokenizer.codebook_size == 2048
    pixels = tokenizer.decode(codes)
    assert pixels.shape == images.shape
    assert pixels.dtype == torch.float32
    assert pixels.abs().max() <= 1
    assert pixels.std() > 0


def test_decoding_depends_on_each_code_and_is_clamped(tokenizer: FSQTokenizer) -> None:
    loud = FSQTokenizer(SMALL).eval().requires_grad_(False)
    loud.load_state_dict(tokenizer.state_dict())
    loud.decoder[-2].weight *= 100
    codes = torch.randint(0, 2048, (1, 3, 4))
    pixels = loud.decode(codes)
    assert pixels.max() == 1
    assert pixels.min() == -1
    quiet = tokenizer.decode(codes)
    for row, col in ((0, 0), (1, 2), (2, 3)):
        other = codes.clone()
        other[0, row, col] = (other[0, row, col] + 1029) % 2048
        own = (slice(None), slice(None), slice(8 * row, 8 * row + 8), slice(8 * col, 8 * col + 8))
        assert not torch.equal(tokenizer.decode(other)[own], quiet[own])


def test_reconstruction_decodes_what_encoding_chose() -> None:
    tokenizer = FSQTokenizer(SMALL)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    reconstruction = tokenizer(images)
    torch.testing.assert_close(reconstruction.clamp(-1, 1), tokenizer.decode(tokenizer.encode(images)))
    reconstruction.square().mean().backward()
    first = tokenizer.encoder[1].weight.grad
    assert first is not None
    assert first.abs().sum() > 0  # the gradient reaches the encoder through the quantiser


def test_it_is_an_image_tokenizer_and_its_config_survives_json() -> None:
    assert isinstance(FSQTokenizer(SMALL), ImageTokenizer)
    assert FSQConfig.from_dict(SMALL.to_dict()) == SMALL
    assert FSQTokenizer().downsample == 8
