"""What a family of transformers image models must say of itself, and what families with one vocabulary share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.structure import Structure
from hawk.errors import HawkError
from hawk.models.hf.control import added_tokens, mapped_tokens
from hawk.nn.packed import pack_linears, packed_linear


class Family(ABC):
    """A transformers model and its tokenizer, described as an image generator.

    `linear_head` says whether `head` is linear; `structure` holds the structure tokens that end a row.
    """

    name: str
    defaults: SamplingParams
    linear_head = True
    structure = Structure()

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @property
    def shape(self) -> Any:
        """The config of the backbone."""
        return self.model.config.get_text_config()

    @property
    def text_embeddings(self) -> nn.Embedding:
        """Embeddings of the model's own vocabulary: those of prompts and structure tokens."""
        return self.model.get_input_embeddings()

    @property
    def drawing_modules(self) -> list[nn.Module]:
        """The modules that draw tokens: the backbone (with its embeddings) and the output head."""
        return [self.backbone, self.model.lm_head]

    def pack(self, dtype: torch.dtype) -> None:
        """Pack the linear layers that draw tokens for decoding on a CPU, with their weights in `dtype`.

        The model then draws by Hawk only: the output head for text, which drawing does not need, is dropped.
        With `dtype` float16, everything but linear layers becomes float32.
        """
        for module in self.drawing_modules:
            pack_linears(module, dtype)
            if dtype == torch.float16:
                module.float()

    @property
    @abstractmethod
    def codes(self) -> int:
        """The number of image codes."""

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """The grid of an image when a call names no size."""

    @property
    @abstractmethod
    def cell(self) -> int:
        """The side of a token in pixels."""

    @property
    @abstractmethod
    def backbone(self) -> nn.Module:
        """The transformer without its head."""

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """The module that turns last hidden states into logits of image codes."""

    @abstractmethod
    def embed(self, codes: Int[Tensor, "*b"]) -> Float[Tensor, "*b dim"]:
        """Embeddings of image codes."""

    @abstractmethod
    def prompt(self, text: str, grid: Grid) -> tuple[int, ...]:
        """The token ids before the image's first code."""

    @abstractmethod
    def unconditional(self, prompt: tuple[int, ...], grid: Grid) -> tuple[int, ...]:
        """The token ids of the unconditional branch of guidance for this prompt, when no negative prompt is given."""

    @abstractmethod
    def pixels(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 height width"]:
        """Images of token grids; pixels are about in [-1, 1], in at least float32."""

    @cached_property
    def control_tokens(self) -> dict[int, str]:
        """The names of special, added and image tokens, by id: only the family itself writes them."""
        return added_tokens(self.tokenizer)

    def control_token_in(self, text: str, grid: Grid) -> str | None:
        """A control token that the model would read in a prompt's text, or that the text spells; None without one."""
        spelled = [name for name in self.control_tokens.values() if name in text]
        if spelled:
            return max(spelled, key=len)
        read = Counter(self.prompt(text, grid)) - Counter(self.prompt("a", grid))
        unknown = self.tokenizer.unk_token_id  # stands for any word that the tokenizer does not know
        return next((self.control_tokens[i] for i in read if i in self.control_tokens and i != unknown), None)

    @property
    def closing(self) -> tuple[int, ...]:
        """Structure tokens after an image; the target never runs them, since nothing is drawn after them."""
        return ()

    def check_grid(self, grid: Grid) -> None:
        """Raise `HawkError` for a grid that the family cannot draw: by default every grid but its own."""
        if grid != self.grid:
            height, width = self.grid.height, self.grid.width
            size = f"{height * self.cell}x{width * self.cell} pixels only ({height}x{width} tokens)"
            raise HawkError(f"{self.name} draws {size}: give no other height and width")

    def check_length(self, prompt: int, grid: Grid) -> None:
        """Raise `HawkError` where a prompt of `prompt` tokens and an image are longer than the model's positions."""
        room = self.shape.max_position_embeddings
        image = 1 + int(self.structure.before(torch.tensor(grid.size - 1), grid))
        if prompt + image > room:
            raise HawkError(f"a prompt of {prompt} tokens and an image of {image} are too long: {room} fit together")


class SharedVocabulary(Family):
    """A family whose image codes are tokens of the text vocabulary."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        id_of_code: Mapping[int, int] = model.model.vocabulary_mapping.img2bpe
        if sorted(id_of_code) != list(range(self.codes)):
            raise HawkError(f"vocabulary_map in config.json has {len(id_of_code)} image tokens, not {self.codes}")
        ids = [id_of_code[code] for code in range(self.codes)]
        self.code_ids = torch.tensor(ids, device=model.lm_head.weight.device)
        in_order = ids == list(range(ids[0], ids[0] + self.codes))
        self.code_rows = slice(ids[0], ids[0] + self.codes) if in_order else self.code_ids
        rows = self.head_rows()
        head = nn.Linear(rows.shape[1], self.codes, bias=False, device="meta")
        head.weight = nn.Parameter(rows, requires_grad=False)
        self._head: nn.Module = head

    def head_rows(self) -> Float[Tensor, "codes dim"]:
        """The rows of `lm_head` for image codes: a view of them if the codes' ids are in order, else a copy."""
        return self.model.lm_head.weight.detach()[self.code_rows]

    def follow_weights(self) -> None:
        """Take the rows of `lm_head` again, which the caller may have changed: a copy of them in place, a view anew."""
        if not isinstance(self._head, nn.Linear):  # packed: `lm_head` is dropped
            return
        if isinstance(self.code_rows, Tensor):
            with torch.inference_mode():  # a call in inference mode may have made the weight
                self._head.weight.copy_(self.head_rows())
        elif self._head.weight.data_ptr() != (rows := self.head_rows()).data_ptr():
            self._head.weight = nn.Parameter(rows, requires_grad=False)

    def pack(self, dtype: torch.dtype) -> None:
        """As for every family; of `lm_head`, only the rows for image codes are kept."""
        self.model.lm_head = nn.Identity()
        head = self._head
        assert isinstance(head, nn.Linear)
        self._head = packed_linear(head.weight, dtype)
        super().pack(dtype)

    @property
    def head(self) -> nn.Module:
        """The rows of `lm_head` for image codes; the logits of text tokens are never computed."""
        return self._head

    @cached_property
    def control_tokens(self) -> dict[int, str]:
        """The tokenizer's special and added tokens, and those of image codes and control tokens in config.json."""
        image_ids = frozenset(self.code_ids.tolist())
        return {**mapped_tokens(self.model.config.vocabulary_map, image_ids), **added_tokens(self.tokenizer)}

    def embed(self, codes: Int[Tensor, "*b"]) -> Float[Tensor, "*b dim"]:
        """Embeddings of image codes, from the text vocabulary."""
        return self.text_embeddings(self.code_ids[codes])

    def token_ids(self, codes: Int[Tensor, "b n"], grid: Grid) -> Int[Tensor, "b m"]:
        """Images as the model itself would write them: the ids of codes, end-of-row tokens and closing tokens."""
        ids = self.code_ids[codes].unflatten(1, (grid.height, grid.width))
        end = torch.tensor(self.structure.end_of_row, dtype=ids.dtype, device=ids.device)
        rows = torch.cat((ids, end.expand(*ids.shape[:2], -1)), dim=2).flatten(1)
        closing = torch.tensor(self.closing, dtype=ids.dtype, device=ids.device)
        return torch.cat((rows, closing.expand(len(codes), -1)), dim=1)

    def grid_in(self, prompt: tuple[int, ...]) -> Grid | None:
        """The grid that a prompt asks for; None where the family's prompts tell no size, or this one tells none."""
        return None

    def spelled(self, ids: tuple[int, ...]) -> str:
        """The tokens of ids as the vocabulary spells them, one after another."""
        names = {token: name for name, token in self.model.config.vocabulary_map.items()}
        return "".join(names.get(token, "") for token in ids)

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids of text, without special tokens around them."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def id_of(self, token: str) -> int:
        """The id of a token of the model's vocabulary; raises `HawkError` if config.json does not list it."""
        vocabulary: Mapping[str, int] = self.model.config.vocabulary_map
        if token not in vocabulary:
            raise HawkError(f"config.json lacks {token} in vocabulary_map: this is no {self.name} checkpoint")
        return vocabulary[token]


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Raise `HawkError` for a tokenizer with an id that the model has no embedding for, as another model's may have."""
    last, rows = max(tokenizer.get_vocab().values(), default=0), model.get_input_embeddings().num_embeddings
    if last >= rows:
        raise HawkError(
            f"the tokenizer has token ids up to {last}, the model only {rows} tokens: give its own tokenizer"
        )


def special(tokenizer: Any, name: str) -> str:
    """The special token that the tokenizer has under a name such as `boi_token`; raises `HawkError` without one."""
    token = getattr(tokenizer, name, None)
    if token is None:
        raise HawkError(f"tokenizer_config.json names no {name}: this tokenizer cannot begin an image")
    return str(token)
