"""The schema of a model folder's `config.json`: the shape of each part, checked field by field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from math import isfinite, prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from hawk.decoding.sampling import SamplingParams
from hawk.errors import HawkError
from hawk.models.llamagen.target import LlamaGenConfig
from hawk.models.tokenizers.fsq import FSQConfig
from hawk.models.tokenizers.vqgan import VQGANConfig
from hawk.nn.stored import MOST, Count


def _known(kind: type) -> Callable[[Any], Any]:
    """A check that refuses fields which the dataclass `kind` does not have; pydantic itself would ignore them."""
    names = {field.name for field in fields(kind)}

    def check(values: Any) -> Any:
        unknown = sorted(set(values) - names) if isinstance(values, Mapping) else []
        if unknown:
            raise ValueError(f"unknown field {unknown[0]}")
        return values

    return check


class FSQFields(BaseModel):
    """Fields of the bundled model's kind of image tokenizer (`FSQConfig`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["fsq"] = "fsq"
    levels: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)]
    encoder_widths: tuple[Count, Count, Count]
    decoder_widths: tuple[Count, Count, Count]
    decoder_depths: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]

    @model_validator(mode="after")
    def codes_are_countable(self) -> FSQFields:
        """Refuse more codes than a weight may have rows."""
        if prod(self.levels) > MOST:
            raise ValueError(f"levels give {prod(self.levels)} codes, at most {MOST} can be")
        return self

    def shape(self) -> FSQConfig:
        """The tokenizer's own config."""
        return FSQConfig.from_dict(self.model_dump(exclude={"kind"}))


class VQGANFields(BaseModel):
    """Fields of a published VQGAN's decoder (`VQGANConfig`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["vqgan"] = "vqgan"
    codebook_size: Annotated[int, Field(ge=2, le=MOST)]
    codebook_dim: Count
    z_channels: Count
    channels: Annotated[int, Field(ge=32, le=MOST, multiple_of=32)]
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1)]
    blocks: Annotated[int, Field(ge=0)]
    attention_levels: tuple[Annotated[int, Field(ge=0)], ...]
    unit_codes: bool

    @model_validator(mode="after")
    def levels_exist(self) -> VQGANFields:
        """Refuse attention at a level that the decoder does not have."""
        beyond = [level for level in self.attention_levels if level >= len(self.multipliers)]
        if beyond:
            raise ValueError(f"attention at level {beyond[0]} of {len(self.multipliers)}, counted from 0")
        return self

    def shape(self) -> VQGANConfig:
        """The decoder's own config."""
        return VQGANConfig(**self.model_dump(exclude={"kind"}))


class StaticTextFields(BaseModel):
    """Fields of static word vectors, whose files are words.txt, words.safetensors and text.json of the model folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["static"] = "static"


class T5Fields(BaseModel):
    """Fields of a T5 encoder. `source` is a folder inside the model folder, any other folder, or a hub id `owner/name`.

    `tokens` is the length that captions are padded to, `width` the channels of a feature.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["t5"] = "t5"
    source: str = Field(min_length=1)
    tokens: Count = 120
    width: Count = 2048
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


class ModelConfig(BaseModel):
    """All of a model folder's `config.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["hawk-1"] = "hawk-1"
    name: str = Field(min_length=1)
    architecture: Literal["llamagen"] = "llamagen"
    target: Annotated[LlamaGenConfig, BeforeValidator(_known(LlamaGenConfig))]
    tokenizer: Annotated[FSQFields | VQGANFields, Field(discriminator="kind")]
    text: Annotated[StaticTextFields | T5Fields, Field(discriminator="kind")] = StaticTextFields()
    defaults: Annotated[SamplingParams, BeforeValidator(_known(SamplingParams))] = SamplingParams()


def check_target_shape(path: Path, shape: LlamaGenConfig) -> None:
    """Check that a transformer can have this shape; `HawkError` names `path`, the shape's file, and what is wrong."""
    sizes = {field.name: getattr(shape, field.name) for field in fields(shape)}
    numbers = {name: size for name, size in sizes.items() if size is not None and not isinstance(size, bool)}
    wrong = [name for name, size in numbers.items() if not (size > 0 and isfinite(size))]
    if wrong:
        raise HawkError(f"{path}: target.{wrong[0]} is {sizes[wrong[0]]}: it must be positive")
    large = [name for name, size in numbers.items() if size > MOST]
    if large:
        raise HawkError(f"{path}: target.{large[0]} is {sizes[large[0]]}: it must be at most {MOST}")
    if shape.dim % shape.n_head or shape.head_dim % 4 or shape.n_head % shape.kv_heads:
        raise HawkError(
            f"{path}: dim {shape.dim} must split into {shape.n_head} heads of a multiple of 4 channels, "
            f"and the heads among {shape.kv_heads} key/value heads"
        )
