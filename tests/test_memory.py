"""What Hawk says of memory: computed from shapes, equal to the bytes of real tensors, and what docs/gpu.md says."""

from pathlib import Path

import pytest
import torch

from fixtures.tiny_transformers import PROMPTS, tiny
from hawk.decoding.grid import Grid
from hawk.decoding.recording import on_device
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.structure import Structure
from hawk.decoding.tree import Window
from hawk.decoding.window import first_window
from hawk.measure.memory import (
    DecoderShape,
    Drawing,
    cache_bytes,
    decoder_shape,
    gigabytes,
    noise_bytes,
    recording_bytes,
    state_bytes,
    weight_bytes,
)
from hawk.proofs.tiny import tiny_prompt, tiny_target

GUIDED = SamplingParams(cfg_scale=2.0)


def size_of(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llamagen", "emu3", "janus"])
def test_the_buffers_of_a_recording_have_the_computed_bytes(name, dtype):
    if name == "llamagen":
        target, grid = tiny_target(0, dtype), Grid(4, 6)
        prompt, structure, longest = tiny_prompt(target, 3), Structure(), 5
    else:
        one = tiny(name, dtype)
        target, grid, structure = one.model.target, one.grid, one.model.family.structure
        prompt = one.model.condition(PROMPTS, [""] * 3, grid)
        longest = max(map(len, prompt.prompts + prompt.negatives))
    with torch.inference_mode():
        state = on_device(first_window(target, Request(prompt, grid, GUIDED, [1, 2, 3]), Window(5)))
    drawing = Drawing(grid, 3, True, longest, 5, structure)
    shape = decoder_shape(target)
    assert cache_bytes(shape, drawing, dtype) == size_of(state.cache.keys, state.cache.values)
    assert noise_bytes(shape, drawing, dtype) == size_of(state.noise.held)
    assert state_bytes(drawing) == size_of(*state.tensors)
    whole = size_of(state.cache.keys, state.cache.values, state.noise.held, *state.tensors)
    assert recording_bytes(shape, drawing, dtype) == whole


def test_weights_have_the_computed_bytes():
    emu3, llamagen = tiny("emu3").model.target, tiny_target(0, torch.float32)
    shape = decoder_shape(emu3)
    modules = torch.nn.ModuleList(emu3.family.drawing_modules)
    assert weight_bytes(shape.parameters, torch.float32) == size_of(*modules.parameters())
    caption = sum(parameter.numel() for parameter in llamagen.cls_embedding.parameters())
    computed = decoder_shape(llamagen).parameters + caption
    assert weight_bytes(computed, torch.float32) == size_of(*llamagen.parameters())


SHAPES = {
    "LlamaGen-XL, 256 pixels": (DecoderShape(36, 1280, 20, 20, 64, 3584, 16384, 16384), Grid(16, 16), 0),
    "LlamaGen-XL, 512 pixels": (DecoderShape(36, 1280, 20, 20, 64, 3584, 16384, 16384), Grid(32, 32), 0),
    "Janus-Pro-1B": (DecoderShape(24, 2048, 16, 16, 128, 5632, 102400, 16384), Grid(24, 24), 0),
    "Janus-Pro-7B": (DecoderShape(30, 4096, 32, 32, 128, 11008, 102400, 16384), Grid(24, 24), 0),
    "Chameleon-7B": (DecoderShape(32, 4096, 32, 32, 128, 11008, 65536, 8192), Grid(32, 32), 0),
    "Lumina-mGPT-7B, 768 pixels": (DecoderShape(32, 4096, 32, 32, 128, 11008, 65536, 8192), Grid(48, 48), 1),
    "Emu3-Gen, 720 pixels": (DecoderShape(32, 4096, 32, 8, 128, 14336, 184622, 32768), Grid(90, 90), 1),
}
"""Shapes of the published configurations, the grid, and the structure tokens that end a row."""


def rows_of_the_page() -> list[str]:
    """The table of docs/gpu.md, as the functions compute it."""
    rows = []
    for name, (shape, grid, ending) in SHAPES.items():
        drawing = Drawing(grid, structure=Structure((0,) * ending))
        sizes = (
            weight_bytes(shape.parameters, torch.bfloat16),
            cache_bytes(shape, drawing, torch.bfloat16),
            noise_bytes(shape, drawing, torch.bfloat16),
        )
        rows.append(f"| {name} | " + " | ".join(map(gigabytes, sizes)) + " |")
    return rows


def test_the_page_on_gpus_says_what_is_computed():
    page = (Path(__file__).parents[1] / "docs" / "gpu.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in page if line.startswith(tuple(f"| {name} |" for name in SHAPES))]
    assert table == rows_of_the_page()
