"""Hawk around a transformers model that the caller has loaded: `accelerate` and `hawk_generate`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.methods import build_drafter, method_named
from hawk.errors import HawkError
from hawk.models.loading import drafter_folder, engine_named
from hawk.pipeline import HawkPipeline

MASKED_ATTENTION = ("sdpa", "eager")
"""The attention implementations of transformers that take an arbitrary mask, as draft trees need it."""


def accelerate(
    model: Any,
    processor: Any = None,
    drafter: str | Path | None = None,
    vqgan: str | Path | None = None,
    family: Literal["chameleon", "lumina"] | None = None,
    engine: str = "auto",
) -> HawkPipeline:
    """A pipeline around a loaded Janus, Emu3 or Chameleon model, whose dtype, device and quantisation do not change.

    Args:
        model: the transformers model, or a transformers pipeline that holds it.
        processor: the model's processor or tokenizer; None takes the pipeline's, or reads the model's own folder.
        drafter: the folder or hub id of a drafter that was trained for this model.
        vqgan: the file of the pixel decoder (`vqgan.ckpt`), which Chameleon, Anole and Lumina-mGPT need.
        family: whether a model with Chameleon's config is Lumina-mGPT; None guesses it from the config.
        engine: as in `HawkPipeline.from_pretrained`.

    Raises:
        HawkError: Hawk cannot draw with the model, it is spread over several devices, or its attention takes no mask.
    """
    from hawk.models.hf.model import FamilyHint, as_model, family_of, read_vqgan
    from hawk.models.hf.reading import read_tokenizer

    if not hasattr(model, "config") and hasattr(model, "model"):
        processor = processor or getattr(model, "processor", None) or model.tokenizer
        model = model.model
    if getattr(model, "config", None) is None:
        raise HawkError(f"{type(model).__name__} is no transformers model: give a loaded model or a pipeline with one")
    check_usable(model)
    if model.config.model_type == "chameleon" and vqgan is None:
        raise HawkError("a 'chameleon' model needs vqgan=, the file of its pixel decoder (vqgan.ckpt)")
    device, dtype = model.device, str(model.dtype).removeprefix("torch.")
    decoder = None if vqgan is None else read_vqgan(Path(vqgan), model.config.vq_config).to(device)
    tokenizer = tokenizer_of(processor or read_tokenizer(Path(model.config._name_or_path)))
    described = family_of(model.eval(), tokenizer, decoder, FamilyHint(family=family))
    folder = None if drafter is None else drafter_folder(drafter)
    around = as_model(model.config._name_or_path or described.name, described, folder)
    return HawkPipeline(around, device, dtype, engine_named(engine, device))


def hawk_generate(
    model: Any,
    input_ids: Int[Tensor, "b t"],
    logits_processor: Sequence[Any],
    stopping_criteria: Any,
    generation_config: Any,
    height: int,
    width: int,
    method: str = "hawk",
    drafter: str | Path | None = None,
    family: Literal["chameleon", "lumina"] | None = None,
    seed: int = 0,
    **model_kwargs: Any,
) -> Int[Tensor, "b n"]:
    """Draws for transformers' `model.generate(..., custom_generate=hawk_generate, height=..., width=...)`.

    It serves Emu3, Chameleon, Anole and Lumina-mGPT, and draws from the distribution of `generate` itself: with the
    call's prompts and negative prompts, guidance, temperature, top-k and top-p. `prefix_allowed_tokens_fn` is not
    needed: only image tokens are drawn, and rows are ended where the family ends them.

    Args:
        height, width: the size of the image in tokens. If the family's prompts give the size, it must be this one.
        method: as in `HawkPipeline`.
        drafter: a drafter's folder or hub id, for methods that need one.
        family: as in `accelerate`.
        seed: image i of the batch has seed `seed + i`.

    Returns:
        Token ids: each prompt, followed by its image's tokens with end-of-row and closing tokens.

    Raises:
        HawkError: one line on what the call asks for and Hawk cannot do.
    """
    from hawk.models.hf.families import SharedVocabulary
    from hawk.models.hf.model import FamilyHint, as_model, family_of
    from hawk.models.hf.target import TokenPrompt, TransformersTarget

    check_usable(model)
    if generation_config.return_dict_in_generate:
        raise HawkError("hawk_generate returns token ids: leave return_dict_in_generate out")
    described = family_of(model, None, None, FamilyHint(family=family))
    if not isinstance(described, SharedVocabulary):
        raise HawkError(f"{described.name} has image codes apart from its vocabulary: use hawk.accelerate")
    grid, chosen = Grid(height, width), method_named(method)
    loaded = None if drafter is None else as_model(described.name, described, drafter_folder(drafter))
    target = loaded.target if loaded else TransformersTarget(described)
    guidance = guidance_of(logits_processor, input_ids)
    params = call_params(generation_config, guidance.scale)
    drafting = build_drafter(chosen, loaded.drafting if loaded else None, target)
    prompts = without_padding(input_ids, model_kwargs.get("attention_mask"))
    prompt, seeds = TokenPrompt(prompts, guidance.negatives, grid), [seed + i for i in range(len(prompts))]
    drawn = generate(target, Request(prompt, grid, params, seeds, chosen.verifier), drafting)
    image_ids = described.token_ids(drawn.tokens, grid)
    return torch.cat((input_ids, image_ids.to(input_ids)), dim=1)


GUIDANCE = "UnbatchedClassifierFreeGuidanceLogitsProcessor"
UNDERSTOOD = (
    "PrefixConstrainedLogitsProcessor",
    "TemperatureLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
)
"""The logits processors of transformers' `generate` for which Hawk has the same of its own."""


