"""Prove and measure Hawk on a GPU, part by part; made for a GPU that is at hand for minutes only.

    python scripts/on_a_gpu.py --out results                                    # every part
    python scripts/on_a_gpu.py --out results --device cpu --tiny --parts steps  # a rehearsal of one part

Each result is printed as one line and written at once to OUT/PART.json, so that a run that is cut short leaves what it
found. A failure is a result, too: it is recorded, and the next job runs.
"""

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

from hawk import HawkPipeline
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.planning import step_seconds
from hawk.decoding.recording import Engine, Recordings
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.drafters.methods import METHODS
from hawk.drafters.settings import TreeLimits
from hawk.engine import DrawingEngine
from hawk.machine import machine_facts, seconds_of
from hawk.measure.prompts import BENCH_PROMPTS
from hawk.measure.published import janus_pro
from hawk.measure.scaling import SHAPES, image_costs, made_up_target
from hawk.measure.steps import copy_bandwidth, costs_by_reach, made_up_request
from hawk.proofs.suite import prove_on_model, window_of

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("verify", "tests", "draw", "lanes", "steps", "beside", "profile")
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


def jobs(settings: Settings) -> dict[str, list[Job]]:
    """The jobs of each part, in the order in which they run."""
    names, dtypes, batches = ("model", "775M", "7B"), ("bfloat16", "float32", "float16"), (1, 4, 16)
    januses: dict[str, dict[str, int]] = {"1B": {}, "7B": {"layers": 30, "width": 4096}}
    if settings.tiny:
        names, dtypes, batches = names[:1], ("float32",), (1,)
        januses = {"tiny": {"layers": 1, "width": 128, "codes": 64}}
    drawn = [*product(settings.engines[:1], batches), *product(settings.engines[1:], [1])]
    return {
        "verify": [partial(verify, settings, dtype) for dtype in dtypes],
        "tests": [partial(tests, settings, chosen) for chosen in ("not compiled", "compiled and float32")],
        "draw": [partial(draw, settings, *each) for each in drawn],
        "lanes": [partial(lanes, settings, dtype) for dtype in dtypes[:2]],
        "steps": [partial(steps, settings, *each) for each in product(names, settings.engines)],
        "beside": [partial(beside, settings, name, **sizes) for name, sizes in januses.items()],
        "profile": [partial(trace, settings)],
    }


def verify(settings: Settings, dtype: str) -> Iterator[Row]:
    """How many of the model's own images keep which level of "the same image"."""
    pipe = settings.pipe(dtype, settings.engines[0])
    for check in prove_on_model(pipe, BENCH_PROMPTS[: 1 if settings.tiny else 8]):
        yield {"dtype": dtype, "engine": pipe.engine, **asdict(check)}


def tests(settings: Settings, chosen: str) -> Iterator[Row]:
    """The tests that need a GPU, chosen by name; those of the engine "compiled" run without type checks."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_cuda.py", "-k", chosen]
    environment = os.environ | ({} if chosen.startswith("not") else {"HAWK_NO_TYPECHECK": "1"})
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    code, said = ended.returncode, ended.stdout[-4000:]
    failed = {"error": f"pytest ended with {code}", "where": said} if code else {}
    yield {"tests": chosen, "said": said.strip().splitlines()[-1:]} | failed


def draw(settings: Settings, engine: Engine, batch: int) -> Iterator[Row]:
    """Seconds for an image of the model from prompt to pixels, by method."""
    pipe, prompt, repeats = settings.pipe("auto", engine), BENCH_PROMPTS[0], 1 if settings.tiny else 5
    for cost in image_costs(pipe, prompt, "batch", batch, repeats, batch, ("ar", "scd", "hawk")):
        yield {"engine": engine, "dtype": pipe.dtype, **asdict(cost), **peak_memory(settings.device)}


def lanes(settings: Settings, dtype: str) -> Iterator[Row]:
    """Images of a queue by `hawk`, or by `scd` if `hawk` drafts trees, which share no lane.

    All are there at the start, or arrive one by one; and the rows say how many are as if drawn alone.
    """
    pipe, images, together = settings.pipe(dtype, settings.engines[0]), *((4, 2) if settings.tiny else (64, 16))
    target, recorded = pipe.model.target, pipe.recordings
    drafter = pipe.drafter_for(METHODS["hawk"], TreeLimits(), "coupled")
    window = drafter if isinstance(drafter, Window) else window_of(pipe)[1]
    texts = BENCH_PROMPTS[: 1 if settings.tiny else None]
    prompts = [texts[number % len(texts)] for number in range(images)]
    requests = [
        Request(pipe.condition([prompt]), pipe.model.grid, pipe.defaults, [i]) for i, prompt in enumerate(prompts)
    ]
    engines = {
        "one by one": partial(DrawingEngine[int], target, 1, recorded, known=True),
        "lanes, replayed": partial(DrawingEngine[int], target, together, recorded),
        "lanes, step by step": partial(DrawingEngine[int], target, together),
    }
    alone = queued(engines["one by one"](), requests, window).tokens
    for how, engine in engines.items():
        queued(engine(), requests, window)  # a warm-up, in which the steps are recorded
        for every in (0.0, 0.02):
            done = queued(engine(), requests, window, every)
            same = sum(torch.equal(tokens, alone[key]) for key, tokens in done.tokens.items())
            waits = sorted(done.waits)
            row: Row = {"dtype": dtype, "how": how, "places": together, "images": images, "arriving_every_s": every}
            row |= {"images_per_second": images / done.seconds, "wait_median_s": waits[images // 2]}
            yield row | {"wait_95_s": waits[images * 95 // 100], "same_as_alone": same, "window": window.max_nodes - 1}


@dataclass(frozen=True)
class Queued:
    """The tokens of the images of a queue, the seconds that each of them took from its arrival, and all seconds."""

    tokens: dict[int, torch.Tensor]
    waits: list[float]
    seconds: float


def queued(engine: DrawingEngine[int], requests: list[Request], drafter: Any, every: float = 0.0) -> Queued:
    """Draw the image of each request, one of which arrives `every` so many seconds."""
    tokens, waits, arrived, started = {}, [], 0, time.perf_counter()
    while len(tokens) < len(requests):
        while arrived < len(requests) and time.perf_counter() - started >= every * arrived:
            engine.submit([arrived], requests[arrived], drafter)
            arrived += 1
        for ended in engine.step() if engine.busy else ():
            tokens[ended.key] = ended.generation.tokens.cpu()
            waits.append(time.perf_counter() - started - every * ended.key)
    return Queued(tokens, waits, time.perf_counter() - started)


def steps(settings: Settings, name: str, engine: Engine) -> Iterator[Row]:
    """Seconds of a step and of its parts: the model's shape or a large one, random weights, with guidance."""
    device, first = settings.device, engine == settings.engines[0]
    shape = SHAPES.get(name) or settings.pipe("auto", "eager").model.target.config
    target, bandwidth = made_up_target(shape, device), copy_bandwidth(device, 1 << (10 if settings.tiny else 30))
    grid = Grid(24, 24) if name in SHAPES else target.grid
    reaches = (0, 3) if settings.tiny else (0, 7, 15, 31, 63, 127) if first else (0, 31)
    for images, reach in product((1, 4) if first else (1,), reaches):
        request = made_up_request(target, grid, SamplingParams(cfg_scale=2.0), images)
        for cost in costs_by_reach(target, name, request, {reach: 0.0}, bandwidth, 7, engine):
            yield {"engine": engine, "bandwidth": bandwidth, **asdict(cost), **peak_memory(device)}


