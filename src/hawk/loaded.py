"""Hawk around a transformers model that somebody else has loaded."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any, Literal

from hawk.errors import HawkError
from hawk.loading import DTYPES
from hawk.pipeline import HawkPipeline

MASKED_ATTENTION = ("sdpa", "eager")
"""Attention implementations of transformers that take any mask."""


def accelerate(
    model: Any,
    processor: Any = None,
    drafter: str | Path | None = None,
    vqgan: str | Path | None = None,
    family: Literal["chameleon", "lumina"] | None = None,
) -> HawkPipeline:
    """A pipeline around a loaded Janus, Emu3 or Chameleon model, which stays as it is: dtype, device and quantisation.

    Args:
        model: the transformers model, or a transformers pipeline that holds it.
        processor: its processor or tokenizer; None takes the pipeline's, or reads it from where the model came from.
        drafter: a folder of draft heads trained for this model.
        vqgan: the file of Chameleon's pixel decoder (`vqgan.ckpt`), where the model is of that kind.
        family: whether a model of Chameleon's kind is Lumina-mGPT; None tells it by its config.

    Raises:
        HawkError: a model that cannot draw here, lies on several devices, or whose attention takes no mask.
    """
    from hawk.adapter import Beside, as_model, family_of, read_vqgan
    from hawk.targets.pretrained import read_tokenizer

    if not hasattr(model, "config") and hasattr(model, "model"):
        processor = processor or getattr(model, "processor", None) or model.tokenizer
        model = model.model
    if getattr(model, "config", None) is None:
        raise HawkError(f"{type(model).__name__} is no transformers model: give a loaded model or a pipeline with one")
    attention = model.config.get_text_config()._attn_implementation
    if attention not in MASKED_ATTENTION:
        raise HawkError(f"{attention!r} attention takes no tree mask: load the model with attn_implementation='sdpa'")
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise HawkError("the model lies on several devices: load it with device_map={'': device} of one")
    place, dtype = model.device, {value: name for name, value in DTYPES.items()}[model.dtype]
    decoder = None if vqgan is None else read_vqgan(Path(vqgan), model.config.vq_config).to(place)
    tokenizer = tokenizer_of(processor or read_tokenizer(Path(model.config._name_or_path)))
    drawn_by = family_of(model.eval(), tokenizer, decoder, Beside(family=family))
    return HawkPipeline(
        as_model(model.config._name_or_path or drawn_by.name, drawn_by, None if drafter is None else Path(drafter)),
        place,
        dtype,
    )


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer in a processor, with the processor's chat template where it has none of its own."""
    tokenizer = getattr(processor, "tokenizer", processor)
    template = getattr(processor, "chat_template", None)
    if tokenizer.chat_template is None and template is not None:
        tokenizer = copy(tokenizer)
        tokenizer.chat_template = template
    return tokenizer
