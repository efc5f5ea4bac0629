"""Hawk around a transformers model that the caller has loaded: `accelerate` and `hawk_generate`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Int
from torch import Tensor

from hawk.decoding.arguments import Number, name_of, path_of, shown, whole_number
from hawk.decoding.canvas import Canvas
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.request import Request
from hawk.decoding.stats import Stats
from hawk.drafters.methods import UNTRAINED, build_drafter, method_named
from hawk.drafters.source import slow_drafts
from hawk.errors import CallersFunction, HawkError
from hawk.machine import lacking_operations_refused
from hawk.models.given_prompts import NEGATIVE, PROMPT, check_prompts, without_padding
from hawk.models.hf.calls import (
    argument_of_generate,
    call_params,
    check_call,
    check_method,
    check_positions,
    check_samplers,
    entries_within,
    for_each,
    guidance_of,
    new_tokens,
)
from hawk.models.loading import drafter_folder, engine_named
from hawk.models.moving import evaluation_mode
from hawk.pipeline import HawkPipeline, image_seeds

LOGGER = logging.getLogger(__name__)

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
    """A pipeline around a loaded Janus, Emu3 or Chameleon model.

    The model's dtype, device, quantisation and mode do not change: a draw runs in evaluation mode (without dropout),
    after which a model that was in training mode is in training mode again.

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
    from hawk.models.hf.model import FamilyHint, as_model, check_kind, family_of, read_vqgan
    from hawk.models.hf.reading import read_tokenizer

    if not hasattr(model, "config") and hasattr(model, "model"):
        if processor is None:
            processor = getattr(model, "processor", None) or getattr(model, "tokenizer", None)
        model = model.model
    if not hasattr(getattr(model, "config", None), "get_text_config"):
        raise HawkError(f"{type(model).__name__} is no transformers model: give a loaded model or a pipeline with one")
    check_kind(model.config.model_type)
    hint = FamilyHint(family=family_named(family))
    check_usable(model)
    if model.config.model_type == "chameleon" and vqgan is None:
        raise HawkError("a 'chameleon' model needs vqgan=, the file of its pixel decoder (vqgan.ckpt)")
    device, dtype = model.device, str(model.dtype).removeprefix("torch.")
    pixels = None if vqgan is None else path_of("vqgan", vqgan, "the file of a pixel decoder (vqgan.ckpt)")
    decoder = None if pixels is None else read_vqgan(pixels, model.config.vq_config).to(device)
    if processor is None and not model.config._name_or_path:
        raise HawkError("the model names no folder that holds its tokenizer: give processor=, its processor")
    tokenizer = tokenizer_of(read_tokenizer(Path(model.config._name_or_path)) if processor is None else processor)
    described = family_of(model, tokenizer, decoder, hint)
    folder = None if drafter is None else drafter_folder(drafter)
    around = as_model(model.config._name_or_path or described.name, described, folder)
    return HawkPipeline(around, device, dtype, engine_named(engine, device), borrowed=model)


