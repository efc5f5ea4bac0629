"""What a draft node costs here: forwards of a target timed against their width, and the tree size that follows."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch

from hawk.drafters.pool import FusedSettings
from hawk.machine import machine_name, synchronize
from hawk.model import ImageTarget

WIDTHS = (1, 4, 8, 16)


def settings_for(settings: FusedSettings, target: ImageTarget) -> FusedSettings:
    """The pool's settings with the node cost of this machine; those measured here already are taken as they are.

    Times a few forwards (a fraction of a second). Everything of a step that is no forward is taken to be in the same
    proportion to it as where the pool was fitted.
    """
    here = machine_name(target.device, target.dtype)
    if settings.measured_on in ("", here):
        return settings
    seconds = forward_seconds(target, WIDTHS, 5)
    slope, intercept = statistics.linear_regression(list(seconds), list(seconds.values()))
    step = max(intercept + slope, 1e-9) * settings.step_over_forward
    return replace(settings, node_cost=max(slope, 0.0) / step, measured_on=here)


@torch.inference_mode()
def forward_seconds(target: ImageTarget, widths: tuple[int, ...], repeats: int) -> dict[int, float]:
    """Median seconds of a guided forward of n nodes in the middle of an image, by turns over the widths."""
    grid, device = target.grid, target.device
    middle = grid.size // 2
    prefilled = target.prefill(target.blank_prompt(), guided=True, capacity=middle + max(widths))
    prefilled.cache.lengths = [length + middle for length in prefilled.cache.lengths]
    seconds: dict[int, list[float]] = {nodes: [] for nodes in widths}
    for turn in range(repeats + 1):
        for nodes, runs in seconds.items():
            tokens = torch.zeros(2, nodes, dtype=torch.long, device=device)
            positions = (middle + torch.arange(nodes, device=device)).clamp(max=grid.size - 1).expand(2, nodes)
            chain = torch.ones(nodes, nodes, dtype=torch.bool, device=device).tril().expand(2, nodes, nodes)
            synchronize(device)
            started = time.perf_counter()
            target.forward_nodes(tokens, positions, chain, prefilled.padding, prefilled.cache, grid)
            synchronize(device)
            if turn:  # the first turn warms up
                runs.append(time.perf_counter() - started)
    return {nodes: statistics.median(runs) for nodes, runs in seconds.items()}
