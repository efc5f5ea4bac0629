"""Checkpoints in transformers' format as models: Janus, Emu3, Chameleon, Anole and Lumina-mGPT.

A folder is as published. Chameleon's kind draws pixels with `vqgan.ckpt` (or `vqgan.safetensors`), which is published
apart: it is looked for in the folder and in its `tokenizer` folder. `hawk.json` beside it may say what config.json does
not: {"family": "lumina", "side": 48} (tokens along an image's side).

Imports transformers: load this module only when such a folder is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.parts import DraftParts, load_parts
from hawk.errors import HawkError, one_line
from hawk.files import read_json
from hawk.models.checkpoint import read_checkpoint
from hawk.models.fingerprint import fingerprint
from hawk.models.hf.families import Chameleon, Emu3, Family, Janus, Lumina
from hawk.models.hf.reading import read_model, read_tokenizer
from hawk.models.hf.target import TokenPrompt, TransformersTarget
from hawk.models.tokenizers.vqgan import VQGAN, VQGANConfig, decoding_weights

VQGAN_FILES = ("vqgan.safetensors", "vqgan.ckpt", "tokenizer/vqgan.safetensors", "tokenizer/vqgan.ckpt")
ARCHITECTURES = {
    "janus": "JanusForConditionalGeneration",
    "emu3": "Emu3ForConditionalGeneration",
    "chameleon": "ChameleonForConditionalGeneration",
}
"""`model_type` of config.json to a class of transformers."""


class Beside(BaseModel):
    """`hawk.json`: what a checkpoint's own files do not say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Literal["chameleon", "lumina"] | None = None
    side: int = Field(default=48, ge=2)


