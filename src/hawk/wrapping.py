"""Hawk around a transformers model that somebody else has loaded."""

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
"""Attention implementations of transformers that take any mask."""


def accelerate(
    model: Any,
    processor: Any = None,
    drafter: str | Path | None = None,
    vqgan: str | Path | None = None,
    family: Literal["chameleon", "lumina"] | None = None,
    engine: str = "auto",
) -> HawkPipeline:
    """A pipeline around a loaded Janus, Emu3 or Chameleon model, which stays as it is: dtype, device and quantisation.

    Args:
        model: the transformers model, or a transformers pipeline that holds it.
        processor: its processor or tokenizer; None takes the pipeline's, or reads it from where the model came from.
        drafter: the folder or hub id of a drafter trained for this model.
        vqgan: the file of Chameleon's pixel decoder (`vqgan.ckpt`), where the model is of that kind.
        family: whether a model of Chameleon's kind is Lumina-mGPT; None tells it by its config.
        engine: as in `HawkPipeline.from_pretrained`.

    Raises:
        HawkError: a model that cannot draw here, lies on several devices, or whose attention takes no mask.
    """
    from hawk.models.hf.model import Beside, as_model, family_of, read_vqgan
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
    drawn_by = family_of(model.eval(), tokenizer, decoder, Beside(family=family))
    drafted = None if drafter is None else drafter_folder(drafter)
    return HawkPipeline(
        as_model(model.config._name_or_path or drawn_by.name, drawn_by, drafted),
        device,
        dtype,
        engine_named(engine, device),
    )


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
    """For `model.generate(..., custom_generate=hawk_generate, height=, width=)` of Emu3 and Chameleon's kind.

    Draws what `generate` would: prompts and negative prompts, guidance, temperature, top-k and top-p are those of the
    call. What `prefix_allowed_tokens_fn` is for comes by itself.

    Args:
        height, width: of the image in tokens; the prompt must already tell the model, where the family does.
        method: as in `HawkPipeline`; `drafter` is a drafter's folder or hub id, where the method needs one.
        seed: image i of the batch has seed `seed + i`.

    Returns:
        The prompts and behind them each image's tokens, with end-of-row and closing tokens.

    Raises:
        HawkError: one line on what the call asks for and Hawk cannot give.
    """
    from hawk.models.hf.families import SharedVocabulary
    from hawk.models.hf.model import Beside, as_model, family_of
    from hawk.models.hf.target import TokenPrompt, TransformersTarget

    check_usable(model)
    if generation_config.return_dict_in_generate:
        raise HawkError("hawk_generate returns token ids: leave return_dict_in_generate out")
    drawn_by = family_of(model, None, None, Beside(family=family))
    if not isinstance(drawn_by, SharedVocabulary):
        raise HawkError(f"{drawn_by.name} has image codes apart from its vocabulary: use hawk.accelerate")
    grid, chosen = Grid(height, width), method_named(method)
    loaded = None if drafter is None else as_model(drawn_by.name, drawn_by, drafter_folder(drafter))
    target = loaded.target if loaded else TransformersTarget(drawn_by)
    guidance = guidance_of(logits_processor, input_ids)
    params = call_params(generation_config, guidance.scale)
    drafting = build_drafter(chosen, loaded.drafting if loaded else None, target)
    prompts = without_padding(input_ids, model_kwargs.get("attention_mask"))
    prompt, seeds = TokenPrompt(prompts, guidance.negatives, grid), [seed + i for i in range(len(prompts))]
    drawn = generate(target, Request(prompt, grid, params, seeds, chosen.verifier), drafting)
    image = drawn_by.spelt(drawn.tokens, grid)
    return torch.cat((input_ids, image.to(input_ids)), dim=1)


GUIDANCE = "UnbatchedClassifierFreeGuidanceLogitsProcessor"
UNDERSTOOD = (
    "PrefixConstrainedLogitsProcessor",
    "TemperatureLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
)
"""What transformers' `generate` puts between logits and tokens, of which Hawk does the same."""


@dataclass(frozen=True)
class Guidance:
    """Scale and unconditional prompts of a `generate` call."""

    scale: float
    negatives: tuple[tuple[int, ...], ...]


def guidance_of(logits_processor: Sequence[Any], input_ids: Int[Tensor, "b t"]) -> Guidance:
    """The guidance among a call's processors; `HawkError` for one that Hawk cannot stand in for."""
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
    """The ids of each row that a padding mask leaves."""
    real = torch.ones_like(ids) if mask is None else mask
    return tuple(tuple(row[seen.bool()].tolist()) for row, seen in zip(ids, real, strict=True))


def check_usable(model: Any) -> None:
    """`HawkError` for a model whose attention takes no mask, or that lies on several devices."""
    attention = model.config.get_text_config()._attn_implementation
    if attention not in MASKED_ATTENTION:
        raise HawkError(f"{attention!r} attention takes no tree mask: load the model with attn_implementation='sdpa'")
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise HawkError("the model lies on several devices: load it with device_map={'': device} of one")


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer in a processor, with the processor's chat template where it has none of its own."""
    tokenizer = getattr(processor, "tokenizer", processor)
    template = getattr(processor, "chat_template", None)
    if tokenizer.chat_template is None and template is not None:
        tokenizer = copy(tokenizer)
        tokenizer.chat_template = template
    return tokenizer
