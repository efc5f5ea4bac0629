"""Time the paced window of `hawk` beside fixed windows, where drafts fail and where they fail in half of an image.

    python benchmarks/changing_drafts.py [LAYERS]

The target has random weights in the shape of Janus-Pro-1B, cut to LAYERS layers (default 2), with weights in float16.
A draft is the token of plain AR with a set chance and a wrong token otherwise. All windows take turns in one process,
every image has the tokens of plain AR, and medians count. The last line of output is JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import replace

import torch

from hawk.decoding.grid import Grid
from hawk.decoding.planning import step_seconds
from hawk.decoding.tree import Window
from hawk.decoding.window import WindowState
from hawk.drafters.methods import METHODS, UNTRAINED, build_drafter
from hawk.machine import machine_facts
from hawk.measure.published import MadeUp, janus_pro
from hawk.measure.targets import Drawn, drawn_by_window, given_drafts

GRID = Grid(8, 24)
ROUNDS = 2
FIXED = (0, 1, 3, 7, 11, 15)
CHANCES = {"no draft is right": (0.0, 0.0), "right above": (0.9, 0.02), "right below": (0.02, 0.9)}
"""The chance of a draft to be right in the upper and in the lower half of the image."""


def drawn(made: MadeUp, window: Window, truth: torch.Tensor, halves: tuple[float, float], seed: int) -> Drawn:
    """Draw the image whose tokens are `truth` from drafts that are right with one chance in each half."""
    generator = torch.Generator().manual_seed(seed)
    chance = torch.tensor(halves).repeat_interleave(GRID.size // 2)

    def give(state: WindowState, reach: int) -> None:
        first = int(state.committed)
        expected = truth[first : first + reach]
        drafts = given_drafts(expected, made.target.vocab_size, chance[first : first + reach], generator)
        state.tokens[0, first : first + len(drafts)] = drafts

    found = drawn_by_window(made, window, GRID, seed, give)
    assert torch.equal(found.tokens, truth), "the image is not that of plain AR"
    return replace(found, tokens=None)


def main(layers: int) -> None:
    """Print a line for each case, and the JSON."""
    made = janus_pro(GRID, torch.float16, layers=layers)
    costs = step_seconds(made.target, UNTRAINED.fused.widths, 5)
    fused = UNTRAINED.fused.at_costs(costs, "here", paced=True)
    paced = build_drafter(METHODS["hawk"], replace(UNTRAINED, fused=fused), made.target)
    assert isinstance(paced, Window)
    windows = {"paced": paced, **{f"fixed {reach}": Window(reach) for reach in FIXED}}
    seconds: dict[str, dict[str, float]] = {}
    truths = [drawn_by_window(made, Window(0), GRID, seed).tokens for seed in range(ROUNDS)]
    for case, halves in CHANCES.items():
        found: dict[str, list[Drawn]] = {name: [] for name in windows}
        for seed, truth in enumerate(truths):
            assert truth is not None
            for name, window in windows.items():
                found[name].append(drawn(made, window, truth, halves, seed))
        seconds[case] = {name: statistics.median(one.seconds_per_token for one in found[name]) for name in windows}
        shown = ", ".join(f"{name} {1000 * value:.1f}" for name, value in seconds[case].items())
        print(f"{case}, ms a token: {shown}", flush=True)
    facts = {"layers": layers, "rounds": ROUNDS, "grid": [GRID.height, GRID.width], "step_seconds": costs}
    print(json.dumps({"seconds_per_token": seconds, **facts, **machine_facts(torch.device("cpu"), "float16")}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
