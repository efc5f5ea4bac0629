"""Prove and measure Hawk on a GPU, part by part; made for a GPU that is at hand for minutes only.

    python scripts/on_a_gpu.py --out results                        # every part
    python scripts/on_a_gpu.py --out results --parts verify steps   # some parts
    python scripts/on_a_gpu.py --out results --device cpu --tiny    # a rehearsal

Each result is printed as one line of JSON and written at once to OUT/PART.json, so that a run that is cut short leaves
what it found. A failure is a result, too: it is recorded, and the next job runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from hawk import HawkPipeline
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.planning import step_seconds
from hawk.decoding.recording import Engine, Recordings
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.machine import machine_facts, seconds_of
from hawk.measure.prompts import BENCH_PROMPTS
from hawk.measure.published import janus_pro
from hawk.measure.scaling import SHAPES, image_costs, made_up_target
from hawk.measure.steps import copy_bandwidth, costs_by_reach, made_up_request
from hawk.proofs.suite import prove_on_model

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
Job = Callable[[], Iterator[Row]]


@dataclass(frozen=True)
class Settings:
    """Where and on what the parts run; `tiny` makes every part as small as it can be, for a rehearsal."""

    device: torch.device
    model: str
    out: Path
    tiny: bool

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines of the device; the first one is measured at every point, the others at some."""
        return ("graph", "eager", "compiled") if self.device.type == "cuda" else ("eager",)

    def pipe(self, dtype: str, engine: Engine) -> HawkPipeline:
        """The model on the device."""
        return HawkPipeline.from_pretrained(self.model, self.device, dtype, engine=engine)


def verify(settings: Settings) -> Iterator[Job]:
    """How many of the model's own images keep which level of "the same image", in each dtype."""

    def checks(dtype: str) -> Iterator[Row]:
        pipe = settings.pipe(dtype, settings.engines[0])
        for check in prove_on_model(pipe, BENCH_PROMPTS[: 1 if settings.tiny else 8]):
            yield {"dtype": dtype, "engine": pipe.engine, **asdict(check)}

    for dtype in ("float32",) if settings.tiny else ("bfloat16", "float32", "float16"):
        yield partial(checks, dtype)


def tests(settings: Settings) -> Iterator[Job]:
    """The tests that need a GPU: all engines but "compiled", and then "compiled" in float32 without type checks."""

    def passed(name: str, chosen: str, environment: dict[str, str]) -> Iterator[Row]:
        command = [sys.executable, "-m", "pytest", "-q", "tests/test_cuda.py", "-k", chosen]
        log = settings.out / f"tests-{name}.log"
        with log.open("w") as output:
            code = subprocess.call(command, cwd=ROOT, env=os.environ | environment, stdout=output, stderr=output)
        yield {"tests": name, "exit_code": code, "said": log.read_text().strip().splitlines()[-1:]}

    yield partial(passed, "eager-and-graph", "not compiled", {})
    yield partial(passed, "compiled", "compiled and float32", {"HAWK_NO_TYPECHECK": "1"})


def draw(settings: Settings) -> Iterator[Job]:
    """Seconds for an image of the model from prompt to pixels, by method, images at once, and engine."""

    def seconds(engine: Engine, batch: int) -> Iterator[Row]:
        pipe, repeats = settings.pipe("auto", engine), 1 if settings.tiny else 5
        for cost in image_costs(pipe, BENCH_PROMPTS[0], "batch", batch, repeats, batch, ("ar", "scd", "hawk")):
            yield {"engine": engine, "dtype": pipe.dtype, **asdict(cost), **peak_memory(settings.device)}

    for batch in (1,) if settings.tiny else (1, 4, 16):
        yield partial(seconds, settings.engines[0], batch)
    for engine in settings.engines[1:]:
        yield partial(seconds, engine, 1)


def steps(settings: Settings) -> Iterator[Job]:
    """Seconds of a step and of its parts: the model's shape and large shapes, random weights, with guidance."""
    device, copied = settings.device, 1 << (10 if settings.tiny else 30)

    def costs(name: str, engine: Engine) -> Iterator[Row]:
        shape = SHAPES.get(name) or settings.pipe("auto", "eager").model.target.config
        target, bandwidth = made_up_target(shape, device), copy_bandwidth(device, copied)
        grid, first = Grid(24, 24) if name in SHAPES else target.grid, engine == settings.engines[0]
        few, many = ((0, 3), (0, 3)) if settings.tiny else ((0, 31), (0, 7, 15, 31, 63, 127))
        for images, reach in product((1, 4) if first else (1,), many if first else few):
            request = made_up_request(target, grid, SamplingParams(cfg_scale=2.0), images)
            for cost in costs_by_reach(target, name, request, {reach: 0.0}, bandwidth, 7, engine):
                yield {"engine": engine, "bandwidth": bandwidth, **asdict(cost), **peak_memory(device)}

    for name, engine in product(("model",) if settings.tiny else ("model", "775M", "7B"), settings.engines):
        yield partial(costs, name, engine)


