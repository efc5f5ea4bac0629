"""Models around checkpoints in transformers' format: Janus, Emu3, Chameleon, Anole and Lumina-mGPT.

A checkpoint's folder is used as it was published. The Chameleon family (Chameleon, Anole, Lumina-mGPT) needs one more
file to draw pixels, `vqgan.ckpt` or `vqgan.safetensors`, in the folder or in its subfolder `tokenizer`, unless the
checkpoint itself holds the decoder (`model.vqmodel.decoder`, as Anole's does). An optional file `hawk.json` tells what
config.json does not: {"family": "lumina", "side": 48}, the side of an image in tokens.

This module imports transformers: import it only where such a checkpoint is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.parts import DraftParts, load_parts
from hawk.errors import HawkError, one_line
from hawk.files import read_fields, read_json
from hawk.models.checkpoint import read_checkpoint, weight_files
from hawk.models.fingerprint import fingerprint
from hawk.models.hf.families import Chameleon, Emu3, Janus, Lumina
from hawk.models.hf.family import Family, check_vocabulary
from hawk.models.hf.reading import outlined_model, read_model, read_tokenizer
from hawk.models.hf.target import TokenPrompt, TransformersTarget
from hawk.models.tokenizers.vqgan import VQGAN, VQGANConfig, decoding_weights
from hawk.nn.stored import read_safetensors, refuse_not_finite, shapes_in

VQGAN_FILES = ("vqgan.safetensors", "vqgan.ckpt", "tokenizer/vqgan.safetensors", "tokenizer/vqgan.ckpt")
VQ_MODEL = "model.vqmodel."
"""The prefix of the image tokenizer's weights in a checkpoint; Anole's checkpoint has the pixel decoder among them."""
ARCHITECTURES = {
    "janus": "JanusForConditionalGeneration",
    "emu3": "Emu3ForConditionalGeneration",
    "chameleon": "ChameleonForConditionalGeneration",
}
"""The class of transformers for each `model_type` in config.json."""


class FamilyHint(BaseModel):
    """The fields of `hawk.json`: the family, and the side of an image in tokens, which config.json may not tell."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Literal["chameleon", "lumina"] | None = None
    side: int = Field(default=48, ge=2)


