"""Sampling: guidance, filtering and the choice of a token. Each formula is written here only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hawk.decoding.arguments import real_number, whole_number
from hawk.errors import HawkError
from hawk.nn.layers import at_least_float32, in_dtype

MOST_GUIDANCE = 1e6
"""The largest guidance scale: beyond it, guided logits may overflow when they are divided by a low temperature."""
GREEDY_BELOW = 1e-5
"""Below this temperature a draw is greedy: a float32 logit divided by a temperature near 0 is infinite."""


@dataclass(frozen=True)
class SamplingParams:
    """How the target's logits become its distribution `p`.

    A `temperature` below `GREEDY_BELOW`, as 0, is greedy; `top_k` 0 and `top_p` 1 filter nothing; `cfg_scale` 1
    switches guidance off. Numbers of numpy and torch are taken and become `int` or `float`.

    Raises:
        HawkError: a parameter is no number, or out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "cfg_scale"):
            object.__setattr__(self, name, real_number(name, getattr(self, name)))
        object.__setattr__(self, "top_k", whole_number("top_k", self.top_k))
        if self.temperature < 0:
            raise HawkError(f"temperature must be 0 (greedy) or more, not {self.temperature}")
        if self.top_k < 0:
            raise HawkError(f"top_k must be 0 (off) or a number of tokens, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise HawkError(f"top_p must be above 0 and at most 1 (off), not {self.top_p}")
        if not 1 <= self.cfg_scale <= MOST_GUIDANCE:
            raise HawkError(f"cfg_scale must be from 1 (off) to {MOST_GUIDANCE:.0f}, not {self.cfg_scale}")

    @property
    def guided(self) -> bool:
        """Whether the target also needs an unconditional row for each image."""
        return self.cfg_scale != 1.0

    @property
    def greedy(self) -> bool:
        """Whether the token with the largest logit is always chosen."""
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True)
class BatchParams:
    """The sampling parameters of each image of a batch, and the rows of the target that are its.

    Row `cond[i]` of the target has the prompt of image i, and row `uncond[i]` has what guidance compares it with; for
    an image without guidance they are one row. `image[row]` is the image of a row. An image without top-k has
    `top_k` equal to the vocabulary, and an image without top-p has an infinite `top_p`.

    The other fields say on the host which formulas the batch needs: `guided` and `nucleus` whether any image does,
    `greedy` how many do, `most_k` the largest top-k, rounded up to a power of two (0: none). They decide what a step
    computes, and so which recording of a step fits: the rounding keeps their number small.
    """

    temperature: Float[Tensor, "b 1 1"]
    top_k: Int[Tensor, "b 1 1"]
    top_p: Float[Tensor, "b 1 1"]
    cfg_scale: Float[Tensor, "b 1 1"]
    is_greedy: Bool[Tensor, "b 1 1"]
    cond: Int[Tensor, " b"]
    uncond: Int[Tensor, " b"]
    image: Int[Tensor, " rows"]
    guided: bool
    greedy: Literal["none", "some", "all"]
    most_k: int
    nucleus: bool

    @classmethod
    def of(cls, params: Sequence[SamplingParams], vocab: int, like: Tensor, rows: Rows | None = None) -> BatchParams:
        """The parameters of the images, on the device of `like`, in float64 if `like` is, else in float32.

        `rows` None means that the target's rows are [cond of all images; uncond of the guided images].
        """
        rows = Rows.of(params) if rows is None else rows
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        tiny = torch.finfo(dtype).tiny  # a smaller top_p would be 0 in this dtype and keep no token
        greedy = [each.greedy for each in params]
        filters = [each.top_k if 0 < each.top_k < vocab else vocab for each in params]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=like.device)[:, None, None]

        def whole(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=like.device)

        return cls(
            temperature=column([1.0 if each.greedy else each.temperature for each in params]),
            top_k=whole(filters)[:, None, None],
            top_p=column([max(each.top_p, tiny) if each.top_p < 1 else torch.inf for each in params]),
            cfg_scale=column([each.cfg_scale for each in params]),
            is_greedy=torch.tensor(greedy, device=like.device)[:, None, None],
            cond=whole(rows.cond),
            uncond=whole(rows.uncond),
            image=whole(rows.image),
            guided=rows.cond != rows.uncond,
            greedy="all" if all(greedy) else "some" if any(greedy) else "none",
            most_k=min(vocab, max((1 << (k - 1).bit_length() for k in filters if k < vocab), default=0)),
            nucleus=any(each.top_p < 1 for each in params),
        )

    @classmethod
    def alike(cls, params: SamplingParams, images: int, vocab: int, like: Tensor) -> BatchParams:
        """The parameters of images that share them; see `of`."""
        return cls.of([params] * images, vocab, like)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> BatchParams:
        """The same parameters with each tensor changed: copied, or moved to another device."""
        changed: dict[str, Any] = {name: change(value) for name, value in self.tensors.items()}
        return replace(self, **changed)

    @property
    def formulas(self) -> tuple[bool, str, int, bool]:
        """What a step with these parameters computes, whatever the values of the tensors."""
        return self.guided, self.greedy, self.most_k, self.nucleus

    def rows_of(self, each: Tensor) -> Tensor:
        """The values of the images, repeated for their rows."""
        return each.index_select(0, self.image)


