"""Large targets with random weights in the shapes of published models, each beside transformers' own `generate`.

The layers that draw tokens have the published sizes. What drawing does not run is cut: text vocabularies, image
understanding, pixel decoders. Two copies of the weights are made. On a CPU, Hawk packs its own, and transformers' own
are in float32; on a GPU both are in the dtype asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
)
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig

from hawk.decoding.grid import Grid
from hawk.decoding.request import Condition
from hawk.decoding.sampling import SamplingParams
from hawk.machine import synchronize
from hawk.models.hf.families import Chameleon, Janus
from hawk.models.hf.family import Family
from hawk.models.hf.target import TokenPrompt, TransformersTarget
from hawk.models.llamagen.target import CaptionPrompt, LlamaGen, LlamaGenConfig
from hawk.models.protocol import ImageTarget

PROMPT = 64
"""Tokens of every prompt."""
CPU = torch.device("cpu")

Generate = Callable[[int, int], list[float]]
"""Draws so many tokens with a seed by transformers' `generate`; returns the clock's seconds at each token."""


@dataclass(frozen=True)
class MadeUp:
    """A target with random weights, and transformers' `generate` on a copy of them.

    `rival` says what `generate` runs; `weights` is the size of the layers that draw tokens, in bytes.
    """

    target: ImageTarget
    prompt: Condition
    params: SamplingParams
    generate: Generate
    rival: str
    weights: int


def janus_pro(
    grid: Grid, dtype: torch.dtype, device: torch.device = CPU, layers: int = 24, width: int = 2048, codes: int = 16384
) -> MadeUp:
    """Janus-Pro-1B, drawn by its own `generate` with CFG 5 (both rows in one batch)."""
    text = LlamaConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 128),
        num_key_value_heads=max(1, width // 128),
        max_position_embeddings=16384,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    vision = JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=48,
        patch_size=2,
        num_image_tokens=24 * 24,
        projection_dim=width,
    )
    vq = JanusVQVAEConfig(
        num_embeddings=codes,
        num_patches=max(grid.height, grid.width),
        base_channels=32,
        latent_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        projection_dim=width,
        image_token_embed_dim=width,
    )
    config = JanusConfig(text_config=text, vision_config=vision, vq_config=vq)
    own = random_weights(JanusForConditionalGeneration, config, dtype, device)
    theirs = random_weights(JanusForConditionalGeneration, config, rival_dtype(dtype, device), device)
    theirs.generation_config.generation_kwargs = {"boi_token_id": 4}
    theirs.generation_config.pad_token_id = 3
    params = Janus.defaults

    def generate(tokens: int, seed: int) -> list[float]:
        theirs.model.vision_model.config.num_image_tokens = tokens
        # Some releases of transformers (5.17) fail where Janus has to make this cache by itself.
        cache = StaticCache(config=theirs.config.get_text_config(decoder=True), max_cache_len=PROMPT + tokens)
        guided = {"generation_mode": "image", "guidance_scale": params.cfg_scale}
        return clocked(theirs, seed, blank(1), past_key_values=cache, do_sample=True, **guided)

    return around(Janus(own, None), grid, dtype, params, generate, "generate, CFG in one batch")


def chameleon_cut(
    grid: Grid, dtype: torch.dtype, device: torch.device = CPU, layers: int = 4, width: int = 4096, codes: int = 8192
) -> MadeUp:
    """The first layers of Chameleon-7B (the backbone of Lumina-mGPT and Anole), drawn by `generate` on two rows.

    `generate` gets the conditional and the unconditional row as one batch and does no guidance, which is less work
    than transformers' own guidance for this model (a forward for each row).
    """
    names = {f"IMGIMG{letters(code)}Z": 8 + code for code in range(codes)}
    config = ChameleonConfig(
        vocab_size=8 * codes,
        hidden_size=width,
        intermediate_size=43 * width // 16,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 128),
        num_key_value_heads=max(1, width // 128),
        vocabulary_map=names | {"<image>": 5, "<racm3:break>": 6, "<eoss>": 7},
        vq_config=ChameleonVQVAEConfig(
            num_embeddings=codes,
            resolution=64,  # at two pixels a cell: 32x32 codes, as published
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            attn_type="none",
        ),
    )
    own, theirs = (
        random_weights(ChameleonForConditionalGeneration, config, each, device)
        for each in (dtype, rival_dtype(dtype, device))
    )
    params = replace(Chameleon.defaults, temperature=1.0)
    generate = two_rows(theirs)
    return around(Chameleon(own, None, None), grid, dtype, params, generate, "generate, two rows, no guidance")


def llamagen_xl(
    grid: Grid, dtype: torch.dtype, device: torch.device = CPU, layers: int = 36, width: int = 1280, codes: int = 16384
) -> MadeUp:
    """LlamaGen-XL (775M). transformers does not have it: `generate` runs a Llama of the same shape on two rows."""
    shape = LlamaGenConfig(
        dim=width,
        n_layer=layers,
        n_head=max(1, width // 64),
        vocab_size=codes,
        caption_tokens=PROMPT,
        height=24,
        width=24,
    )
    target = LlamaGen(shape).requires_grad_(False).eval()
    target.initialize()
    nn.init.normal_(target.output.weight, std=0.02)
    llama = LlamaConfig(
        vocab_size=codes,
        hidden_size=width,
        intermediate_size=shape.hidden,
        num_hidden_layers=layers,
        num_attention_heads=shape.n_head,
        num_key_value_heads=shape.n_head,
        tie_word_embeddings=False,
    )
    theirs = random_weights(LlamaForCausalLM, llama, rival_dtype(dtype, device), device)
    parameters = target.parameter_count
    if device.type == "cpu":
        target.pack(dtype)
    else:
        target.to(device, dtype)
    rows = torch.randn(1, shape.caption_tokens, shape.caption_dim)
    prompt = CaptionPrompt(rows, torch.ones(rows.shape[:2], dtype=torch.bool))
    generate = two_rows(theirs)
    params = SamplingParams(cfg_scale=7.5)
    return MadeUp(target, prompt, params, generate, "generate of a Llama, two rows", dtype.itemsize * parameters)


def around(
    family: Family, grid: Grid, dtype: torch.dtype, params: SamplingParams, generate: Generate, rival: str
) -> MadeUp:
    """A family's target, on a CPU packed with weights in `dtype`, with a prompt for both rows."""
    target = TransformersTarget(family)
    if target.device.type == "cpu":
        target.pack(dtype)
    cond, uncond = (tuple(row.tolist()) for row in blank(2))
    return MadeUp(
        target, TokenPrompt((cond,), (uncond,), grid), params, generate, rival, dtype.itemsize * target.parameter_count
    )