@dataclass(frozen=True)
class TransformersModel:
    """A `Model` around a transformers model; `drafting` is None if there is no drafter for it."""

    name: str
    family: Family
    target: TransformersTarget
    fingerprint: str
    drafting: DraftParts | None = None

    @property
    def grid(self) -> Grid:
        """The grid of an image when a call names no size."""
        return self.family.grid

    @property
    def cell(self) -> int:
        """Side of a token in pixels."""
        return self.family.cell

    @property
    def defaults(self) -> SamplingParams:
        """The sampling parameters that the model's authors published."""
        return self.family.defaults

    @property
    def modules(self) -> list[nn.Module]:
        """Pixel decoder and drafters. The transformers model is not among them: it is read straight to its device."""
        decoder = getattr(self.family, "decoder", None)
        return [*([decoder] if decoder else []), *(self.drafting.modules if self.drafting else [])]

    def pack(self, dtype: torch.dtype) -> None:
        """Pack the linear layers of target and drafters for decoding on a CPU, with their weights in `dtype`."""
        self.target.pack(dtype)
        if self.drafting:
            self.drafting.pack(dtype)

    def check_grid(self, grid: Grid) -> None:
        """Raise `HawkError` for a grid that the family cannot draw."""
        self.family.check_grid(grid)

    def condition(self, prompts: Sequence[str], negatives: Sequence[str], grid: Grid) -> TokenPrompt:
        """The token ids of prompts; an empty negative prompt stands for the family's own unconditional prompt."""
        for text in prompts:
            if not text.strip():
                raise HawkError("the prompt is empty: describe the image, as in 'a red apple'")
        for text in (*prompts, *negatives):
            token = self.family.control_token_in(text, grid) if text.strip() else None
            if token is not None:
                raise HawkError(f"the prompt {text!r} holds {token}, which the model reads as a special token")
        cond = tuple(self.family.prompt(text, grid) for text in prompts)
        uncond = tuple(
            self.family.prompt(negative, grid) if negative.strip() else self.family.unconditional(prompt, grid)
            for prompt, negative in zip(cond, negatives, strict=True)
        )
        self.family.check_length(max(map(len, cond + uncond)), grid)
        return TokenPrompt(cond, uncond, grid)

    def pixels(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        """Images of token grids; pixels are about in [-1, 1]."""
        return self.family.pixels(codes)

    def facts(self) -> dict[str, Any]:
        """Facts about the model's parts, for `hawk info`."""
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


def outline_transformers_model(folder: Path) -> TransformersModel:
    """The model in a checkpoint's folder without its weights, except those of the head, which its fingerprint needs.

    A checkpoint that is quantized or shares its head with the embeddings is read as a whole. Raises `HawkError` as
    `load_transformers_model` does.
    """
    config = read_json(folder / "config.json")
    kind = known_kind(folder, config)
    shared_head = kind != "janus" and config.get("tie_word_embeddings")
    if "quantization_config" in config or shared_head:
        return load_transformers_model(folder, torch.device("cpu"), torch.bfloat16, None)
    if kind == "chameleon":
        vqgan_source(folder)  # refuses a folder that has no pixel decoder
    head = "model.generation_head" if kind == "janus" else "lm_head"
    model = outlined_model(folder, ARCHITECTURES[kind], head)
    return as_model(name_of(folder), family_of(model, read_tokenizer(folder), None, read_hint(folder)))


def load_transformers_model(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    drafter: Path | None,
    spread: Callable[[nn.ModuleList], None] | None = None,
) -> TransformersModel:
    """Read a checkpoint to a device; its pixel decoder is at least in float32.

    With `spread` the weights are read to the CPU. It is called with the blocks, and the other weights are moved then.

    Raises:
        HawkError: one line on a kind of model that is unknown, a damaged file, or a drafter of another target.
    """
    kind = known_kind(folder, read_json(folder / "config.json"))
    hint = read_hint(folder)
    vqgan = vqgan_source(folder) if kind == "chameleon" else None  # refuses before gigabytes are read
    may_lack, may_hold = ((VQ_MODEL,), (f"{VQ_MODEL}decoder.",)) if vqgan else ((), ())
    read_to = device if spread is None else torch.device("cpu")
    model = read_model(folder, ARCHITECTURES[kind], dtype, read_to, may_lack, may_hold)
    if vqgan is None and dtype.itemsize < 4:
        model.model.vqmodel.float()
    decoder = None if vqgan is None else read_vqgan(vqgan, model.config.vq_config).to(device)
    if decoder is not None and dtype == torch.float64:
        decoder.double()
    tokenizer = read_tokenizer(folder)
    if spread is not None:
        spread(TransformersTarget(family_of(model, tokenizer, decoder, hint)).blocks)
        model.to(device)
    family = family_of(model, tokenizer, decoder, hint)
    return as_model(name_of(folder), family, drafter)


def known_kind(folder: Path, config: Mapping[str, Any]) -> str:
    """The `model_type` in config.json; raises `HawkError` for a kind of model that Hawk does not draw with."""
    kind = str(config["model_type"])
    if kind == "multi_modality":
        raise HawkError(f"{folder} is in DeepSeek's own format: hawk convert janus {folder} OUT, then draw with OUT")
    if kind not in ARCHITECTURES:
        raise HawkError(f"{folder} is a {kind!r} model: Hawk draws with {', '.join(ARCHITECTURES)}")
    return kind


def as_model(name: str, family: Family, drafter: Path | None = None) -> TransformersModel:
    """The `Model` of a family, with the drafter in a folder; `HawkError` if that was trained for another target."""
    target, mark = TransformersTarget(family), family_fingerprint(family)
    if drafter is None:
        return TransformersModel(name, family, target, mark)
    parts = load_parts(drafter, target.hidden_size, target.vocab_size, mark, target.dtype)
    for module in parts.modules:
        module.to(target.device)
    return TransformersModel(name, family, target, mark, parts)


def family_of(model: Any, tokenizer: Any, decoder: VQGAN | None = None, hint: FamilyHint | None = None) -> Family:
    """The family of a loaded transformers model; the Chameleon family needs a decoder to draw pixels.

    Lumina-mGPT's `model_type` is Chameleon's. It is recognised by the hint, or else by what config.json says of its
    training: the class, or the weight of the z-loss. Raises `HawkError` for a tokenizer that is not the model's.
    """
    kind, hint = model.config.model_type, hint or FamilyHint()
    if tokenizer is not None:
        check_vocabulary(model, tokenizer)
    if kind in ("janus", "emu3"):
        make: Callable[[Any, Any], Family] = Janus if kind == "janus" else Emu3
        return make(model, tokenizer)
    check_kind(kind)
    trained_as = "".join(model.config.architectures or ())
    guessed = "lumina" if "XLLMX" in trained_as or hasattr(model.config, "z_loss_weight") else "chameleon"
    if (hint.family or guessed) == "lumina":
        return Lumina(model, tokenizer, decoder, hint.side)
    return Chameleon(model, tokenizer, decoder)


def check_kind(kind: Any) -> None:
    """Raise `HawkError` for the `model_type` of a model that Hawk does not draw with."""
    if kind not in ARCHITECTURES:
        raise HawkError(f"Hawk draws with {', '.join(ARCHITECTURES)}, not with a {kind!r} model")


def family_fingerprint(family: Family) -> str:
    """The fingerprint of a family's model: a drafter must have been trained for it."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    shape = {name: getattr(family.shape, name) for name in names}
    head = family.head.state_dict()
    return fingerprint({"family": family.name, "codes": family.codes, **shape}, [head[name] for name in sorted(head)])


def read_hint(folder: Path) -> FamilyHint:
    """The `hawk.json` of a folder; an empty hint where there is none."""
    path = folder / "hawk.json"
    return read_fields(FamilyHint, path) if path.is_file() else FamilyHint()


def vqgan_source(folder: Path) -> Path | list[Path]:
    """The Chameleon family's pixel decoder: a file beside the checkpoint, or else the checkpoint's files that hold it.

    Raises `HawkError` where there is no pixel decoder.
    """
    for name in VQGAN_FILES:
        if (folder / name).is_file():
            return folder / name
    inside = [path for path in weight_files(folder) if any(name.startswith(VQ_MODEL) for name in shapes_in(path, True))]
    if any(name.startswith(f"{VQ_MODEL}decoder.") for path in inside for name in shapes_in(path, True)):
        return inside
    raise HawkError(
        f"{folder} has no pixel decoder: put vqgan.ckpt of the Chameleon release (or vqgan.safetensors) there"
    )


def read_vqgan(source: Path | list[Path], config: Any) -> VQGAN:
    """The pixel decoder in a published file, or in the files of a checkpoint that holds it as `model.vqmodel`.

    Raises `HawkError` unless it has the shape in config.json's `vq_config`.
    """
    if isinstance(source, Path):
        files, held = [source], read_checkpoint(source)
    else:
        files = source
        held = {name: tensor for path in files for name, tensor in read_safetensors(path, VQ_MODEL).items()}
    own = {name.removeprefix(VQ_MODEL): tensor for name, tensor in held.items() if name.startswith(VQ_MODEL)}
    weights = decoding_weights(own or held)
    try:
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
        with torch.device("meta"):
            decoder = VQGAN(shape)
        decoder.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise HawkError(f"{files[0]} is no decoder of this checkpoint's shape ({one_line(error)})") from error
    refuse_not_finite(files[0], weights)
    return decoder.eval().requires_grad_(False)


def name_of(folder: Path) -> str:
    """The name of a model: its folder's, or the repository's if the folder is in the hub's cache."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.resolve().name
