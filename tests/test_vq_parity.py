"""Numeric parity with the public LlamaGen VQ-16 and VQ-8 at their real width: answers are in the fixture."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hawk.targets.vq import LlamaGenVQ, LlamaGenVQConfig

FIXTURES = Path(__file__).parent / "fixtures"
PARITY = runpy.run_path(str(FIXTURES / "parity_weights.py"))


@pytest.mark.parametrize(
    ("name", "multipliers", "downsample"), [("VQ-16", (1, 1, 2, 2, 4), 16), ("VQ-8", (1, 2, 2, 4), 8)]
)
@torch.no_grad()
def test_encoding_and_decoding_equal_the_public_code(name: str, multipliers: tuple[int, ...], downsample: int) -> None:
    with safe_open(FIXTURES / "vq_parity.safetensors", framework="pt") as tensors:
        made = json.loads(tensors.metadata()["made"])
        pixels, latents, codes = (tensors.get_tensor(f"{name}.{key}") for key in ("pixels", "latents", "codes"))
    config = LlamaGenVQConfig(made["codebook_size"], made["codebook_dim"], multipliers)
    with torch.device("meta"):  # 70 million parameters: only the formula's values are ever in memory
        model = LlamaGenVQ(config).eval()
    model.load_state_dict(PARITY["fill"]({key: tuple(p.shape) for key, p in model.state_dict().items()}), assign=True)
    assert model.downsample == downsample

    height, width, stride = made["height"], made["width"], made["stride"]
    rows, cols = height // downsample, width // downsample
    drawn = ((PARITY["noise"](f"{name} codes", (1, rows, cols)) + 1) * (config.codebook_size / 2)).long()
    decoded = model.decode(drawn)
    assert decoded.shape == (1, 3, height, width)
    torch.testing.assert_close(decoded[..., ::stride, ::stride], pixels, atol=1e-4, rtol=0)

    image = PARITY["noise"](f"{name} image", (1, 3, height, width))
    torch.testing.assert_close(model.quant_conv(model.encoder(image)), latents, atol=1e-4, rtol=0)
    assert torch.equal(model.encode(image), codes.long())
