"""The studies of draft heads: `heads`, their loss by distance, and `divergence`, how far their drafts are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.heads import DraftHeads
from hawk.drafters.methods import needed
from hawk.errors import HawkError
from hawk.evaluation.studies.study import (
    PLOT_ONLY,
    Album,
    ByEdges,
    Mean,
    Study,
    edge_strength,
    one_draw_each,
    rows_of,
    target_view,
    whole_ticks,
)
from hawk.models.protocol import ImageTarget
from hawk.pipeline import HawkPipeline
from hawk.training.drafters.heads import head_pairs
from hawk.training.drafters.teacher import draft_log_q

SHOWN = 3
"""How many images the plot of `divergence` shows."""


def heads_of(pipe: HawkPipeline, study: str) -> DraftHeads:
    """The model's draft heads; `HawkError` if there are none, or none of one direction."""
    parts = pipe.model.drafting
    try:
        heads = needed(None if parts is None else parts.heads, "heads")
    except HawkError as error:
        raise HawkError(f"study {study} needs draft heads of both directions: {error}") from None
    if not (heads.config.horizontal and heads.config.vertical):
        raise HawkError(
            f"study {study} needs draft heads of both directions, this model has {heads.config.horizontal} horizontal "
            f"and {heads.config.vertical} vertical ones: train others with `hawk train drafter --kind heads`"
        )
    if heads.config.vertical >= pipe.model.grid.height or heads.config.horizontal >= pipe.model.grid.size:
        raise HawkError(f"study {study} needs a grid with more rows than there are vertical heads")
    return heads


@dataclass(frozen=True)
class HeadDrafts:
    """log q of one head at the positions `first` to the end of an image; `distance` is in cells or in rows."""

    name: str
    first: int
    log_q: Float[Tensor, "m vocab"]

    @property
    def direction(self) -> str:
        """ "horizontal" or "vertical"."""
        return self.name.split("-")[0]

    @property
    def distance(self) -> int:
        """How many cells ahead, or rows down, the head predicts."""
        return int(self.name.split("-")[1])

    def at(self, positions: Int[Tensor, " k"]) -> Float[Tensor, "k vocab"]:
        """log q at some positions, all of them from `first` on."""
        return self.log_q[positions.to(self.log_q.device) - self.first]


def head_drafts(
    heads: DraftHeads, target: ImageTarget, states: Float[Tensor, "n d"], grid: Grid, params: SamplingParams
) -> list[HeadDrafts]:
    """What every head says of an image, at the temperature of p but without top-k and top-p."""
    return [
        HeadDrafts(name, positions.start, draft_log_q(target, heads.draft_state(block, states[sources]), params))
        for name, block, sources, positions in head_pairs(heads, grid)
    ]


def common_positions(drafts: Sequence[HeadDrafts], grid: Grid) -> Int[Tensor, " k"]:
    """The positions that all heads predict."""
    return torch.arange(max(draft.first for draft in drafts), grid.size)


# --- heads


@dataclass(frozen=True)
class HeadFigures:
    """One head: cross-entropy against p in nats, and how often its likeliest token is the one that was drawn.

    `excess` is the cross-entropy above p's own entropy, which no draft can go below.
    """

    direction: str
    distance: int
    cross_entropy: Mean
    excess: Mean
    rank1_hits: Mean


@dataclass(frozen=True)
class HeadsFigures:
    """All heads on the same cells, and the growth of their loss with each further cell or row.

    `growth` is the mean relative growth of the cross-entropy from one distance to the next, over the distances that
    both directions have; `growth_difference` is that of the horizontal heads minus that of the vertical ones, image by
    image. None where both directions share one distance only.
    """

    heads: list[HeadFigures]
    target_entropy: Mean
    target_rank1_hits: Mean
    growth: dict[str, Mean] | None
    growth_difference: Mean | None