def beside(settings: Settings) -> Iterator[Job]:
    """Hawk and transformers' own `generate` on Janus-Pro's shapes, with random weights in bfloat16."""
    grid = Grid(2, 8) if settings.tiny else Grid(24, 24)
    dtype = torch.float32 if settings.device.type == "cpu" else torch.bfloat16

    def pair(name: str, **sizes: int) -> Iterator[Row]:
        made, engine = janus_pro(grid, dtype, settings.device, **sizes), settings.engines[0]
        for turn in range(2):  # the first one is a warm-up
            marks = made.generate(grid.size, turn)
        yield {"target": name, "by": "transformers", "ms_a_token": 1000 * (marks[-1] - marks[0]) / (len(marks) - 1)}
        recordings, request = Recordings(engine), Request(made.prompt, grid, made.params, [0])
        plain = partial(generate, made.target, request, Window(0), recordings=recordings)
        plain()
        token = 1000 * seconds_of(plain, settings.device) / grid.size
        yield {"target": name, "by": "hawk, plain AR", "ms_a_token": token, **peak_memory(settings.device)}
        cost = step_seconds(made.target, [1, 4] if settings.tiny else [1, 8, 16, 32, 64], 5, engine)
        yield {"target": name, "by": "hawk", "step_ms": {nodes: 1000 * each for nodes, each in cost.items()}}

    if settings.tiny:
        yield partial(pair, "tiny Janus", layers=1, width=128, codes=64)
    else:
        yield partial(pair, "Janus-Pro-1B")
        yield partial(pair, "Janus-Pro-7B", layers=30, width=4096)


def trace(settings: Settings) -> Iterator[Job]:
    """What the host and the GPU do while `hawk` draws one image, the waits of the host among it."""

    def profiled() -> Iterator[Row]:
        pipe = settings.pipe("auto", settings.engines[0])
        pipe(BENCH_PROMPTS[0], seed=0, method="scd")
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if settings.device.type == "cuda" else [])]
        with profile(activities=activities) as profiler:
            output = pipe(BENCH_PROMPTS[0], seed=1, method="scd")
        waits = Counter(e.name for e in profiler.events() if "ynchronize" in e.name or "local_scalar" in e.name)
        longest = sorted(profiler.key_averages(), key=lambda each: -each.self_device_time_total)[:10]
        profiler.export_chrome_trace(str(settings.out / "trace.json.gz"))
        kernels = {each.key[:80]: each.self_device_time_total / 1000 for each in longest}
        yield {"forwards": output.nfe, "waits_of_the_host": dict(waits), "kernels_ms": kernels}

    yield profiled


PARTS = {"verify": verify, "tests": tests, "draw": draw, "steps": steps, "beside": beside, "profile": trace}


def peak_memory(device: torch.device) -> Row:
    """The most bytes that PyTorch has held on the GPU since this function was last called; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return {"peak_bytes": peak}


def run_part(name: str, settings: Settings) -> list[Row]:
    """Run the jobs of a part; every row is printed and written as soon as it is there."""
    rows: list[Row] = []
    started, facts = time.perf_counter(), machine_facts(settings.device, "as in each row")

    def add(row: Row) -> None:
        rows.append(row)
        print(f"[{time.perf_counter() - started:6.1f}s] {name} {json.dumps(row)}", flush=True)
        document = json.dumps({"environment": facts, "tiny": settings.tiny, name: rows}, indent=1)
        (settings.out / f"{name}.json").write_text(document + "\n", encoding="utf-8")

    for job in PARTS[name](settings):
        try:
            for row in job():
                add(row)
        except Exception as error:  # a failure of any kind is a result, and the next job must run
            add({"error": f"{type(error).__name__}: {error}", "where": traceback.format_exc()[-600:]})
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the parts asked for; the exit code is 1 if a job failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, made if need be")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--model", default="bundled", help="a LlamaGen model: a folder, or the bundled one")
    parser.add_argument("--tiny", action="store_true", help="as small as can be: a rehearsal")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(given.device, given.model, given.out, given.tiny)
    failed = [row for name in given.parts for row in run_part(name, settings) if "error" in row]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