def beside(settings: Settings, name: str, **sizes: int) -> Iterator[Row]:
    """Hawk and transformers' own `generate` on a shape of Janus-Pro, random weights; the memory holds both copies."""
    device, engine, grid = settings.device, settings.engines[0], Grid(2, 8) if settings.tiny else Grid(24, 24)
    made = janus_pro(grid, torch.float32 if device.type == "cpu" else torch.bfloat16, device, **sizes)
    for turn in range(2):  # the first one is a warm-up
        marks = made.generate(grid.size, turn)
    token = 1000 * (marks[-1] - marks[0]) / (len(marks) - 1)
    yield {"janus": name, "by": "transformers", "ms_a_token": token, **peak_memory(device)}
    request = Request(made.prompt, grid, made.params, [0])
    plain = partial(generate, made.target, request, Window(0), recordings=Recordings(engine))
    plain()  # a warm-up, in which the step is recorded
    token = 1000 * seconds_of(plain, device) / grid.size
    yield {"janus": name, "by": "hawk, plain AR", "ms_a_token": token, **peak_memory(device)}
    cost = step_seconds(made.target, [1, 4] if settings.tiny else [1, 8, 16, 32, 64], 5, engine)
    yield {"janus": name, "by": "hawk", "step_ms": {nodes: 1000 * each for nodes, each in cost.items()}}


def trace(settings: Settings) -> Iterator[Row]:
    """What the host and the GPU do while `scd` draws one image, and how often the host waits."""
    pipe = settings.pipe("auto", settings.engines[0])
    pipe(BENCH_PROMPTS[0], seed=0, method="scd")  # a warm-up, in which the step is recorded
    with torch.profiler.profile() as profiler:
        output = pipe(BENCH_PROMPTS[0], seed=1, method="scd")
    waits = Counter(e.name for e in profiler.events() if "ynchronize" in e.name or "local_scalar" in e.name)
    longest = sorted(profiler.key_averages(), key=lambda each: -each.self_device_time_total)[:10]
    profiler.export_chrome_trace(str(settings.out / "trace.json.gz"))
    kernels = {each.key[:80]: each.self_device_time_total / 1000 for each in longest}
    yield {"forwards": output.nfe, "waits_of_the_host": dict(waits), "kernels_ms": kernels}


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
    started, facts = time.perf_counter(), machine_facts(settings.device, "see the rows")

    def add(row: Row) -> None:
        rows.append(row)
        print(f"[{time.perf_counter() - started:6.1f}s] {name} {json.dumps(row)}", flush=True)
        document = json.dumps({"environment": facts, "tiny": settings.tiny, name: rows}, indent=1)
        (settings.out / f"{name}.json").write_text(document + "\n", encoding="utf-8")

    for job in jobs(settings)[name]:
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
    rows = [row for name in given.parts for row in run_part(name, settings)]
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
