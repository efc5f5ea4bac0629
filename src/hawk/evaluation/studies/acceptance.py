"""The studies `acceptance-map`, where in the image drafts are accepted, and `entropy`, how certain the target is there.

Both draw with `hawk` and with a method beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hawk.drafters.methods import lacking, method_named
from hawk.errors import HawkError
from hawk.evaluation.studies.study import (
    PLOT_ONLY,
    Album,
    ByEdges,
    Mean,
    Setting,
    Study,
    correlation,
    edge_strength,
    rows_of,
    target_view,
    whole_ticks,
)
from hawk.pipeline import HawkPipeline

BESIDE = "hawk-paper"
"""The method beside `hawk` where a caller names none."""
BINS = 6
"""How many groups of equally many steps or cells the study `entropy` makes."""


def chosen_methods(setting: Setting) -> tuple[str, ...]:
    """`hawk` and the method beside it, once if they are the same."""
    return tuple(dict.fromkeys(("hawk", setting.beside or BESIDE)))


def check_drafters(pipe: HawkPipeline, study: str, methods: Sequence[str]) -> None:
    """Raise `HawkError` for a method whose drafter the model lacks."""
    for name in methods:
        kind = lacking(method_named(name), pipe.model.drafting)
        if kind is not None:
            raise HawkError(
                f"study {study} draws with method {name!r}, whose drafter ({kind}) this model lacks: train one with "
                f"`hawk train drafter --kind {kind}`, or choose --method sjd"
            )


def draws_by_both(pipe: HawkPipeline, setting: Setting) -> int:
    """`Study.draws` of a study that looks at each image of `hawk` and of another method."""
    return setting.images * len(chosen_methods(setting))


# --- acceptance-map


@dataclass(frozen=True)
class MethodMap:
    """Where a method's drafts were accepted: shares of images, by cell, and in all; `edges` compares kinds of cells."""

    method: str
    accepted: Mean
    accept_length: Mean
    edges: ByEdges
    map: list[list[float]]


@dataclass(frozen=True)
class AcceptanceFigures:
    """The maps of all methods; `pictures` and `examples` are the first image of each, and where its drafts failed."""

    methods: list[MethodMap]
    pictures: list[Tensor] = field(default_factory=list, metadata=PLOT_ONLY)
    examples: list[Tensor] = field(default_factory=list, metadata=PLOT_ONLY)


def measure_map(album: Album) -> AcceptanceFigures:
    """Draw by each method, and count where drafts were accepted."""
    grid, methods = album.pipe.model.grid, chosen_methods(album.setting)
    check_drafters(album.pipe, "acceptance-map", methods)
    found, pictures, examples = [], [], []
    for method in methods:
        drawn = list(album.images(method))
        accepted = [each.accepted.double() for each in drawn]
        edges = [edge_strength(each.pixels, grid) for each in drawn]
        found.append(
            MethodMap(
                method=method,
                accepted=Mean.of([float(each.mean()) for each in accepted]),
                accept_length=Mean.of([each.accept_length for each in drawn]),
                edges=ByEdges.of(accepted, edges),
                map=rows_of(torch.stack(accepted).mean(0), grid),
            )
        )
        pictures.append(drawn[0].pixels)
        examples.append(accepted[0].view(grid.height, grid.width))
    return AcceptanceFigures(found, pictures, examples)


def plot_map(figure: Any, found: AcceptanceFigures) -> None:
    """For each method the map, its first image, and that image with the cells darkened whose drafts were accepted."""
    axes = figure.subplots(len(found.methods), 3, width_ratios=(1.3, 1, 1), squeeze=False)
    for line, own, pixels, accepted in zip(axes, found.methods, found.pictures, found.examples, strict=True):
        shown, picture, marked = line
        image = shown.imshow([[100 * share for share in row] for row in own.map], cmap="viridis", vmin=0, vmax=100)
        figure.colorbar(image, ax=shown, label="images with an accepted draft there, %")
        whole_ticks(shown)
        shown.set(xlabel="column of the grid", ylabel="row of the grid")
        shown.set_title(f"{own.method}: {own.accepted.value:.0%} of the tokens are accepted drafts", fontsize=10)
        colours = pixels.permute(1, 2, 0).float().cpu()
        picture.imshow(colours.numpy())
        picture.set_title(f"first image of {own.method}", fontsize=10)
        height, width = colours.shape[0] // accepted.shape[0], colours.shape[1] // accepted.shape[1]
        dark = accepted.repeat_interleave(height, 0).repeat_interleave(width, 1)[..., None].float()
        marked.imshow((colours * (1 - 0.75 * dark)).clamp(0, 1).numpy())
        marked.set_title("dark: accepted drafts", fontsize=10)
        for each in (picture, marked):
            each.set_xticks([])
            each.set_yticks([])


