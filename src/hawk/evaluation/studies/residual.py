"""The study `residual`: the mass that stays rejected after one, two and more proposals for the next token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hawk.decoding.sampling import BatchParams
from hawk.decoding.verify import residual_distribution, unclaimed
from hawk.drafters.source import draft_log_probs
from hawk.evaluation.studies.heads import heads_of
from hawk.evaluation.studies.study import Album, Mean, Study, one_draw_each, target_view
from hawk.training.drafters.heads import head_pairs

PROPOSALS = 4
"""How many proposals are tried at a cell."""


def rejected_mass(p: Float[Tensor, " vocab"], proposals: Sequence[Float[Tensor, " vocab"]]) -> list[float]:
    """The chance that residual verification rejects the first 1, 2, ... drafts, drawn one from each of `proposals`.

    A draft from q is rejected with the chance sum(max(p - q, 0)), and p becomes the residual (Hawk, Eq. 6-7).
    """
    chance, found = 1.0, []
    for q in proposals:
        chance *= float(unclaimed(p, q).sum())
        found.append(chance)
        left = residual_distribution(p, q)
        p = p if left is None else left
    return found


@dataclass(frozen=True)
class ResidualFigures:
    """The rejected mass after 1, 2, ... proposals, mean over cells and images, for each order of proposals.

    The drafts of an order are independent draws, each from the q that it names. Number k of a list
    in `ahead` is the mass after two drafts for the cell that horizontal head k + 1 drafts; `second_source_saves[k]` is
    how much lower the mass is there if the second draft is of vertical head 1 and not of the same horizontal head.
    """

    orders: dict[str, list[Mean]]
    ahead: dict[str, list[Mean]]
    second_source_saves: list[Mean]


def orders_of(horizontal: Tensor, vertical: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """The orders in which drafts are tried at a cell, from the q of its horizontal head and of its vertical heads."""
    both = [horizontal, *vertical]
    return {
        "horizontal only": [horizontal] * PROPOSALS,
        "vertical only": [vertical[0]] * PROPOSALS,
        "both in turn": [both[number % len(both)] for number in range(PROPOSALS)],
    }


@torch.no_grad()
def measure(album: Album) -> ResidualFigures:
    """Follow Eq. 6-7 through the real distributions of target and heads, at every cell of the images."""
    pipe, params, grid, target = album.pipe, album.setting.params, album.pipe.model.grid, album.pipe.model.target
    heads = heads_of(pipe, "residual")
    drafted = BatchParams.alike(params, 1, target.vocab_size, target.embed(torch.zeros(1, dtype=torch.long)))
    by_order: dict[str, list[list[float]]] = {}
    ahead: dict[str, list[list[float]]] = {}
    for image in album.images():
        view = target_view(pipe, image, params)
        q = {}
        for name, block, sources, positions in head_pairs(heads, grid):
            states = heads.draft_state(block, view.states[sources]).to(target.dtype)
            q[name] = (positions.start, draft_log_probs(target.draft_head, states, drafted).log_q.exp())
        first = max(start for start, _ in q.values())
        sums: dict[str, Tensor] = {}
        further: dict[str, Tensor] = {}
        for position in range(first, grid.size):
            p = view.log_p[position].exp()
            at = {name: rows[position - start] for name, (start, rows) in q.items()}
            vertical = [at[f"vertical-{d}"] for d in range(1, heads.config.vertical + 1)]
            for name, order in orders_of(at["horizontal-1"], vertical).items():
                sums[name] = sums.get(name, 0) + torch.tensor(rejected_mass(p, order), dtype=torch.float64)
            for name, masses in masses_ahead(p, at, heads.config.horizontal, vertical).items():
                further[name] = further.get(name, 0) + torch.tensor(masses, dtype=torch.float64)
        cells = grid.size - first
        for name, total in sums.items():
            by_order.setdefault(name, []).append((total / cells).tolist())
        for name, total in further.items():
            ahead.setdefault(name, []).append((total / cells).tolist())
    pairs = zip(ahead["two horizontal drafts"], ahead["one horizontal, one vertical"], strict=True)
    saved = [[alone - both for alone, both in zip(*pair, strict=True)] for pair in pairs]
    return ResidualFigures(
        orders=means(by_order),
        ahead=means(ahead),
        second_source_saves=means({"saved": saved})["saved"],
    )


def masses_ahead(
    p: Tensor, at: Mapping[str, Tensor], horizontal: int, vertical: Sequence[Tensor]
) -> dict[str, list[float]]:
    """The mass rejected after two drafts, by the horizontal head that drafts the cell: head 1 is the nearest."""
    heads = [at[f"horizontal-{n}"] for n in range(1, horizontal + 1)]
    return {
        "two horizontal drafts": [rejected_mass(p, [q, q])[-1] for q in heads],
        "one horizontal, one vertical": [rejected_mass(p, [q, vertical[0]])[-1] for q in heads],
        "two vertical drafts": [rejected_mass(p, [vertical[0]] * 2)[-1]] * horizontal,
    }


def means(by_image: Mapping[str, list[list[float]]]) -> dict[str, list[Mean]]:
    """The mean over images of each number of each list."""
    return {name: [Mean.of(list(column)) for column in zip(*rows, strict=True)] for name, rows in by_image.items()}


def plot(figure: Any, found: ResidualFigures) -> None:
    """The rejected mass against the number of proposals, and after two drafts against the distance."""
    count, ahead = figure.subplots(1, 2)
    for axes, lines in ((count, found.orders), (ahead, found.ahead)):
        for name, line in lines.items():
            at = range(1, len(line) + 1)
            values, errors = [100 * each.value for each in line], [100 * each.error for each in line]
            axes.errorbar(at, values, errors, marker="o", capsize=3, label=name)
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=8)
    count.set(xlabel="drafts tried at the next cell", ylabel="chance that all of them are rejected, %")
    count.set_xticks(range(1, PROPOSALS + 1))
    count.set_title("the next cell, by the source of the drafts", fontsize=10)
    ahead.set(xlabel="cells ahead of the newest token", ylabel="chance that both drafts are rejected, %")
    ahead.set_xticks(range(1, 1 + max(map(len, found.ahead.values()))))
    ahead.set_title("two drafts, by the distance of the cell", fontsize=10)


RESIDUAL = Study(
    "residual",
    "the mass that stays rejected after one, two and more drafts of one source or of both",
    8,
    one_draw_each,
    measure,
    plot,
    (9, 4),
)