@dataclass(frozen=True)
class AdaptedModel:
    """A `hawk.models.protocol.Model` over a transformers model."""

    name: str
    family: Family
    target: TransformersTarget
    fingerprint: str
    drafting: DraftParts | None = None

    @property
    def grid(self) -> Grid:
        """What it draws where nothing else is asked for."""
        return self.family.grid

    @property
    def cell(self) -> int:
        """Side of a token in pixels."""
        return self.family.cell

    @property
    def defaults(self) -> SamplingParams:
        """The published settings of its family."""
        return self.family.defaults

    @property
    def modules(self) -> list[nn.Module]:
        """What moves to a device beside the model itself, which is read straight to it."""
        decoder = getattr(self.family, "decoder", None)
        return [*([decoder] if decoder else []), *(self.drafting.modules if self.drafting else [])]

    def check_grid(self, grid: Grid) -> None:
        """`HawkError` for a grid that the family does not draw."""
        self.family.check_grid(grid)

    def condition(self, prompts: Sequence[str], negatives: Sequence[str], grid: Grid) -> TokenPrompt:
        """Token ids of prompts; "" among `negatives` is the family's own unconditional prompt."""
        for text in prompts:
            if not text.strip():
                raise HawkError("the prompt is empty: describe the image, as in 'a red apple'")
        for text in (*prompts, *negatives):
            for token in self.family.tokenizer.all_special_tokens:
                if token in text:
                    raise HawkError(f"the prompt {text!r} holds {token}, which the model reads as a token of its own")
        told = tuple(self.family.prompt(text, grid) for text in prompts)
        steered = tuple(
            self.family.prompt(negative, grid) if negative.strip() else self.family.unconditional(prompt, grid)
            for prompt, negative in zip(told, negatives, strict=True)
        )
        last = torch.tensor(grid.size - 1)
        room, image = self.family.shape.max_position_embeddings, 1 + int(self.family.structure.before(last, grid))
        longest = max(map(len, told + steered))
        if longest + image > room:
            raise HawkError(f"a prompt of {longest} tokens and an image of {image} are too long: {room} fit together")
        return TokenPrompt(told, steered, grid)

    def pixels(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        """Images of token grids, in about [-1, 1]."""
        return self.family.pixels(codes)

    def facts(self) -> dict[str, Any]:
        """What `hawk info` tells of its parts."""
        return {
            "target": {
                "architecture": type(self.family.model).__name__,
                "parameters": self.target.parameter_count,
                "layers": self.family.shape.num_hidden_layers,
                "width": self.target.hidden_size,
                "fingerprint": self.fingerprint,
            },
            "tokenizer": {"codes": self.target.vocab_size},
            "text": {"words": len(self.family.tokenizer)},
        }


def load_adapted(folder: Path, place: torch.device, dtype: torch.dtype, drafter: Path | None) -> AdaptedModel:
    """Read a checkpoint to a device; pixel decoders run in float32 at least.

    Raises `HawkError` in one line for an unknown kind, a damaged file, or a drafter of another target.
    """
    kind = read_json(folder / "config.json")["model_type"]
    if kind not in ARCHITECTURES:
        raise HawkError(f"{folder} is a {kind!r} model: Hawk draws with {', '.join(ARCHITECTURES)}")
    beside = read_beside(folder)
    vqgan = vqgan_file(folder) if kind == "chameleon" else None  # a missing file is said before gigabytes are read
    model = read_model(folder, ARCHITECTURES[kind], dtype, place, ("model.vqmodel.",) if vqgan else ())
    if vqgan is None and dtype.itemsize < 4:
        model.model.vqmodel.float()
    decoder = None if vqgan is None else read_vqgan(vqgan, model.config.vq_config).to(place)
    if decoder is not None and dtype == torch.float64:
        decoder.double()
    family = family_of(model, read_tokenizer(folder), decoder, beside)
    return as_model(name_of(folder), family, drafter)


def as_model(name: str, family: Family, drafter: Path | None = None) -> AdaptedModel:
    """The model of a family, with a drafter folder that was trained for it."""
    target, mark = TransformersTarget(family), family_fingerprint(family)
    if drafter is None:
        return AdaptedModel(name, family, target, mark)
    parts = load_parts(drafter, target.hidden_size, target.vocab_size, mark, target.dtype)
    for module in parts.modules:
        module.to(target.device)
    return AdaptedModel(name, family, target, mark, parts)


def family_of(model: Any, tokenizer: Any, decoder: VQGAN | None = None, beside: Beside | None = None) -> Family:
    """The family of a loaded transformers model; Chameleon's kind needs a decoder to draw pixels.

    Lumina-mGPT has Chameleon's config.json; it is told by `hawk.json`, or by the class or the loss it was trained with.
    """
    kind, beside = model.config.model_type, beside or Beside()
    if kind in ("janus", "emu3"):
        make: Callable[[Any, Any], Family] = Janus if kind == "janus" else Emu3
        return make(model, tokenizer)
    if kind not in ARCHITECTURES:
        raise HawkError(f"Hawk draws with {', '.join(ARCHITECTURES)}, not with a {kind!r} model")
    trained_as = "".join(model.config.architectures or ())
    guessed = "lumina" if "XLLMX" in trained_as or hasattr(model.config, "z_loss_weight") else "chameleon"
    if (beside.family or guessed) == "lumina":
        return Lumina(model, tokenizer, decoder, beside.side)
    return Chameleon(model, tokenizer, decoder)


def family_fingerprint(family: Family) -> str:
    """What a drafter for this model must have been trained for."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    shape = {name: getattr(family.shape, name) for name in names}
    head = family.head.state_dict()
    return fingerprint({"family": family.name, "codes": family.codes, **shape}, [head[name] for name in sorted(head)])


def read_beside(folder: Path) -> Beside:
    """`hawk.json` of a folder, or nothing."""
    path = folder / "hawk.json"
    if not path.is_file():
        return Beside()
    try:
        return Beside.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise HawkError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def vqgan_file(folder: Path) -> Path:
    """The file of Chameleon's pixel decoder."""
    for name in VQGAN_FILES:
        if (folder / name).is_file():
            return folder / name
    raise HawkError(
        f"{folder} has no pixel decoder: put vqgan.ckpt of the Chameleon release (or vqgan.safetensors) there"
    )


def read_vqgan(path: Path, config: Any) -> VQGAN:
    """The decoder in a published file, of the shape that config.json's `vq_config` gives."""
    shape = VQGANConfig(
        codebook_size=config.num_embeddings,
        codebook_dim=config.embed_dim,
        z_channels=config.latent_channels,
        channels=config.base_channels,
        multipliers=tuple(config.channel_multiplier),
        blocks=config.num_res_blocks,
        attention_levels=(),
        unit_codes=False,
    )
    weights = decoding_weights(read_checkpoint(path))
    with torch.device("meta"):
        decoder = VQGAN(shape)
    try:
        decoder.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    except RuntimeError as error:
        raise HawkError(f"{path} is no decoder of this checkpoint's shape ({one_line(error)})") from error
    return decoder.eval().requires_grad_(False)


def name_of(folder: Path) -> str:
    """The folder's name; of a folder in the hub's cache the repository's."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.resolve().name
