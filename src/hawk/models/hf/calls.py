"""What a `generate` call of transformers asks for: read for Hawk, and refused in one line where Hawk cannot do it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hawk.decoding.arguments import real_number, shown
from hawk.decoding.grid import Grid
from hawk.decoding.relaxed import LOSSY
from hawk.decoding.sampling import MOST_GUIDANCE, SamplingParams
from hawk.drafters.methods import Method
from hawk.errors import HawkError
from hawk.models.given_prompts import NEGATIVE, without_padding


def argument_of_generate(name: str) -> Any:
    """An argument of the `generate` call that called Hawk; None if it has no such argument.

    transformers 5 passes neither `streamer` nor `assistant_model` on to a custom function (see its
    `_extract_generation_mode_kwargs`). So Hawk reads these arguments from the frame of the call.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "generate" and frame.f_globals.get("__name__") == "transformers.generation.utils":
            return frame.f_locals.get(name)
        frame = frame.f_back
    return None


OUTPUTS = ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states")
SEARCHES = (
    "constraints",
    "force_words_ids",
    "penalty_alpha",
    "dola_layers",
    "prompt_lookup_num_tokens",
    "assistant_early_exit",
    "use_mtp",
)
"""Settings of transformers' `generate` that ask for another search than sampling, or for another speculation."""
BEAMS = ("num_beams", "num_beam_groups")
"""Settings that ask for another search if they are more than 1."""


def check_call(generation_config: Any, model_kwargs: Mapping[str, Any]) -> None:
    """Raise `HawkError` for what a `generate` call asks for and Hawk cannot do; the message says what to leave out."""
    for name in OUTPUTS:
        if getattr(generation_config, name, None):
            raise HawkError(f"hawk_generate returns token ids: leave {name} out")
    more = [name for name in SEARCHES if getattr(generation_config, name, None) not in (None, False, 0)]
    for name in more + [name for name in BEAMS if getattr(generation_config, name, None) not in (None, 0, 1)]:
        raise HawkError(f"hawk_generate samples, or takes the likeliest token: leave {name} out")
    if argument_of_generate("assistant_model") is not None:
        raise HawkError("hawk_generate takes its drafts from method= and drafter=: leave assistant_model out")
    if argument_of_generate("synced_gpus") or model_kwargs.get("synced_gpus"):
        raise HawkError("hawk_generate draws on one device: leave synced_gpus out")
    if getattr(generation_config, "prefill_chunk_size", None) is not None:
        raise HawkError("hawk_generate reads a prompt in one forward: leave prefill_chunk_size out")
    given = {**model_kwargs, **(argument_of_generate("kwargs") or {})}  # transformers passes no image arguments on
    for name in ("inputs_embeds", "pixel_values", "image_sizes", "labels"):
        if given.get(name) is not None:
            raise HawkError(f"hawk_generate reads prompts as token ids: leave {name} out")
    cache, kept = model_kwargs.get("past_key_values"), model_kwargs.get("logits_to_keep", 1)
    if cache is not None and not (hasattr(cache, "get_seq_length") and int(cache.get_seq_length()) == 0):
        raise HawkError("hawk_generate starts with an empty KV cache of its own: leave past_key_values out")
    if not isinstance(kept, int | None):
        raise HawkError("hawk_generate draws from the logits of the last token: leave logits_to_keep out")


def check_positions(input_ids: Int[Tensor, "b t"], model_kwargs: Mapping[str, Any]) -> None:
    """Raise `HawkError` for position ids that do not count the tokens of each prompt from 0, without its padding."""
    positions, mask = model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")
    if positions is None:
        return
    real = torch.ones_like(input_ids) if mask is None else mask.bool().to(input_ids)
    usual = real.cumsum(-1) - 1
    fits = isinstance(positions, Tensor) and positions.shape in (usual.shape, usual[:1].shape)
    if not fits or bool(((positions.to(usual) != usual) & real.bool()).any()):
        raise HawkError("hawk_generate counts the positions of a prompt from 0: leave position_ids out")


def check_method(method: Method) -> None:
    """Raise `HawkError` for a lossy method: `generate` is to draw from the model's own distribution."""
    if method.verifier in LOSSY:
        raise HawkError(f"method {method.name!r} is lossy, and hawk_generate is lossless: choose another method")


