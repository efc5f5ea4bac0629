"""Measured efficiency of `hawk batch --num-workers N` on this machine: images per second against those of one worker.

    python benchmarks/workers.py                                   # 1, 2 and 4 workers, three rounds
    python benchmarks/workers.py --workers 1 2 --images 64 --json-out workers.json

Every worker has one thread, so that 1 and 2 workers differ in nothing else. The rounds take turns over the numbers of
workers, and the median of each is printed. A run loads the model in every worker; to leave that out, each round draws a
small job and a large one, and counts the images and the seconds by which they differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hawk.files import write_json

SMALL = 8
"""Images of each worker in the small job."""


def seconds_of(model: str, workers: int, images: int) -> float:
    """Seconds of a job of so many images, one in a block."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder, "prompts.txt")
        prompts.write_text("".join(f"a red apple number {i}\n" for i in range(images)), encoding="utf-8")
        words = ["batch", str(prompts), "--out", str(Path(folder, "out")), "--model", model, "--threads", "1"]
        command = [sys.executable, "-m", "hawk", *words, "--num-workers", str(workers), "--block-size", "1"]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - started


def rate_of(model: str, workers: int, images: int) -> float:
    """Images per second beyond the first `SMALL` of each worker."""
    small = SMALL * workers
    return images / (seconds_of(model, workers, small + images) - seconds_of(model, workers, small))


def main() -> None:
    """Measure, print the table as Markdown, and end with a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="bundled")
    add("--workers", type=int, nargs="+", default=[1, 2, 4])
    add("--images", type=int, default=48, help="images by which the two jobs differ")
    add("--rounds", type=int, default=3)
    add("--json-out", type=Path)
    asked = parser.parse_args()
    rates: dict[int, list[float]] = {workers: [] for workers in asked.workers}
    seconds_of(asked.model, 1, 1)  # the first image with a model on a machine also measures which window is the fastest
    before = os.getloadavg()[0]
    for _ in range(asked.rounds):
        for workers, found in rates.items():
            found.append(rate_of(asked.model, workers, asked.images))
    medians = {workers: statistics.median(found) for workers, found in rates.items()}
    alone = medians[min(medians)] / min(medians)
    print("| workers | images/s | of one worker's, times the workers |\n|---|---|---|")
    for workers, rate in medians.items():
        print(f"| {workers} | {rate:.2f} | {rate / workers / alone:.0%} |")
    document: dict[str, Any] = {
        "model": asked.model,
        "cores": os.cpu_count(),
        "load": [before, os.getloadavg()[0]],
        "images": asked.images,
        "rates": rates,
        "efficiency": {workers: rate / workers / alone for workers, rate in medians.items()},
    }
    if asked.json_out:
        write_json(asked.json_out, document)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
