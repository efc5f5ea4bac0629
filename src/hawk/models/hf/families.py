"""Families of transformers image models: all that differs between them (modules, prompts, rows, pixels) is here.

A family holds a loaded model and its tokenizer, and reads every token id from the model's config or the tokenizer.
Prompts and defaults are those of each model's public inference code: see docs/janus.md, emu3.md, chameleon.md and
lumina.md.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.structure import Structure
from hawk.errors import HawkError
from hawk.models.hf.family import Family, SharedVocabulary, special
from hawk.models.hf.headers import BEGIN_IMAGE, emu3_grid, lumina_grid, lumina_header
from hawk.models.pixels import decoded_wide
from hawk.models.tokenizers.fsq import PixelDecoder


class Janus(Family):
    """Janus and Janus-Pro (arXiv 2410.13848, 2501.17811): image codes have their own embeddings and head (an MLP)."""

    name = "Janus"
    defaults = SamplingParams(cfg_scale=5.0)
    linear_head = False

    @property
    def codes(self) -> int:
        """The entries of the image codebook."""
        return self.model.config.vq_config.num_embeddings

    @property
    def grid(self) -> Grid:
        """A square of `num_patches` tokens on a side."""
        side = self.model.config.vq_config.num_patches
        return Grid(side, side)

    @property
    def cell(self) -> int:
        """Each level of the decoder but one doubles the side of the picture."""
        return 2 ** (len(self.model.config.vq_config.channel_multiplier) - 1)

    @property
    def backbone(self) -> nn.Module:
        """The Llama inside the model."""
        return self.model.model.language_model

    @property
    def head(self) -> nn.Module:
        """Two linear layers with a nonlinearity between them."""
        return self.model.model.generation_head

    def pack(self, dtype: torch.dtype) -> None:
        """As for every family; `lm_head` is for text only."""
        super().pack(dtype)
        self.model.lm_head = nn.Identity()

    @property
    def drawing_modules(self) -> list[nn.Module]:
        """The backbone, and embeddings and head of the image codes; `lm_head` is for text only."""
        parts = self.model.model
        return [self.backbone, parts.generation_embeddings, parts.generation_aligner, parts.generation_head]

    def embed(self, codes: Int[Tensor, "*b"]) -> Float[Tensor, "*b dim"]:
        """The codes' own embeddings, projected to the backbone's width."""
        return self.model.prepare_embeddings_for_image_generation(codes)

    def prompt(self, text: str, grid: Grid) -> tuple[int, ...]:
        """The text as a user turn of the chat template, then begin-of-image."""
        if not self.tokenizer.chat_template:
            raise HawkError("this Janus has no chat template: its folder needs chat_template.jinja (as published)")
        turn = {"role": "user", "content": [{"type": "text", "text": text}]}
        chat = self.tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
        if text.strip() not in chat:
            raise HawkError("the chat template of this Janus leaves the prompt out: its folder needs the published one")
        return tuple(self.tokenizer(chat + special(self.tokenizer, "boi_token")).input_ids)

    def unconditional(self, prompt: tuple[int, ...], grid: Grid) -> tuple[int, ...]:
        """The prompt with padding tokens in place of its text; attention sees these padding tokens."""
        begin = self.tokenizer.convert_tokens_to_ids(special(self.tokenizer, "boi_token"))
        kept = (self.tokenizer.bos_token_id, begin)
        return tuple(token if token in kept else self.padding for token in prompt)

    @cached_property
    def padding(self) -> int:
        """The id of the padding token: the tokenizer's, else the model's, else (as in transformers) end-of-sequence."""
        tokenizer, of_model = self.tokenizer, self.model.generation_config
        named = tokenizer.get_vocab().get(PADDING)
        candidates = (tokenizer.pad_token_id, of_model.pad_token_id, named, tokenizer.eos_token_id)
        found = next((candidate for candidate in candidates if candidate is not None), None)
        if found is None:
            raise HawkError("tokenizer_config.json names no pad_token, which Janus needs for guidance: add it there")
        return int(found)

    def pixels(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        """Images by the model's own decoder."""
        return decoded_wide(self.model.model.vqmodel, codes.flatten(1))