ACCEPTANCE_MAP = Study(
    "acceptance-map",
    "where in the image drafts are accepted, by hawk and by a method beside it",
    8,
    draws_by_both,
    measure_map,
    plot_map,
    (10, 6),
)


# --- entropy


@dataclass(frozen=True)
class EntropyGroup:
    """Steps or cells of similar entropy: their mean entropy in nats, and the mean of what they have in common."""

    entropy: float
    value: Mean


@dataclass(frozen=True)
class MethodEntropy:
    """Accept length by the entropy of p at the first token that a step commits; acceptance by that at each cell."""

    method: str
    steps: int
    accept_length: list[EntropyGroup]
    accepted: list[EntropyGroup]
    correlation_of_accept_length: float
    correlation_of_accepted: float


@dataclass(frozen=True)
class EntropyFigures:
    """All methods, and the mean entropy of p over the cells of `hawk`'s images, in nats."""

    mean_entropy: float
    methods: list[MethodEntropy]


def groups_of(entropy: Float[Tensor, " k"], values: Float[Tensor, " k"], bins: int = BINS) -> list[EntropyGroup]:
    """Groups of equally many values in the order of their entropy; errors are standard errors over the values."""
    order = entropy.argsort()
    parts = [part for part in order.tensor_split(bins) if len(part)]
    return [EntropyGroup(float(entropy[part].mean()), Mean.of(values[part].tolist())) for part in parts]


def measure_entropy(album: Album) -> EntropyFigures:
    """Draw by each method, and look up the entropy of p wherever a step began."""
    methods = chosen_methods(album.setting)
    check_drafters(album.pipe, "entropy", methods)
    if album.setting.params.greedy:
        raise HawkError("the study entropy needs a temperature above 0: at 0 the target's distribution has no entropy")
    found, overall = [], []
    for method in methods:
        at_steps, lengths, at_cells, accepted = [], [], [], []
        for drawn in album.images(method):
            entropy = target_view(album.pipe, drawn, album.setting.params).entropy.double().cpu()
            at_steps.append(entropy[[step.frontier for step in drawn.steps]])
            lengths.append(torch.tensor([float(step.tokens) for step in drawn.steps], dtype=torch.float64))
            at_cells.append(entropy[1:])
            accepted.append(drawn.accepted[1:].double())
        begun, taken, cells, kept = (torch.cat(each) for each in (at_steps, lengths, at_cells, accepted))
        overall.append(float(cells.mean()))
        found.append(
            MethodEntropy(
                method=method,
                steps=len(taken),
                accept_length=groups_of(begun, taken),
                accepted=groups_of(cells, kept),
                correlation_of_accept_length=correlation(begun, taken),
                correlation_of_accepted=correlation(cells, kept),
            )
        )
    return EntropyFigures(overall[0], found)


def plot_entropy(figure: Any, found: EntropyFigures) -> None:
    """Accept length and accepted share against the entropy."""
    length, share = figure.subplots(1, 2)
    for own in found.methods:
        for axes, groups, scale in ((length, own.accept_length, 1), (share, own.accepted, 100)):
            values, errors = [scale * g.value.value for g in groups], [scale * g.value.error for g in groups]
            axes.errorbar([g.entropy for g in groups], values, errors, marker="o", capsize=3, label=own.method)
    length.set(xlabel="entropy of p at the first token of a step, nats", ylabel="tokens that the step commits")
    share.set(xlabel="entropy of p at a cell, nats", ylabel="cells whose draft was accepted, %")
    length.set_title("accept length of a step", fontsize=10)
    share.set_title("accepted drafts", fontsize=10)
    for axes in (length, share):
        axes.set_ylim(bottom=0)
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=8)


ENTROPY = Study(
    "entropy",
    "accept length against the entropy of the target at that token",
    8,
    draws_by_both,
    measure_entropy,
    plot_entropy,
    (9, 4),
)