def hawk_generate(
    model: Any,
    input_ids: Int[Tensor, "b t"],
    logits_processor: Sequence[Any],
    stopping_criteria: Any,
    generation_config: Any,
    height: Number | None = None,
    width: Number | None = None,
    method: str = "hawk",
    drafter: str | Path | None = None,
    family: Literal["chameleon", "lumina"] | None = None,
    seed: Number | Sequence[Number] | None = None,
    streamer: Any = None,
    engine: str = "auto",
    **model_kwargs: Any,
) -> Int[Tensor, "b n"]:
    """Draws for transformers' `model.generate(..., custom_generate=hawk_generate, height=..., width=...)`.

    It serves Emu3, Chameleon, Anole and Lumina-mGPT, and draws from the distribution of `generate` itself: with the
    call's prompts and negative prompts, guidance, temperature, top-k and top-p. `prefix_allowed_tokens_fn` is not
    needed and not called: only image tokens are drawn, and rows are ended where the family ends them. A streamer gets
    the tokens as they are committed. What Hawk cannot do, such as beams, a time limit or scores, is refused.

    A GPU keeps the recordings of a model's steps for further calls, until the model is deleted or its weights move.

    Args:
        height, width: the size of the image in tokens. If the family's prompts give the size, it must be this one.
        method: as in `HawkPipeline`.
        drafter: a drafter's folder or hub id, for methods that need one.
        family: as in `accelerate`.
        seed: image i of the batch has seed `seed + i`; a list holds one seed for each image. None draws the seeds from
            torch's default generator, so that `set_seed` of transformers and `torch.manual_seed` fix them.
        streamer: transformers gives it the prompts; None takes the streamer of the `generate` call.
        engine: as in `HawkPipeline.from_pretrained`; "eager" keeps no recordings.

    Returns:
        Token ids: each prompt, followed by its image's tokens with end-of-row and closing tokens.

    Raises:
        HawkError: one line on what the call asks for and Hawk cannot do.
    """
    from hawk.models.hf.family import SharedVocabulary
    from hawk.models.hf.model import FamilyHint, as_model, family_of
    from hawk.models.hf.session import session_of
    from hawk.models.hf.target import TokenPrompt

    streamer = argument_of_generate("streamer") if streamer is None else streamer
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise HawkError(f"streamer must have the methods put and end, not {shown(streamer)}")
    with ended(streamer), evaluation_mode(model):
        check_usable(model)
        check_call(generation_config, model_kwargs)
        if height is None or width is None:
            raise HawkError("hawk_generate needs the image's size in tokens: give height= and width=")
        described = family_of(model, None, None, FamilyHint(family=family_named(family)))
        if not isinstance(described, SharedVocabulary):
            raise HawkError(f"{described.name} has image codes apart from its vocabulary: use hawk.accelerate")
        grid = Grid(whole_number("height", height, least=1), whole_number("width", width, least=1))
        described.check_grid(grid)
        new = new_tokens(generation_config, input_ids.shape[1], stopping_criteria)
        feed = Feed(streamer, described, grid, entries_within(stopping_criteria, new, described, grid))
        guidance = guidance_of(logits_processor, input_ids)
        params = call_params(generation_config, guidance.scale)
        check_samplers(logits_processor, params)
        chosen = method_named(method)
        check_method(chosen)
        prompts = without_padding(input_ids, model_kwargs.get("attention_mask"), PROMPT)
        negatives = for_each(guidance.negatives, len(prompts), generation_config.num_return_sequences or 1)
        check_prompts(prompts, PROMPT, described, grid)
        check_positions(input_ids, model_kwargs)
        if params.guided:
            check_prompts(negatives, NEGATIVE, described, grid)
        described.check_length(max(map(len, prompts + (negatives if params.guided else ()))), grid)
        seeds = image_seeds(len(prompts), seed, torch.default_generator if seed is None else None)
        request = Request(TokenPrompt(prompts, negatives, grid), grid, params, seeds, chosen.verifier)
        parts = None if drafter is None else as_model(described.name, described, drafter_folder(drafter)).drafting
        session = session_of(model, described, engine_named(engine, model.device))
        parts = session.priced(parts or UNTRAINED) if chosen.name == "hawk" else parts
        drafting = session.skills.taught(build_drafter(chosen, parts, session.target), params)
        with session.own_recordings() as recordings:
            on_step = None if streamer is None else CallersFunction(feed.on_step)
            with lacking_operations_refused(model.device, on_step):
                drawn = generate(session.target, request, drafting, on_step, recordings)
        session.skills.learn(params, [drawn])
        if drawn.stats.broken_sources and not session.warned:
            session.warned = True
            LOGGER.warning(slow_drafts(drawn.stats.broken_sources, str(session.target.dtype).removeprefix("torch.")))
        feed.send(drawn.tokens, feed.entries)
        return torch.cat((input_ids, feed.ids_of(drawn.tokens).to(input_ids)), dim=1)


@dataclass
class Feed:
    """The images of a call as the model would write them, in `entries` tokens each, for the call's streamer.

    The streamer gets one token of every image at a time, as soon as it is committed in all of them.
    """

    streamer: Any
    family: Any
    grid: Grid
    entries: int
    sent: int = 0

    def ids_of(self, tokens: Int[Tensor, "b n"]) -> Int[Tensor, "b entries"]:
        """The ids of images: codes, end-of-row tokens and closing tokens."""
        return self.family.token_ids(tokens, self.grid)[:, : self.entries]

    def on_step(self, canvas: Canvas, stats: Stats) -> None:
        """Send what the step committed."""
        committed = torch.tensor(min(canvas.committed))
        self.send(canvas.tokens, int(self.family.structure.before(committed, self.grid)))

    def send(self, tokens: Int[Tensor, "b n"], ready: int) -> None:
        """Send the first `ready` ids of each image, without those that are sent already."""
        if self.streamer is None:
            return
        for column in self.ids_of(tokens)[:, self.sent : ready].cpu().unbind(1):
            self.streamer.put(column)
        self.sent = max(self.sent, min(ready, self.entries))


@contextmanager
def ended(streamer: Any) -> Iterator[None]:
    """End a streamer after the body, also after an error, so that its reader in another thread does not wait on."""
    try:
        yield
    finally:
        if streamer is not None:
            streamer.end()


def check_usable(model: Any) -> None:
    """Raise `HawkError` for a model whose attention takes no mask, or that is spread over several devices."""
    attention = model.config.get_text_config()._attn_implementation
    if attention not in MASKED_ATTENTION:
        raise HawkError(f"{attention!r} attention takes no tree mask: load the model with attn_implementation='sdpa'")
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise HawkError("the model lies on several devices: load it on one of them, with device_map={'': device}")


def family_named(family: Any) -> Literal["chameleon", "lumina"] | None:
    """The argument `family`, checked; `HawkError` unless it is None or a family's name."""
    return None if family is None else cast(Any, name_of("family", family, ("chameleon", "lumina")))


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer in a processor; it gets the processor's chat template if it has none.

    Raises `HawkError` for what is neither a processor nor a tokenizer.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if not all(hasattr(tokenizer, name) for name in ("chat_template", "added_tokens_decoder", "get_vocab")):
        raise HawkError(f"processor must be the model's processor or tokenizer, not {shown(processor)}")
    template = getattr(processor, "chat_template", None)
    if tokenizer.chat_template is None and template is not None:
        tokenizer = copy(tokenizer)
        tokenizer.chat_template = template
    return tokenizer
