"""VQGAN decoders give the pixels of LlamaGen's and Chameleon's public code, whose outputs are in the fixture."""

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

from hawk.models.tokenizers.fsq import ImageTokenizer, PixelDecoder
from hawk.models.tokenizers.vqgan import VQGAN, VQGANConfig, own_key

FIXTURES = Path(__file__).parent / "fixtures"
PARITY = runpy.run_path(str(FIXTURES / "parity_weights.py"))
PUBLISHED = ("tiny Chameleon", "tiny taming")  # the latter has attention at its middle level


@dataclass(frozen=True)
class Case:
    """One public decoder: its shape, the codes of its input, and every `stride`-th pixel of its output."""

    config: VQGANConfig
    codes: Tensor
    pixels: Tensor
    stride: int
    names: dict[str, list[int]]


def read_case(name: str) -> Case:
    with safe_open(FIXTURES / "vqgan_parity.safetensors", framework="pt") as tensors:
        made: dict[str, Any] = json.loads(tensors.metadata()["made"])["cases"][name]
        pixels = tensors.get_tensor(f"{name}.pixels")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in made["config"].items()}
    config = VQGANConfig(**given)
    drawn = (PARITY["noise"](f"{name} codes", (1, made["rows"], made["cols"])) + 1) * (config.codebook_size / 2)
    return Case(config, drawn.long(), pixels, made["stride"], made.get("names", {}))


def filled(config: VQGANConfig, weights: dict[str, Tensor] | None = None) -> VQGAN:
    with torch.device("meta"):  # VQ-16 has 42 million parameters: they are held once
        model = VQGAN(config).eval()
    own = weights or PARITY["fill"]({name: tuple(p.shape) for name, p in model.state_dict().items()})
    model.load_state_dict(own, assign=True)
    return model


def published_weights(case: Case) -> dict[str, Tensor]:
    """Weights made by formula, under the names that a checkpoint of the public class has."""
    return PARITY["fill"]({name: tuple(shape) for name, shape in case.names.items()})


@pytest.mark.parametrize("name", ["VQ-16", "VQ-8", "tiny LlamaGen"])
@torch.no_grad()
def test_pixels_equal_llamagens(name: str) -> None:
    case = read_case(name)
    model = filled(case.config)
    pixels = model.decode(case.codes)
    rows, cols, side = *case.codes.shape[1:], model.downsample
    assert pixels.shape == (1, 3, rows * side, cols * side)
    torch.testing.assert_close(pixels[..., :: case.stride, :: case.stride], case.pixels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_pixels_equal_chameleons_from_its_own_names(name: str) -> None:
    case = read_case(name)
    renamed = {own_key(key, len(case.config.multipliers)): value for key, value in published_weights(case).items()}
    renamed.pop(None)
    pixels = filled(case.config, renamed).decode(case.codes)
    torch.testing.assert_close(pixels, case.pixels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_name_is_ours_or_not_for_decoding(name: str) -> None:
    case = read_case(name)
    with torch.device("meta"):
        wanted = set(VQGAN(case.config).state_dict())
    renamed = {key: own_key(key, len(case.config.multipliers)) for key in case.names}
    assert {own for own in renamed.values() if own is not None} == wanted
    dropped = {key.split(".")[0] for key, own in renamed.items() if own is None}
    assert dropped == {"encoder", "quant_conv"}


def test_training_leftovers_are_dropped_and_unknown_names_stay_as_they_are() -> None:
    for name in ("quantize.codebook_used", "loss.discriminator.main.0.weight", "encoder.conv_in.bias"):
        assert own_key(name, 5) is None
    for name in ("decoder.up.x.block.0.conv1.weight", "decoder.mid.block_3.conv1.weight", "post_quant.weight"):
        assert own_key(name, 5) == name


def test_official_shapes() -> None:
    with torch.device("meta"):
        llamagen, chameleon = VQGAN(), VQGAN(VQGANConfig.chameleon())
    assert (llamagen.downsample, chameleon.downsample) == (16, 16)
    assert (llamagen.codebook_size, chameleon.codebook_size) == (16384, 8192)
    # The public classes have as many parameters, without encoder and quant_conv.
    assert sum(p.numel() for p in llamagen.parameters()) == 42_583_171
    assert sum(p.numel() for p in chameleon.parameters()) == 41_457_795


@torch.no_grad()
def test_half_precision_is_decoded_to_float32_and_float64_stays() -> None:
    config = VQGANConfig(codebook_size=8, z_channels=8, channels=32, multipliers=(1, 1), blocks=1, attention_levels=())
    model, codes = VQGAN(config).eval(), torch.randint(8, (2, 3, 2))
    assert isinstance(model, PixelDecoder)
    assert not isinstance(model, ImageTokenizer)
    exact = model.double().decode(codes)
    assert exact.dtype == torch.float64
    half = model.bfloat16().decode(codes)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, atol=0.1, rtol=0.1)