def random_weights(kind: Any, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A transformers model with its own random initial weights; two calls with one config make the same weights."""
    with seeded(0), device:
        model = kind(config)
    model.set_attn_implementation("sdpa")
    return model.to(dtype).eval().requires_grad_(False)


def rival_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of transformers' copy: float32 on a CPU, and that of Hawk's copy on a GPU."""
    return torch.float32 if device.type == "cpu" else dtype


def blank(rows: int) -> Tensor:
    """Token ids `[rows, PROMPT]` of prompts that say nothing; the rows differ, so that guidance does something."""
    return torch.full((rows, PROMPT), 8) + torch.arange(rows)[:, None]


def letters(number: int) -> str:
    """A number with a letter for each digit, as Chameleon names its image codes."""
    return "".join("ABCDEFGHIJ"[int(digit)] for digit in str(number))


def two_rows(model: Any) -> Generate:
    """`generate` on a batch of two prompts."""

    def generate(tokens: int, seed: int) -> list[float]:
        never = model.config.get_text_config().vocab_size  # so that no image ends early
        return clocked(model, seed, blank(2), max_new_tokens=tokens, do_sample=True, eos_token_id=never)

    return generate


def clocked(model: Any, seed: int, ids: Tensor, **options: Any) -> list[float]:
    """The clock's seconds whenever transformers' `generate` has the logits of a new token.

    On a GPU the clock is the GPU's own, for which the host need not wait; it starts at the first token.
    """
    marks: list[float] = []
    events: list[torch.cuda.Event] = []

    def mark(_: Tensor, scores: Tensor) -> Tensor:
        if scores.is_cuda:
            events.append(torch.cuda.Event(enable_timing=True))
            events[-1].record()
        else:
            marks.append(time.perf_counter())
        return scores

    ids = ids.to(model.device)
    with torch.inference_mode(), seeded(seed):
        model.generate(ids, attention_mask=torch.ones_like(ids), logits_processor=[mark], **options)
    synchronize(model.device)
    return marks or [events[0].elapsed_time(each) / 1000 for each in events]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's generator with a seed, and afterwards as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


PUBLISHED: dict[str, Callable[[Grid, torch.dtype], MadeUp]] = {
    "LlamaGen-XL": llamagen_xl,
    "Janus-Pro-1B": janus_pro,
    "Chameleon-7B, 4 of 32 layers": chameleon_cut,
}
"""The targets of the suite, by name, each for a grid and the dtype of Hawk's weights."""