@torch.no_grad()
def measure_heads(album: Album) -> HeadsFigures:
    """Compare every head with the target on images that the target drew."""
    pipe, params, grid = album.pipe, album.setting.params, album.pipe.model.grid
    heads = heads_of(pipe, "heads")
    entropies, own_hits = [], []
    losses: dict[str, list[float]] = {}
    hits: dict[str, list[float]] = {}
    for image in album.images():
        view = target_view(pipe, image, params)
        drafts = head_drafts(heads, pipe.model.target, view.states, grid, params)
        where = common_positions(drafts, grid).to(view.log_p.device)
        p, drawn = view.log_p[where].exp(), image.tokens[0, where]
        entropies.append(float(view.entropy[where].mean()))
        own_hits.append(float((p.argmax(-1) == drawn).float().mean()))
        for draft in drafts:
            log_q = draft.at(where)
            losses.setdefault(draft.name, []).append(float(-(p * log_q).sum(-1).mean()))
            hits.setdefault(draft.name, []).append(float((log_q.argmax(-1) == drawn).float().mean()))
    found = []
    for name, loss in losses.items():
        direction, distance = name.split("-")
        excess = [own - least for own, least in zip(loss, entropies, strict=True)]
        found.append(HeadFigures(direction, int(distance), Mean.of(loss), Mean.of(excess), Mean.of(hits[name])))
    shared = min(heads.config.horizontal, heads.config.vertical)
    growth, difference = None, None
    if shared > 1:
        across, down = (growth_of(losses, direction, shared) for direction in ("horizontal", "vertical"))
        growth = {"horizontal": Mean.of(across), "vertical": Mean.of(down)}
        difference = Mean.of([one - other for one, other in zip(across, down, strict=True)])
    return HeadsFigures(found, Mean.of(entropies), Mean.of(own_hits), growth, difference)


def growth_of(losses: dict[str, list[float]], direction: str, last: int) -> list[float]:
    """The relative growth of the loss with each step of distance, from 1 to `last`, for each image."""
    pairs = zip(losses[f"{direction}-1"], losses[f"{direction}-{last}"], strict=True)
    return [(far / near) ** (1 / (last - 1)) - 1 for near, far in pairs]


def plot_heads(figure: Any, found: HeadsFigures) -> None:
    """Cross-entropy and rank-1 hit rate against the distance."""
    loss, hit = figure.subplots(1, 2)
    for direction, unit in (("horizontal", "cells ahead"), ("vertical", "rows down")):
        own = [head for head in found.heads if head.direction == direction]
        at = [head.distance for head in own]
        for axes, figures in ((loss, [h.cross_entropy for h in own]), (hit, [h.rank1_hits for h in own])):
            scale = 1 if axes is loss else 100
            values, errors = [scale * f.value for f in figures], [scale * f.error for f in figures]
            axes.errorbar(at, values, errors, marker="o", capsize=3, label=f"{direction} heads ({unit})")
    loss.axhline(found.target_entropy.value, color="gray", linestyle="--", label="the target's own entropy")
    hit.axhline(100 * found.target_rank1_hits.value, color="gray", linestyle="--", label="the target itself")
    loss.set_ylabel("cross-entropy against p, nats")
    hit.set_ylabel("% of cells whose likeliest draft was drawn")
    loss.set_title("loss of the draft heads", fontsize=10)
    hit.set_title("rank-1 hit rate of the draft heads", fontsize=10)
    for axes in (loss, hit):
        axes.set_xlabel("distance of the drafted cell")
        axes.set_xticks(sorted({head.distance for head in found.heads}))
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=8)


HEADS = Study(
    "heads",
    "the draft heads' loss and hit rate by horizontal and vertical distance",
    8,
    one_draw_each,
    measure_heads,
    plot_heads,
    (9, 4),
)


# --- divergence


@dataclass(frozen=True)
class DivergenceFigures:
    """KL of horizontal head 1 from vertical head 1 for the same cell, in nats.

    `map` is the mean over images, `examples` are the first images' own; both have a row of numbers for each row of the
    grid, without the first rows, which vertical head 1 does not predict. `by_pair` holds the mean KL for each pair of
    heads, at the cells that all heads predict.
    """

    mean: Mean
    edges: ByEdges
    by_pair: dict[str, Mean]
    map: list[list[float]]
    examples: list[list[list[float]]]
    pictures: list[Tensor] = field(default_factory=list, metadata=PLOT_ONLY)