PADDING = "<｜▁pad▁｜>"
"""The padding token in DeepSeek's vocabularies, which some tokenizer_config.json do not name."""


EMU3_NEGATIVE = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
"""The negative prompt in Emu3's published settings; guidance uses it when a call gives none."""


class Emu3(SharedVocabulary):
    """Emu3-Gen (arXiv 2409.18869): any size, which the prompt states; each row ends with an end-of-line token."""

    name = "Emu3"
    defaults = SamplingParams(cfg_scale=3.0, top_k=2048)
    grid = Grid(90, 90)

    @property
    def codes(self) -> int:
        """The entries of the image codebook."""
        return self.model.config.vq_config.codebook_size

    @property
    def cell(self) -> int:
        """The decoder's scale factor."""
        return self.model.model.vqmodel.spatial_scale_factor

    @property
    def backbone(self) -> nn.Module:
        """The Llama-like text model."""
        return self.model.model.text_model

    @cached_property
    def structure(self) -> Structure:  # type: ignore[override]
        """End-of-line after each row."""
        return Structure((self.id_of("<|extra_200|>"),))

    @property
    def closing(self) -> tuple[int, ...]:
        """End-of-frame, end-of-image, end-of-sequence."""
        return (self.id_of("<|extra_201|>"), self.id_of("<|image end|>"), self.shape.eos_token_id)

    def check_grid(self, grid: Grid) -> None:
        """Every grid is allowed; the length of the sequence is checked with the prompt."""

    def prompt(self, text: str, grid: Grid) -> tuple[int, ...]:
        """Begin-of-sequence, the text, and the image's header: begin-of-image, height*width, begin-of-image-tokens."""
        begin, wrapper = special(self.tokenizer, "boi_token"), special(self.tokenizer, "image_wrapper_token")
        start = special(self.tokenizer, "bos_token")
        return self.encode(f"{start}{text}{begin}{grid.height}*{grid.width}{wrapper}")

    def grid_in(self, prompt: tuple[int, ...]) -> Grid | None:
        """The grid that the last image's header states, as in 90*90."""
        return emu3_grid(self.spelled(prompt))

    def unconditional(self, prompt: tuple[int, ...], grid: Grid) -> tuple[int, ...]:
        """The published negative prompt, with the header of the same grid."""
        return self.prompt(EMU3_NEGATIVE, grid)

    def pixels(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        """Images by the model's own decoder."""
        return decoded_wide(self.model.model.vqmodel, codes)


class Chameleon(SharedVocabulary):
    """Chameleon and Anole (arXiv 2405.09818, 2407.06135): 32x32 codes; their own `forward` masks the codes' logits."""

    name = "Chameleon"
    defaults = SamplingParams(cfg_scale=3.0, temperature=0.7)

    def __init__(self, model: Any, tokenizer: Any, decoder: PixelDecoder | None) -> None:
        super().__init__(model, tokenizer)
        self.decoder = decoder
        if tokenizer is not None:
            special(tokenizer, "bos_token")  # refuses a tokenizer that has none

    @property
    def grid(self) -> Grid:
        """The grid of the pictures that the image encoder was trained on."""
        side = self.model.config.vq_config.resolution // self.cell
        return Grid(side, side)

    @property
    def codes(self) -> int:
        """The entries of the image codebook."""
        return self.model.config.vq_config.num_embeddings

    @property
    def cell(self) -> int:
        """Each level of the encoder but one halves the side of the picture."""
        return 2 ** (len(self.model.config.vq_config.channel_multiplier) - 1)

    @property
    def closing(self) -> tuple[int, ...]:
        """End-of-image."""
        return (self.id_of(END_IMAGE),)

    @property
    def backbone(self) -> nn.Module:
        """The transformer, whose image encoder is not run."""
        return self.model.model

    def prompt(self, text: str, grid: Grid) -> tuple[int, ...]:
        """Begin-of-sequence, the text, end-of-turn, begin-of-image."""
        return (self.tokenizer.bos_token_id, *self.encode(text + SEPARATOR), self.id_of(BEGIN_IMAGE))

    def unconditional(self, prompt: tuple[int, ...], grid: Grid) -> tuple[int, ...]:
        """Begin-of-sequence, begin-of-image."""
        return (self.tokenizer.bos_token_id, self.id_of(BEGIN_IMAGE))

    def pixels(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        """Images by the VQGAN decoder, which transformers' model lacks; raises `HawkError` without one."""
        if self.decoder is None:
            raise HawkError(f"{self.name} has no pixel decoder here: name the file of one (vqgan.ckpt)")
        return decoded_wide(self.decoder, codes)


END_IMAGE, NEW_LINE, SEPARATOR = "<eoss>", "<reserved08799>", "<reserved08706>"
"""Tokens of Chameleon's vocabulary: end-of-image, Lumina-mGPT's end-of-row, end-of-turn."""


class Lumina(Chameleon):
    """Lumina-mGPT (arXiv 2408.02657): Chameleon with the size in the prompt, and a new-line token after each row."""

    name = "Lumina-mGPT"
    defaults = SamplingParams(cfg_scale=3.0, top_k=2000)

    def __init__(self, model: Any, tokenizer: Any, decoder: PixelDecoder | None, side: int = 48) -> None:
        super().__init__(model, tokenizer, decoder)
        self.side = side

    @property
    def grid(self) -> Grid:
        """The square that the checkpoint was tuned for: 48 tokens on a side for 768 pixels, 32 for 512, 64 for 1024."""
        return Grid(self.side, self.side)

    @cached_property
    def structure(self) -> Structure:  # type: ignore[override]
        """New-line after each row."""
        return Structure((self.id_of(NEW_LINE),))

    def check_grid(self, grid: Grid) -> None:
        """Raise `HawkError` for odd sides: prompts give sizes in squares of 2x2 tokens."""
        if grid.height % 2 or grid.width % 2:
            raise HawkError(f"{self.name} draws sizes that are multiples of {2 * self.cell} pixels (2 tokens)")
        if not self.trained_for(grid):
            size, own = f"{grid.height * self.cell}x{grid.width * self.cell}", self.side * self.cell
            warnings.warn(
                f"{self.name} was not trained for {size} pixels: it was tuned for {own}x{own} and for sizes of about "
                "that area, with sides of at most 4:1",
                stacklevel=2,
            )

    def trained_for(self, grid: Grid) -> bool:
        """Whether the checkpoint was tuned on images of this grid.

        In squares of 2x2 tokens, these are the sizes of at most the default grid's area to which no row and column
        can be added, and whose longer side is at most 4 times the shorter one.
        """
        height, width, area = grid.height // 2, grid.width // 2, (self.side // 2) ** 2
        return height * width <= area < (height + 1) * (width + 1) and max(height, width) <= 4 * min(height, width)

    def prompt(self, text: str, grid: Grid) -> tuple[int, ...]:
        """Begin-of-sequence, the instruction that the model was tuned on, end-of-turn, and the image's header."""
        size = f"{grid.width * self.cell}x{grid.height * self.cell}"
        turn = f"Generate an image of {size} according to the following prompt:\n{text}{SEPARATOR}"
        return (self.tokenizer.bos_token_id, *self.encode(turn), *self.header(grid))

    def unconditional(self, prompt: tuple[int, ...], grid: Grid) -> tuple[int, ...]:
        """The image's header alone."""
        return self.header(grid)

    def header(self, grid: Grid) -> tuple[int, ...]:
        """Begin-of-image, height and width; both are counted in squares of 2x2 tokens."""
        return tuple(self.id_of(token) for token in lumina_header(grid))

    def grid_in(self, prompt: tuple[int, ...]) -> Grid | None:
        """The grid that the header at the prompt's end states."""
        return lumina_grid(self.spelled(prompt))
