"""The study `attention`: how the target's attention is spread over the cells around the one that it predicts.

PyTorch's own attention function is intercepted while the target runs over an image that it drew, and the weights are
computed once more from the queries, keys and mask of each call. So the study serves every target whose layers call that
function: our own ones, and models of transformers with the attention "sdpa".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hawk.decoding.forward import Target
from hawk.decoding.grid import Grid
from hawk.errors import HawkError
from hawk.evaluation.studies.study import Album, Study, condition, one_draw_each

SHOWN_ROWS, SHOWN_COLUMNS = 5, 8
"""How far the heat map reaches up and to either side."""
PLACES = ("prompt", "same row", "row above", "two rows above", "further rows")
MOST_BYTES = 4e9
"""Memory that the attention weights of all images may take."""
OTHER = "other"
"""Entries that are neither prompt nor cell: tokens that end a row."""


class AttentionWeights(TorchFunctionMode):
    """A context that collects the weights of every call of PyTorch's attention, `[queries, keys]`, mean over heads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Float[Tensor, "queries keys"]] = []

    @no_type_check  # PyTorch calls it for every operation
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.layers.append(_weights(*args, **kwargs))
        return func(*args, **kwargs)


def _weights(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, scale: float | None = None, **options: Any
) -> Float[Tensor, "queries keys"]:
    """The attention weights of the first image, mean over heads; grouped keys serve several heads."""
    keys = key[0].float().repeat_interleave(query.shape[1] // key.shape[1], dim=0)
    scores = query[0].float() @ keys.transpose(1, 2) * (scale or query.shape[-1] ** -0.5)
    if attn_mask.dtype == torch.bool:
        return scores.masked_fill(~attn_mask[0], -torch.inf).softmax(-1).mean(0)
    return (scores + attn_mask[0].float()).softmax(-1).mean(0)


@dataclass(frozen=True)
class ImageAttention:
    """The weights of each layer, from the query that predicts a cell to the cells before it, and to all else.

    Query i predicts cell i + 1; key j is cell j. Each row of `cells`, `prompt` and `other` together sums to 1.
    """

    cells: Float[Tensor, "layers n1 n1"]
    prompt: Float[Tensor, "layers n1"]
    other: Float[Tensor, "layers n1"]
    prompt_entries: int


@torch.no_grad()
def image_attention(target: Target, prompt: Any, tokens: Int[Tensor, "1 n"], grid: Grid) -> ImageAttention:
    """The target's attention over the tokens of one image, without guidance.

    Raises `HawkError` for a target whose layers do not call PyTorch's attention.
    """
    prefilled = target.prefill(prompt, False, grid.size)
    cache, told = prefilled.cache, prefilled.cache.lengths[0]
    nodes = torch.arange(grid.size - 1, device=tokens.device)
    chain = (nodes[:, None] >= nodes)[None]
    with AttentionWeights() as seen:
        target.forward_nodes(tokens[:, :-1], nodes[None], chain, prefilled.padding, cache, grid)
    if not seen.layers:
        raise HawkError("the study attention reads PyTorch's attention: load the model with attn_implementation='sdpa'")
    cache.keep([list(range(grid.size - 1))])
    entries = cache.lengths[0] - told
    row_ends = (entries - len(nodes)) // max(1, grid.height - 1)
    places = nodes + nodes // grid.width * row_ends
    # The state of a cell that ends a row is that of the last token that ends the row.
    queries = places + row_ends * (nodes % grid.width == grid.width - 1)
    weights = torch.stack([layer[queries] for layer in seen.layers])
    cells, about = weights[:, :, told + places], weights[:, :, :told].sum(-1)
    return ImageAttention(cells, about, weights.sum(-1) - about - cells.sum(-1), told - int(prefilled.padding[0]))


@dataclass(frozen=True)
class Share:
    """A share of the attention's mass, and the share that equal weights on all visible entries would give."""

    mass: float
    if_equal: float


@dataclass(frozen=True)
class AttentionFigures:
    """Attention from the queries that predict a cell with a row above it; means over heads, layers, cells, images.

    `by_offset[up][right]` is the mass on the cell `up` rows above and `right - (width - 1)` columns to the right of the
    predicted cell. With the mass of the prompt and of other entries, it sums to 1. `by_layer` has a number a layer.
    """

    shares: dict[str, Share]
    left_cell: Share
    cell_above: Share
    nine_around_above: Share
    by_offset: list[list[float]]
    by_layer: dict[str, list[float]]


def attention_figures(images: list[ImageAttention], grid: Grid) -> AttentionFigures:
    """The figures of the attention of several images of one grid."""
    everywhere = torch.arange(grid.size)
    row, column = everywhere // grid.width, everywhere % grid.width
    up = row[1:, None] - row[None, :-1]
    right = column[None, :-1] - column[1:, None]
    visible = everywhere[None, :-1] < everywhere[1:, None]
    below = row[1:] > 0
    masks = {
        "same row": up == 0,
        "row above": up == 1,
        "two rows above": up == 2,
        "further rows": up > 2,
        "left": (up == 0) & (right == -1),
        "above": (up == 1) & (right == 0),
        "around": (up == 1) & (right.abs() <= 4),
    }
    cells = torch.stack([image.cells.double().cpu() for image in images])[:, :, below]
    prompt = torch.stack([image.prompt.double().cpu() for image in images])[:, :, below]
    other = torch.stack([image.other.double().cpu() for image in images])[:, :, below]
    entries = sum(image.prompt_entries for image in images) / len(images)
    seen = visible[below].double()
    equal = seen / (seen.sum(1, keepdim=True) + entries)
    found = {name: (cells * (mask & visible)[below]).sum(-1).mean((0, 2)) for name, mask in masks.items()}
    chance = {name: float((equal * mask[below]).sum(-1).mean()) for name, mask in masks.items()}
    found |= {"prompt": prompt.mean((0, 2)), OTHER: other.mean((0, 2))}
    chance |= {"prompt": 1 - float(equal.sum(-1).mean()), OTHER: 0.0}
    told = [*PLACES, OTHER] if float(found[OTHER].mean()) > 1e-6 else list(PLACES)
    shares = {name: Share(float(found[name].mean()), chance[name]) for name in found}
    wide = 2 * grid.width - 1
    place = (up.clamp(min=0) * wide + right + grid.width - 1)[below].flatten()
    mean = (cells.mean((0, 1)) * visible[below] / int(below.sum())).flatten()
    by_offset = torch.zeros(grid.height * wide, dtype=torch.float64).index_add_(0, place, mean)
    return AttentionFigures(
        shares={name: shares[name] for name in told},
        left_cell=shares["left"],
        cell_above=shares["above"],
        nine_around_above=shares["around"],
        by_offset=by_offset.view(grid.height, wide).tolist(),
        by_layer={name: found[name].tolist() for name in told},
    )


def measure(album: Album) -> AttentionFigures:
    """Look where the target attends in its own images."""
    pipe, grid = album.pipe, album.pipe.model.grid
    if grid.height < 2:
        raise HawkError("the study attention needs a grid of two rows or more")
    layers, count = album.pipe.model.facts()["target"]["layers"], album.setting.images
    needed = layers * count * grid.size**2 * torch.float64.itemsize
    if needed > MOST_BYTES:
        most = int(MOST_BYTES // (needed // count))
        advice = f"give --images {most}" if most else "its weights do not fit for a single image"
        raise HawkError(f"the study attention holds {needed / 1e9:.0f} GB of weights for {count} images: {advice}")
    images = [
        image_attention(pipe.model.target, condition(pipe, image), image.tokens, grid) for image in album.images()
    ]
    return attention_figures(images, grid)


def plot(figure: Any, found: AttentionFigures) -> None:
    """A heat map of the nearest offsets, and the shares layer by layer."""
    from matplotlib.colors import LogNorm

    heat, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    wide = len(found.by_offset[0]) // 2
    rows, columns = min(SHOWN_ROWS, len(found.by_offset) - 1), min(SHOWN_COLUMNS, wide)
    percent = 100 * torch.tensor(found.by_offset)[: rows + 1, wide - columns : wide + columns + 1].flip(0)
    percent[percent <= 0] = torch.nan
    most = max(float(percent.nan_to_num().max()), 1e-9)
    image = heat.imshow(
        percent.numpy(),
        norm=LogNorm(max(most / 300, float(percent.nan_to_num(torch.inf).min())), most),
        extent=(-columns - 0.5, columns + 0.5, -0.5, rows + 0.5),
        cmap="viridis",
        aspect="auto",
    )
    heat.plot(0, 0, marker="s", color="tab:red", markersize=8, linestyle="none", label="cell that is predicted")
    heat.set(xlabel="columns to the right of the predicted cell", ylabel="rows above the predicted cell")
    heat.set_xticks(range(-columns, columns + 1, 2))
    heat.set_yticks(range(rows + 1))
    heat.legend(loc="lower right", fontsize=8)
    ticks = [tick for tick in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30) if image.norm.vmin <= tick <= most]
    bar = figure.colorbar(image, ax=heat, label="% of the attention, mean over heads and layers")
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks], minor=False)
    bar.ax.minorticks_off()
    above = found.shares["row above"]
    heat.set_title(f"{above.mass:.0%} lies on the row above; equal weights: {above.if_equal:.0%}", fontsize=10)
    layer_bars(bars, found.by_layer)


def layer_bars(plot: Any, by_layer: Mapping[str, list[float]]) -> None:
    """Stacked bars: the shares of each layer in percent."""
    layers = range(1, 1 + len(next(iter(by_layer.values()))))
    floor = torch.zeros(len(layers), dtype=torch.float64)
    for name, masses in by_layer.items():
        heights = 100 * torch.tensor(masses, dtype=torch.float64)
        plot.bar(layers, heights.tolist(), bottom=floor.tolist(), label=name)
        floor += heights
    plot.set(xlabel="layer", ylabel="% of the attention", ylim=(0, 100))
    if len(layers) <= 12:
        plot.set_xticks(layers)
    plot.set_title("where each layer attends", fontsize=10)
    plot.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, reverse=True)


ATTENTION = Study(
    "attention",
    "how much attention goes to the row above, to the cells on the left, and to the prompt",
    8,
    one_draw_each,
    measure,
    plot,
    (11, 4),
)
