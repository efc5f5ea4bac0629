"""Load on a server of the bundled model, and memory over many images. Slow: `make slow` runs it."""

import gc
import resource
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hawk.server.config import Limits
from serving import alone, serving

pytestmark = pytest.mark.slow

PROMPTS = ("a red apple on a blue background", "a cat", "a green tree at night", "a green star", "a yellow boat")
CLIENTS, REQUESTS = 8, 10
MOST_GROWTH = 32 * 2**20


def test_8_clients_of_10_requests(unchecked):
    """None is lost, none is wrong; the throughput is printed."""
    asked = [(PROMPTS[seed % len(PROMPTS)], seed) for seed in range(CLIENTS * REQUESTS)]
    with serving("bundled", Limits(per_client=100, timeout=600.0), places=CLIENTS) as served:

        def draw(item):
            prompt, seed = item
            started = time.perf_counter()
            answer = served.post({"prompt": prompt, "seed": seed, "temperature": 1.0}, timeout=600)
            assert answer.status_code == 200, answer.text
            return answer.json()["data"][0]["tokens_sha256"], time.perf_counter() - started

        draw(asked[0])
        started = time.perf_counter()
        one_by_one = [draw(item) for item in asked[: 2 * CLIENTS]]
        sequential = (time.perf_counter() - started) / len(one_by_one)
        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            together = list(pool.map(draw, asked))
        concurrent = (time.perf_counter() - started) / len(together)
    seconds = sorted(each for _, each in together)
    p50, p95 = statistics.median(seconds), seconds[int(0.95 * len(seconds))]
    print(
        f"one by one {sequential:.2f} s an image, {CLIENTS} clients {concurrent:.2f} s; p50 {p50:.2f} p95 {p95:.2f} s"
    )
    assert [sha for sha, _ in together[: 2 * CLIENTS]] == [sha for sha, _ in one_by_one]
    for (prompt, seed), (sha, _) in list(zip(asked, together, strict=True))[2 * CLIENTS :: 8]:
        assert sha == alone("bundled", prompt, seed, temperature=1.0)


def test_memory_stays_flat_over_500_images(saved_model, unchecked):
    def resident() -> int:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    with serving(saved_model, places=8) as served, ThreadPoolExecutor(8) as pool:

        def draw(seed):
            assert served.post({"prompt": "a red apple", "seed": seed, "n": 5, "method": "scd"}).status_code == 200

        list(pool.map(draw, range(20)))
        before = resident()
        list(pool.map(draw, range(100)))
        grown = resident() - before
    print(f"memory grew by {grown / 2**20:.1f} MB over 500 images")
    assert grown < MOST_GROWTH
