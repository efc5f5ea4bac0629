"""Estimate the seconds of an image on a GPU, from measured accept lengths and the seconds of a step there.

    python benchmarks/expected_at.py             # shortest possible steps, from data sheets
    python benchmarks/expected_at.py steps.json  # steps measured by `hawk bench --suite steps --json-out steps.json`

A step reads every weight once, and multiplies it with every row; under guidance a node has two rows. The step takes at
least the longer of the two times. The estimate is a lower bound, not a forecast: kernels reach 60 to 90 % of a GPU's
bandwidth or arithmetic, and the time to launch them is added.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

NODES = 64
"""Nodes of a step of `hawk`, with a window of 63 drafts."""

ACCEPT_LENGTHS = {"bundled model": 8.8, "Lumina-mGPT, as SCD reports it": 2390 / 568}
"""Tokens committed per step at that window. The first is measured on the bundled model, which is predictable
(temperature 0.2); the second is from arXiv 2510.24211, for the same kind of decoding of a model of 7 billion weights at
temperature 1."""


@dataclass(frozen=True)
class Workload:
    """A target and its images: weights that a forward multiplies with, and forwards of plain decoding per image."""

    name: str
    weights: float
    forwards: int


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet: bytes per second of its memory, bfloat16 operations per second without sparsity."""

    name: str
    bandwidth: float
    operations: float


def llama(layers: int, width: int, hidden: int, head: float) -> float:
    """Number of weights of a decoder with as many key heads as query heads: attention, SwiGLU and output `head`."""
    return layers * (4 * width**2 + 3 * width * hidden) + head


WORKLOADS = (
    Workload("LlamaGen-XL, 24x24", llama(36, 1280, 3584, 1280 * 16384), 576),
    Workload("LlamaGen-XL, 32x32", llama(36, 1280, 3584, 1280 * 16384), 1024),
    Workload("Janus-Pro-7B, 24x24", llama(30, 4096, 11008, 4096 * 4096 + 4096 * 16384), 576),
    Workload("Lumina-mGPT-7B, 48x48", llama(32, 4096, 11008, 4096 * 65536), 48 * 48),
)
CARDS = (
    Card("H100 SXM", 3.35e12, 989e12),
    Card("RTX 4090", 1.008e12, 165e12),
    Card("RTX 3090", 0.936e12, 71e12),
)


def floor(work: Workload, card: Card, nodes: int) -> float:
    """Fewest seconds that a guided step over that many nodes can take, with weights in bfloat16."""
    return max(2 * work.weights / card.bandwidth, 2 * work.weights * 2 * nodes / card.operations)


def table(work: Workload, where: str, one: float, wide: float) -> list[str]:
    """Rows of the table, one for each accept length.

    `one` is the seconds of a step of one node, `wide` those of a step of `NODES` nodes.
    """
    rows = []
    for source, accept in ACCEPT_LENGTHS.items():
        plain, hawk = work.forwards * one, work.forwards / accept * wide
        cells = (work.name, where, f"{1000 * one:.2f}", f"{1000 * wide:.2f}", f"{accept:.1f} ({source})")
        rows.append("| " + " | ".join((*cells, f"{plain:.2f}", f"{hawk:.2f}", f"{plain / hawk:.1f}x")) + " |")
    return rows


def measured(path: Path) -> list[str]:
    """Rows of the table from a result of the steps suite."""
    document = json.loads(path.read_text(encoding="utf-8"))
    where = document["environment"]["processor"]
    alone = [c for c in document["costs"] if c["images"] == 1]
    steps = {(c["target"], *c["grid"], c["nodes"]): c["step"] + c["noise"] for c in alone}
    rows = []
    for target, height, width, nodes in steps:
        wide = steps.get((target, height, width, NODES))
        if nodes == 1 and wide:
            work = Workload(f"{target}, {height}x{width}", 0.0, height * width)
            rows += table(work, where, steps[target, height, width, 1], wide)
    return rows


def main() -> None:
    """Print the table as Markdown."""
    head = ("target", "where", "ms, 1 node", f"ms, {NODES} nodes", "tokens a step", "s, plain", "s, hawk", "times")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    if len(sys.argv) > 1:
        rows = measured(Path(sys.argv[1]))
    else:
        rows = [
            row
            for work in WORKLOADS
            for card in CARDS
            for row in table(work, card.name, floor(work, card, 1), floor(work, card, NODES))
        ]
    print("\n".join(rows))


if __name__ == "__main__":
    main()