def divergence(log_q: Float[Tensor, "k vocab"], log_r: Float[Tensor, "k vocab"]) -> Float[Tensor, " k"]:
    """KL(q || r) of each row, in nats."""
    return (torch.special.xlogy(log_q.exp(), log_q.exp()) - log_q.exp() * log_r).sum(-1)


@torch.no_grad()
def measure_divergence(album: Album) -> DivergenceFigures:
    """Compare what horizontal and vertical heads say of the same cell."""
    pipe, params, grid = album.pipe, album.setting.params, album.pipe.model.grid
    heads = heads_of(pipe, "divergence")
    maps, edges, shown = [], [], []
    by_pair: dict[str, list[float]] = {}
    for image in album.images():
        states = target_view(pipe, image, params).states
        drafts = {draft.name: draft for draft in head_drafts(heads, pipe.model.target, states, grid, params)}
        below = torch.arange(grid.width, grid.size)
        between = divergence(drafts["horizontal-1"].at(below), drafts["vertical-1"].at(below))
        maps.append(between.double().cpu())
        edges.append(edge_strength(image.pixels, grid)[grid.width :].cpu())
        where = common_positions(list(drafts.values()), grid)
        for one in drafts.values():
            for other in drafts.values():
                if (one.direction, other.direction) == ("horizontal", "vertical"):
                    pair = float(divergence(one.at(where), other.at(where)).mean())
                    by_pair.setdefault(f"{one.name} from {other.name}", []).append(pair)
        shown.append(image.pixels)
    lower = Grid(grid.height - 1, grid.width)
    return DivergenceFigures(
        mean=Mean.of([float(each.mean()) for each in maps]),
        edges=ByEdges.of(maps, edges),
        by_pair={name: Mean.of(values) for name, values in by_pair.items()},
        map=rows_of(torch.stack(maps).mean(0), lower),
        examples=[rows_of(each, lower) for each in maps[:SHOWN]],
        pictures=shown[:SHOWN],
    )


def plot_divergence(figure: Any, found: DivergenceFigures) -> None:
    """The mean map, and the first images above their own maps."""
    grid = figure.add_gridspec(2, 1 + len(found.examples), width_ratios=[2.4] + [1] * len(found.examples))
    mean = figure.add_subplot(grid[:, 0])
    most = max(value for rows in (found.map, *found.examples) for row in rows for value in row)
    first = figure_map(mean, found.map, max(max(row) for row in found.map))
    mean.set_title(f"mean over images: {found.mean.value:.2f} nats", fontsize=10)
    mean.set(xlabel="column of the grid", ylabel="row of the grid")
    whole_ticks(mean)
    figure.colorbar(first, ax=mean, label="KL(horizontal head 1 || vertical head 1), nats")
    maps = []
    for number, (rows, pixels) in enumerate(zip(found.examples, found.pictures, strict=True), start=1):
        picture, own = figure.add_subplot(grid[0, number]), figure.add_subplot(grid[1, number])
        picture.imshow(pixels.permute(1, 2, 0).float().cpu().numpy())
        picture.set_title(f"image {number}", fontsize=10)
        second = figure_map(own, rows, most)
        own.set_title(f"KL in image {number}", fontsize=10)
        for axes in (picture, own):
            axes.set_xticks([])
            axes.set_yticks([])
        maps.append(own)
        if number == len(found.examples):
            figure.colorbar(second, ax=maps, orientation="horizontal", label="nats", shrink=0.6)


def figure_map(axes: Any, rows: list[list[float]], most: float) -> Any:
    """Draw a map whose first row is row 1 of the grid; row 0 stays empty."""
    height, width = len(rows), len(rows[0])
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height + 0.5, -0.5))
    extent = (-0.5, width - 0.5, height + 0.5, 0.5)
    return axes.imshow(rows, cmap="magma", vmin=0, vmax=max(most, 1e-9), extent=extent, aspect="equal")


DIVERGENCE = Study(
    "divergence",
    "how far the horizontal and the vertical heads' drafts for the same cell are apart, over the image",
    8,
    one_draw_each,
    measure_divergence,
    plot_divergence,
    (11, 4.6),
)
