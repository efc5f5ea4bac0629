"""What a step costs on this machine: a target's steps, timed by their number of nodes, and where the times are kept."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from pydantic import Field, TypeAdapter, ValidationError
from tqdm import tqdm

from hawk.decoding.forward import Target
from hawk.decoding.grid import Grid
from hawk.decoding.memory import refused_where_memory_ends
from hawk.decoding.recording import Engine, on_device, recorded
from hawk.decoding.request import Condition, Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.decoding.window import WindowState, advance, first_window, hold
from hawk.files import read_cache, write_json
from hawk.machine import seconds_of

Seconds = Annotated[float, Field(gt=0, lt=86_400, allow_inf_nan=False)]
"""What a step can take; a file may say anything."""

WIDTHS = (1, 4, 8, 16)
"""Nodes of the steps that are always timed, beside the windows to choose from."""


@runtime_checkable
class TimedTarget(Target, Protocol):
    """A target whose steps can be timed.

    `dtype` is that of its matrix products, keys and values, `weight_dtype` that of its layers' weights.
    """

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def weight_dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def grid(self) -> Grid: ...

    def blank_prompt(self) -> Condition:
        """A prompt of one image that means nothing: forwards are timed behind it."""
        ...


def costs_file() -> Path:
    """The file that keeps measured costs: in $HAWK_CACHE, or else in the user's cache folder."""
    cache = os.environ.get("HAWK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hawk"
    return Path(cache) / "step-costs.json"


@dataclass(frozen=True)
class StepCosts:
    """Seconds of a step by its number of nodes, and the day of the measurement.

    The day is None for costs of earlier versions, which kept no day.
    """

    seconds: dict[Annotated[int, Field(ge=1)], Seconds]
    measured: date | None = None

    def at(self, widths: list[int]) -> dict[int, float] | None:
        """Seconds of each of these numbers of nodes; None if one of them was not timed."""
        if not self.seconds.keys() >= set(widths):
            return None
        return {width: self.seconds[width] for width in widths}


def known_seconds(
    key: str, widths: list[int], measure: Callable[[], dict[int, float]], anew: bool = False
) -> dict[int, float]:
    """Seconds by width, from `costs_file` if it holds all `widths` under `key`; else measured, and kept there.

    `anew` measures in any case. The file is a cache: an unreadable file is measured anew, and a file that cannot be
    written is left out.
    """
    known = kept_costs()
    kept = known[key].at(widths) if key in known and not anew else None
    if kept is not None:
        return kept
    seconds = measure()
    logging.getLogger(__name__).info("timed steps of %s: %s", key, seconds)
    costs = known | {key: StepCosts(seconds, date.today())}
    with suppress(OSError):
        write_json(costs_file(), TypeAdapter(dict[str, StepCosts]).dump_python(costs, mode="json"))
    return seconds


def kept_costs() -> dict[str, StepCosts]:
    """The costs in `costs_file` by their key, without entries that no clock can have measured."""
    known = {}
    for key, entry in read_cache(costs_file()).items():
        with suppress(ValidationError):
            # The entries of earlier versions are the seconds alone.
            dated = entry if isinstance(entry, dict) and "seconds" in entry else {"seconds": entry}
            known[key] = TypeAdapter(StepCosts).validate_python(dated)
    return known


@torch.inference_mode()
def step_seconds(target: TimedTarget, widths: list[int], repeats: int, engine: Engine = "eager") -> dict[int, float]:
    """Seconds of a guided step of window decoding over n nodes, for each n of `widths`, measured by turns.

    The steps are timed in the middle of an image. The shortest of `repeats` times counts, since other programs can only
    lengthen a step. Raises `HawkError` where the memory is too small.
    """
    lower = "load the model in bfloat16, or draw with a method that times no steps (ar, scd)"
    if engine != "eager":
        lower = f"choose --engine eager, {lower}"
    with refused_where_memory_ends(f"steps cannot be timed, so {lower}"):
        return _least_seconds(target, widths, repeats, engine)


def _least_seconds(target: TimedTarget, widths: list[int], repeats: int, engine: Engine) -> dict[int, float]:
    start = MidImage.of(target, target.grid, SamplingParams(cfg_scale=2.0), max(widths) - 1, engine)
    seconds: dict[int, list[float]] = {nodes: [] for nodes in widths}
    steps = {nodes: partial(advance, target, start.state, nodes - 1) for nodes in widths}
    device, pool = start.state.tokens.device, None
    if engine != "eager" and device.type == "cuda":
        pool = torch.cuda.graph_pool_handle()
    # The bar is on stderr, and only on a terminal. To record the steps of an engine may take minutes.
    with tqdm(desc="timing steps", unit="step", total=(repeats + 2) * len(steps), disable=None, leave=False) as bar:
        calls = {}
        for nodes, step in steps.items():
            calls[nodes] = recorded(step, engine, device, pool)
            bar.update()
        for turn in range(repeats + 1):
            for nodes, call in calls.items():
                taken = start.seconds(call)
                bar.update()
                if turn:  # the first turn is a warm-up
                    seconds[nodes].append(taken)
    return {nodes: min(runs) for nodes, runs in seconds.items()}


@dataclass(frozen=True)
class MidImage:
    """A state in the middle of its images, to which the clock returns before each timed call.

    The cache holds no real tokens there; the time of a step does not depend on them.
    """

    state: WindowState
    prompt: list[int]

    @classmethod
    def of(cls, target: TimedTarget, grid: Grid, params: SamplingParams, reach: int, engine: Engine) -> MidImage:
        """Make the state of one image after a blank prompt, with the noise drawn, in the form that the engine runs."""
        return cls.behind(target, Request(target.blank_prompt(), grid, params, [0]), reach, engine)

    @classmethod
    @torch.inference_mode()
    def behind(cls, target: TimedTarget, request: Request, reach: int, engine: Engine) -> MidImage:
        """Make the state after the prompts of a request; all of its images are in their middle."""
        state = first_window(target, request, Window(reach))
        here = cls(state if engine == "eager" else on_device(state), list(state.cache.lengths))
        hold(here.state, [request.grid.size // 2] * request.images)
        here.rewind()
        return here

    def rewind(self) -> None:
        """Return to the middle of the images."""
        middle = self.state.grid.size // 2
        self.state.committed.fill_(middle)
        self.state.steps.fill_(1)
        self.state.cache.rewind([length + middle - 1 for length in self.prompt])

    @torch.inference_mode()
    def seconds(self, call: Callable[[], Any]) -> float:
        """Wall-clock seconds of one call that starts in the middle of the images."""
        self.rewind()
        return seconds_of(call, self.state.tokens.device)