@dataclass(frozen=True)
class Rows:
    """The rows of the target that belong to each image (`BatchParams`), on the host."""

    cond: tuple[int, ...]
    uncond: tuple[int, ...]

    @classmethod
    def of(cls, params: Sequence[SamplingParams]) -> Rows:
        """[cond of all images; uncond of the guided images]."""
        guided = [image for image, each in enumerate(params) if each.guided]
        places = {image: len(params) + place for place, image in enumerate(guided)}
        return cls(tuple(range(len(params))), tuple(places.get(image, image) for image in range(len(params))))

    @property
    def image(self) -> tuple[int, ...]:
        """The image of each row."""
        owners = {row: image for of_images in (self.cond, self.uncond) for image, row in enumerate(of_images)}
        return tuple(owners[row] for row in range(len(owners)))


def guide(
    cond: Float[Tensor, "*b d"], uncond: Float[Tensor, "*b d"], scale: float | Float[Tensor, "#*b 1"]
) -> Float[Tensor, "*b d"]:
    """Classifier-free guidance, `uncond + scale * (cond - uncond)`, of logits or of states before a linear head."""
    # A tensor of float32 would widen a product of 16 bits that a number leaves as it is.
    return uncond + in_dtype(scale * (cond - uncond), cond.dtype)


def log_probs(logits: Float[Tensor, "*b vocab"], params: SamplingParams) -> Float[Tensor, "*b vocab"]:
    """`log p` of an image with these parameters: normalised `filtered` logits; removed tokens are -inf."""
    logits = at_least_float32(logits)
    single = BatchParams.alike(params, 1, logits.shape[-1], logits)
    return filtered(logits.reshape(1, -1, logits.shape[-1]), single).view_as(logits).log_softmax(-1)


def filtered(logits: Float[Tensor, "b n vocab"], params: BatchParams) -> Float[Tensor, "b n vocab"]:
    """`log p` up to a constant of each node, which does not change argmax(log p + g); removed tokens are -inf.

    Guided logits after temperature, top-k and top-p (in that order), in float32 or wider. A greedy draw has all mass
    on the first largest logit.
    """
    logits = at_least_float32(logits)
    if params.greedy == "all":
        return _largest(logits)
    kept = logits / params.temperature
    if params.most_k:
        largest = kept.topk(params.most_k).values
        threshold = largest.gather(-1, (params.top_k.clamp(max=params.most_k) - 1).expand(*kept.shape[:-1], 1))
        kept = kept.masked_fill((kept < threshold) & (params.top_k < kept.shape[-1]), -torch.inf)
    if params.nucleus:
        kept = _nucleus(kept, params.top_p)
    return torch.where(params.is_greedy, _largest(logits), kept) if params.greedy == "some" else kept


def _largest(logits: Float[Tensor, "*b vocab"]) -> Float[Tensor, "*b vocab"]:
    """All mass on the first largest logit."""
    nothing = torch.full_like(logits, -torch.inf)
    return nothing.scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)


def _nucleus(logits: Float[Tensor, "b n vocab"], top_p: Float[Tensor, "b 1 1"]) -> Float[Tensor, "b n vocab"]:
    """Keep the smallest set of largest tokens whose probability reaches `top_p` (arXiv 1904.09751)."""
    ordered, index = logits.sort(dim=-1, descending=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs
    ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, index, ordered)


def draws(q: Float[Tensor, " vocab"], count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    """`count` independent draws from q, on the CPU, where the generator of an image lies."""
    return torch.multinomial(q.cpu().double(), count, replacement=True, generator=generator)


def gumbel_argmax(scores: Float[Tensor, "*b vocab"], noise: Float[Tensor, "*b vocab"]) -> Int[Tensor, "*b"]:
    """The token that `log p` (or a draft's `log q`) and the noise of its position select: argmax(scores + noise)."""
    return (scores + noise).max(-1).indices  # on a CPU, max takes half the time of argmax
