"""The schema of a model folder's `config.json`: the shape of each part, checked field by field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hawk.decoding.sampling import SamplingParams
from hawk.errors import HawkError
from hawk.files import read_json
from hawk.models.llamagen.target import LlamaGenConfig
from hawk.models.tokenizers.fsq import FSQConfig
from hawk.models.tokenizers.vqgan import VQGANConfig

Count = Annotated[int, Field(ge=1)]
S = TypeVar("S", bound=BaseModel)


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
    levels: tuple[Annotated[int, Field(ge=2)], ...]
    encoder_widths: tuple[int, int, int]
    decoder_widths: tuple[int, int, int]
    decoder_depths: tuple[int, int, int]

    def shape(self) -> FSQConfig:
        """The tokenizer's own config."""
        return FSQConfig.from_dict(self.model_dump(exclude={"kind"}))


class VQGANFields(BaseModel):
    """Fields of a published VQGAN's decoder (`VQGANConfig`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["vqgan"] = "vqgan"
    codebook_size: Annotated[int, Field(ge=2)]
    codebook_dim: Count
    z_channels: Count
    channels: Annotated[int, Field(ge=32, multiple_of=32)]
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
    wrong = [name for name, size in sizes.items() if not (size is None or isinstance(size, bool) or size > 0)]
    if wrong:
        raise HawkError(f"{path}: target.{wrong[0]} is {sizes[wrong[0]]}: it must be positive")
    if shape.dim % shape.n_head or shape.head_dim % 4 or shape.n_head % shape.kv_heads:
        raise HawkError(
            f"{path}: dim {shape.dim} must split into {shape.n_head} heads of a multiple of 4 channels, "
            f"and the heads among {shape.kv_heads} key/value heads"
        )


def read_fields(kind: type[S], path: Path) -> S:
    """The JSON file at `path` as an instance of the schema `kind`; `HawkError` names the first field that is wrong."""
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        raise HawkError(f"{path}: {field}: {first['msg'].removeprefix('Value error, ')}") from error