@dataclass(frozen=True)
class Guidance:
    """The guidance scale and the unconditional prompts of a `generate` call."""

    scale: float
    negatives: tuple[tuple[int, ...], ...]


def guidance_of(logits_processor: Sequence[Any], input_ids: Int[Tensor, "b t"]) -> Guidance:
    """The guidance among a call's logits processors; raises `HawkError` for a processor that Hawk cannot replace."""
    for processor in logits_processor:
        if type(processor).__name__ not in (GUIDANCE, *UNDERSTOOD):
            raise HawkError(f"{type(processor).__name__} has no counterpart in Hawk: leave it out of the call")
    for processor in logits_processor:
        if type(processor).__name__ == GUIDANCE:
            context = processor.unconditional_context
            ids = input_ids[:, -1:] if context["input_ids"] is None else context["input_ids"]
            return Guidance(float(processor.guidance_scale), without_padding(ids, context["attention_mask"]))
    return Guidance(1.0, without_padding(input_ids, None))


def call_params(generation_config: Any, scale: float) -> SamplingParams:
    """The sampling parameters of a `generate` call."""
    if not generation_config.do_sample:
        return SamplingParams(temperature=0.0, cfg_scale=scale)
    temperature, top_p = generation_config.temperature, generation_config.top_p
    return SamplingParams(
        temperature=1.0 if temperature is None else float(temperature),
        top_k=generation_config.top_k or 0,
        top_p=1.0 if top_p is None else float(top_p),
        cfg_scale=scale,
    )


def without_padding(ids: Int[Tensor, "b t"], mask: Tensor | None) -> tuple[tuple[int, ...], ...]:
    """The token ids of each row, without those that the mask marks as padding."""
    real = torch.ones_like(ids) if mask is None else mask
    return tuple(tuple(row[seen.bool()].tolist()) for row, seen in zip(ids, real, strict=True))


def check_usable(model: Any) -> None:
    """Raise `HawkError` for a model whose attention takes no mask, or that is spread over several devices."""
    attention = model.config.get_text_config()._attn_implementation
    if attention not in MASKED_ATTENTION:
        raise HawkError(f"{attention!r} attention takes no tree mask: load the model with attn_implementation='sdpa'")
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise HawkError("the model lies on several devices: load it on one of them, with device_map={'': device}")


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer in a processor; it gets the processor's chat template if it has none."""
    tokenizer = getattr(processor, "tokenizer", processor)
    template = getattr(processor, "chat_template", None)
    if tokenizer.chat_template is None and template is not None:
        tokenizer = copy(tokenizer)
        tokenizer.chat_template = template
    return tokenizer
