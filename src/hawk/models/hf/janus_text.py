"""Tokenizer, chat template and processor of a Janus in DeepSeek's own format, for transformers' Janus."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, PreTrainedTokenizerFast

from hawk.errors import HawkError, one_line
from hawk.files import read_json, refuse_pointer
from hawk.models.hf.families import PADDING

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
IMAGE_TOKENS = {
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_placeholder>",
}
"""Tokens that DeepSeek's code names in its processor, under the names that transformers' Janus asks for."""

_TEMPLATE = """\
{%- set names = {'user': 'USER', 'assistant': 'ASSISTANT'} -%}
{%- for message in messages -%}
    {%- set open = loop.last and not add_generation_prompt -%}
    {{- names.get(message['role'] | lower, message['role'] | capitalize) ~ (':' if open else ': ') -}}
    {%- set said = namespace(text='') -%}
    {%- for part in message['content'] -%}
        {%- set piece = 'IMAGE' if part['type'] == 'image' else part['text'] -%}
        {%- set said.text = said.text ~ ('' if loop.first else '\\n') ~ piece -%}
    {%- endfor -%}
    {{- said.text | trim -}}
    {%- if not open -%}
        {{- '\\n\\n' if message['role'] | lower == 'user' else 'END' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'ASSISTANT:' -}}
{%- endif -%}
"""


def chat_template(vocabulary: Mapping[str, int]) -> str:
    """DeepSeek's prompt format as a chat template: the roles' names are special tokens where the vocabulary has them.

    Janus-Pro has the tokens <|User|> and <|Assistant|>. A vocabulary without them is that of the first Janus, whose
    examples write the plain words User and Assistant.
    """
    user, assistant = ("<|User|>", "<|Assistant|>") if "<|User|>" in vocabulary else ("User", "Assistant")
    words = {"USER": user, "ASSISTANT": assistant, "IMAGE": IMAGE_TOKENS["image_token"], "END": END}
    return re.sub("|".join(words), lambda found: words[found[0]], _TEMPLATE)


def read_original_tokenizer(source: Path) -> Any:
    """The tokenizer in an original folder, with the special tokens and chat template that transformers' Janus needs.

    Raises `HawkError` where tokenizer.json is missing, damaged, or of another model.
    """
    path = source / "tokenizer.json"
    if not path.is_file():
        raise HawkError(f"{path} is missing: fetch it from the model's repository")
    refuse_pointer(path)
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception only
        raise HawkError(f"{path} is no tokenizer: {one_line(error)}") from error
    vocabulary = backend.get_vocab()
    for token in (BEGIN, END, *IMAGE_TOKENS.values()):
        if token not in vocabulary:
            raise HawkError(f"{path} has no token {token}: it is no tokenizer of Janus")
    if backend.encode("a").ids[:1] != [vocabulary[BEGIN]]:
        # DeepSeek's tokenizer class begins every text with this token, which tokenizer.json itself does not say.
        begin = [(BEGIN, vocabulary[BEGIN])]
        backend.post_processor = TemplateProcessing(single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=begin)
    settings = source / "tokenizer_config.json"
    longest = read_json(settings).get("model_max_length") if settings.is_file() else None
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PADDING if PADDING in vocabulary else END,
        extra_special_tokens=IMAGE_TOKENS,
        chat_template=chat_template(vocabulary),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **({"model_max_length": longest} if isinstance(longest, int) else {}),
    )


def processor_files(source: Path, image_tokens: int) -> dict[str, dict[str, Any]]:
    """The files of transformers' `JanusProcessor`, by name; those of the image processor only if the source has one."""
    processor = {"processor_class": "JanusProcessor", "num_image_tokens": image_tokens}
    files: dict[str, dict[str, Any]] = {"processor_config.json": {**processor, "use_default_system_prompt": True}}
    path = source / "preprocessor_config.json"
    if path.is_file():
        fields = read_json(path)
        kept = ("do_normalize", "image_mean", "image_std", "min_size", "rescale_factor", "background_color")
        side = fields.get("image_size")
        files[path.name] = {
            "image_processor_type": "JanusImageProcessor",
            "processor_class": "JanusProcessor",
            **{name: fields[name] for name in kept if name in fields},
            **({"size": {"height": side, "width": side}} if isinstance(side, int) else {}),
        }
    return files


def generation_config(tokenizer: Any) -> GenerationConfig:
    """What transformers' own `generate` needs to draw: guidance as in DeepSeek's examples, and the tokens' ids."""
    begin = tokenizer.convert_tokens_to_ids(IMAGE_TOKENS["boi_token"])
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        guidance_scale=5,
        temperature=1.0,
        generation_kwargs={"boi_token_id": begin},
    )
