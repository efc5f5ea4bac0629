"""What an image would take on a GPU: measured accept lengths times the least that a step can take there.

    python benchmarks/expected_at.py             # floors, from the data sheets' bandwidth and arithmetic
    python benchmarks/expected_at.py steps.json  # what `hawk bench --suite steps --json-out steps.json` measured there

A step reads every weight once and multiplies each with every row (a node is two rows under guidance); it takes at least
the longer of the two. A floor is no forecast: kernels reach 60 to 90 % of either, and launches come on top.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

NODES = 64
"""Of a step of `hawk`: a window of 63 drafts."""

ACCEPT_LENGTHS = {"bundled model": 8.8, "Lumina-mGPT, as SCD reports it": 2390 / 568}
"""Tokens a step at that window: measured here on the bundled model (a predictable one, temperature 0.2), and the figure
that arXiv 2510.24211 gives for the same kind of decoding on a model of 7 billion weights at temperature 1."""


@dataclass(frozen=True)
class Shape:
    """A target: weights that a forward multiplies with, and forwards of plain decoding an image."""

    name: str
    weights: float
    forwards: int


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet: bytes a second of memory, bfloat16 operations a second without sparsity."""

    name: str
    bandwidth: float
    operations: float


def llama(layers: int, width: int, hidden: int, head: float) -> float:
    """Weights of a decoder without grouped keys: attention, SwiGLU, output head."""
    return layers * (4 * width**2 + 3 * width * hidden) + head


SHAPES = (
    Shape("LlamaGen-XL, 24x24", llama(36, 1280, 3584, 1280 * 16384), 576),
    Shape("LlamaGen-XL, 32x32", llama(36, 1280, 3584, 1280 * 16384), 1024),
    Shape("Janus-Pro-7B, 24x24", llama(30, 4096, 11008, 4096 * 4096 + 4096 * 16384), 576),
    Shape("Lumina-mGPT-7B, 48x48", llama(32, 4096, 11008, 4096 * 65536), 48 * 48),
)
CARDS = (
    Card("H100 SXM", 3.35e12, 989e12),
    Card("RTX 4090", 1.008e12, 165e12),
    Card("RTX 3090", 0.936e12, 71e12),
)


def floor(shape: Shape, card: Card, nodes: int) -> float:
    """Least seconds of a guided step over that many nodes, weights in bfloat16."""
    return max(2 * shape.weights / card.bandwidth, 2 * shape.weights * 2 * nodes / card.operations)


def table(shape: Shape, where: str, one: float, wide: float) -> list[str]:
    """A row for each accept length: seconds of one node's step and of a window's, and of the images."""
    rows = []
    for source, accept in ACCEPT_LENGTHS.items():
        plain, hawk = shape.forwards * one, shape.forwards / accept * wide
        cells = (shape.name, where, f"{1000 * one:.2f}", f"{1000 * wide:.2f}", f"{accept:.1f} ({source})")
        rows.append("| " + " | ".join((*cells, f"{plain:.2f}", f"{hawk:.2f}", f"{plain / hawk:.1f}x")) + " |")
    return rows


def measured(path: Path) -> list[str]:
    """Rows from a result of the steps suite."""
    document = json.loads(path.read_text(encoding="utf-8"))
    where = document["environment"]["processor"]
    steps = {(c["target"], *c["grid"], c["nodes"]): c["step"] + c["noise"] for c in document["costs"]}
    rows = []
    for target, height, width, nodes in steps:
        wide = steps.get((target, height, width, NODES))
        if nodes == 1 and wide:
            shape = Shape(f"{target}, {height}x{width}", 0.0, height * width)
            rows += table(shape, where, steps[target, height, width, 1], wide)
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
            for shape in SHAPES
            for card in CARDS
            for row in table(shape, card.name, floor(shape, card, 1), floor(shape, card, NODES))
        ]
    print("\n".join(rows))


if __name__ == "__main__":
    main()