DEFAULT_NEW_TOKENS = 20
"""The tokens that `generate` of transformers allows where a call gives no length."""


def new_tokens(generation_config: Any, prompt: int, criteria: Sequence[Any]) -> int | None:
    """The most tokens that a call allows after a prompt of `prompt` tokens; None if the call gives no length.

    A `max_length` of exactly the prompt and `DEFAULT_NEW_TOKENS` cannot be told from no length, and counts as none.
    """
    lengths = [each.max_length - prompt for each in criteria if type(each).__name__ == "MaxLengthCriteria"]
    most = min([generation_config.max_length - prompt, *lengths])
    return None if generation_config.max_new_tokens is None and most == DEFAULT_NEW_TOKENS else most


def entries_within(criteria: Sequence[Any], new: int | None, family: Any, grid: Grid) -> int:
    """The number of tokens of an image, structure tokens included, at which a call's stopping criteria end it.

    `new` is the most tokens that the call allows, None for any number.
    Closing tokens are cut as transformers would cut them. Raises `HawkError` for a criterion that would end the image
    before its last code, and for a criterion that Hawk does not know.
    """
    codes = 1 + int(family.structure.before(torch.tensor(grid.size - 1), grid))
    rows = grid.height * (grid.width + len(family.structure.end_of_row))
    entries = rows + len(family.closing)
    for criterion in criteria:
        kind = type(criterion).__name__
        if kind == "EosTokenCriteria":
            ends = set(criterion.eos_token_id.tolist())
            if ends & {*family.structure.end_of_row, *family.code_ids.tolist()}:
                raise HawkError("eos_token_id would end the image at one of its own tokens: leave eos_token_id out")
            first = next((i for i, token in enumerate(family.closing) if token in ends), len(family.closing) - 1)
            entries = min(entries, rows + first + 1)
        elif kind == "MaxLengthCriteria":
            if new is not None and new < codes:
                raise HawkError(
                    f"the image has {entries} tokens, and max_new_tokens or max_length allows {new}: leave it out"
                )
            entries = entries if new is None else min(entries, new)
        else:
            name = {"MaxTimeCriteria": "max_time", "StopStringCriteria": "stop_strings"}.get(kind, kind)
            raise HawkError(f"hawk_generate draws whole images and cannot stop in between: leave {name} out")
    return entries


def for_each(negatives: tuple[tuple[int, ...], ...], sequences: int, copies: int) -> tuple[tuple[int, ...], ...]:
    """A negative prompt for each sequence, from one for all, one for each prompt (`copies` sequences), or one each."""
    if len(negatives) == sequences:
        return negatives
    if len(negatives) not in (1, sequences // copies):
        raise HawkError(f"{sequences} sequences need one negative prompt or {sequences}, not {len(negatives)}")
    return tuple(each for each in negatives for _ in range(sequences // len(negatives)))


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
            ids, mask = context["input_ids"], context["attention_mask"]
            for name, given in (("negative_prompt_ids", ids), (NEGATIVE.mask, mask)):
                if not isinstance(given, Tensor | None):
                    raise HawkError(f"{name} must be a tensor, not {shown(given)}")
            scale = real_number("guidance_scale", processor.guidance_scale)
            if not 1 <= scale <= MOST_GUIDANCE:
                raise HawkError(
                    f"guidance_scale must be 1 (off) or more here, up to {MOST_GUIDANCE:.0f}, not {shown(scale)}"
                )
            return Guidance(scale, without_padding(input_ids[:, -1:] if ids is None else ids, mask, NEGATIVE))
    return Guidance(1.0, without_padding(input_ids, None, NEGATIVE))


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


SAMPLERS = {"TemperatureLogitsWarper": "temperature", "TopKLogitsWarper": "top_k", "TopPLogitsWarper": "top_p"}
"""Logits processors of transformers that sample, and the argument of `generate` that stands for each."""


def check_samplers(logits_processor: Sequence[Any], params: SamplingParams) -> None:
    """Raise `HawkError` for a caller's own sampler that says something else than the arguments of the call."""
    for processor in [] if params.greedy else logits_processor:
        kind = type(processor).__name__
        name = SAMPLERS.get(kind)
        if name is not None and getattr(processor, name) != getattr(params, name):
            value = getattr(processor, name)
            raise HawkError(f"{kind} with {name} {value} in logits_processor is not read: give {name}={value} instead")
