"""Tokenizer, chat template and processor of a Janus in DeepSeek's own format, for transformers' Janus."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, PreTrainedTokenizerFast

from hawk.decoding.arguments import shown
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
        fields = _image_fields(path)
        side = fields.pop("image_size", None)
        files[path.name] = {
            "image_processor_type": "JanusImageProcessor",
            "processor_class": "JanusProcessor",
            **fields,
            **({} if side is None else {"size": {"height": side, "width": side}}),
        }
    return files


@dataclass(frozen=True)
class _Wanted:
    """What a field must be, in words and as a test of its value."""

    words: str
    test: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and isfinite(value))


def _are_three(value: Any, test: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(test, value))


SIDE = _Wanted("a whole number, 1 or more", lambda value: _is_whole(value) and value > 0)
IMAGE_FIELDS = {
    "do_normalize": _Wanted("true or false", lambda value: isinstance(value, bool)),
    "image_mean": _Wanted("a list of three finite numbers", lambda value: _are_three(value, _is_finite)),
    "image_std": _Wanted(
        "a list of three finite numbers above 0",
        lambda value: _are_three(value, lambda each: _is_finite(each) and each > 0),
    ),
    "min_size": SIDE,
    "rescale_factor": _Wanted("a finite number above 0", lambda value: _is_finite(value) and value > 0),
    "background_color": _Wanted(
        "a list of three whole numbers from 0 to 255",
        lambda value: _are_three(value, lambda each: _is_whole(each) and 0 <= each <= 255),
    ),
    "image_size": SIDE,
}
"""The fields of an original preprocessor_config.json that transformers' image processor needs, too."""


def _image_fields(path: Path) -> dict[str, Any]:
    """The fields of a preprocessor_config.json that `IMAGE_FIELDS` names; `HawkError` for a value that is none."""
    document = read_json(path)
    fields = {name: document[name] for name in IMAGE_FIELDS if name in document}
    for name, value in fields.items():
        if not IMAGE_FIELDS[name].test(value):
            raise HawkError(f"{path}: {name} must be {IMAGE_FIELDS[name].words}, not {shown(value)}")
    return fields


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
