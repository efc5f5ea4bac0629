"""`hawk batch --ray`: a cluster of several nodes on this machine, whose processes and nodes are killed while they draw.

These tests need the extra `ray`, which CI does not install.
"""

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from test_batch import SMALL, hashes, hawk_batch, refused, summary, write_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra ray)"),
]
SOURCE = Path(__file__).parents[1] / "src"
WORDS = ("apple", "background", "blue", "cat", "green", "on", "red")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(SOURCE),
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
PATIENCE = 240.0
"""Seconds that a busy machine may take for something."""


def wait_until(happened: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@dataclass(frozen=True)
class Process:
    """A process of this machine, its parent, and its command line."""

    pid: int
    parent: int
    words: str


def processes() -> list[Process]:
    """All processes of this machine."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in listed.splitlines()]
    return [Process(int(pid), int(parent), "".join(words)) for pid, parent, *words in lines]


@dataclass
class Node:
    """A node of the cluster: `ray start --block`, and the processes that it started."""

    process: subprocess.Popen

    def processes(self) -> list[Process]:
        """The node's processes, each after the one that started it."""
        every = processes()
        found = [each for each in every if each.pid == self.process.pid]
        for process in found:
            found += [each for each in every if each.parent == process.pid]
        return found

    def workers(self) -> list[int]:
        """The processes that draw."""
        return [each.pid for each in self.processes() if each.words.startswith("ray::MapWorker")]

    def kill(self) -> None:
        """End all processes of the node at once, as a machine that loses its power."""
        for process in self.processes():
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


@dataclass
class Cluster:
    """A head without CPUs to draw on, and nodes with one CPU each."""

    folder: Path
    port: int = field(default_factory=free_port)
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, *words: str) -> Node:
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats", *words]
        log = (self.folder / f"node{len(self.nodes)}.log").open("wb")
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(Node(process))
        return self.nodes[-1]

    def add(self) -> Node:
        """Start a node with one CPU."""
        return self.start("--address", self.address, "--num-cpus=1", "--object-store-memory=100000000")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    folder = Path(tmp_path_factory.mktemp("ray", numbered=True))
    found = Cluster(folder)
    try:
        found.start(
            *("--head", f"--port={found.port}", "--num-cpus=0", "--include-dashboard=false"),
            *(f"--temp-dir={folder / 'r'}", "--object-store-memory=100000000"),
        )
        wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", found.port)) == 0)
        time.sleep(3)
        found.add()
        found.add()
        yield found
    finally:
        for node in reversed(found.nodes):
            node.kill()


def command(*words: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "hawk", "batch", *map(str, words)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(out: Path) -> int:
    """How many blocks are done."""
    return len([*(out / "blocks").glob("[0-9]*.json")])


def test_killed_workers_and_nodes_lose_no_image(cluster, saved_model, tmp_path, record_property):
    chosen = random.Random(1)
    lines = [{"id": f"p{i}", "prompt": " ".join(chosen.choices(WORDS, k=4))} for i in range(200)]
    prompts, out = write_lines(tmp_path / "p.jsonl", lines), tmp_path / "out"
    words = (prompts, "-m", saved_model, "-k", 2, "--block-size", 4, *SMALL)
    whole = hawk_batch(*words, "-o", tmp_path / "whole")
    assert summary(whole)["images"] == 400
    on_ray = (*words, "-o", out, "--ray", cluster.address, "--num-workers", 2)

    run = command(*on_ray)
    wait_until(lambda: done(out) >= 4 or run.poll() is not None)
    assert run.poll() is None, run.communicate()
    os.kill(next(pid for node in cluster.nodes for pid in node.workers()), signal.SIGKILL)
    first = done(out)
    wait_until(lambda: done(out) >= first + 6 or run.poll() is not None)
    assert run.poll() is None, run.communicate()
    second = done(out)
    cluster.nodes.pop().kill()
    wait_until(lambda: done(out) >= second + 6 or run.poll() is not None)
    assert run.poll() is None, run.communicate()
    third = done(out)
    assert third < 50
    pressed = time.monotonic()
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=PATIENCE)
    seconds = time.monotonic() - pressed
    print(f"\nblocks done: {first} at the kill of a worker, {second} of a node, {third} at Ctrl-C, {seconds:.1f} s")
    assert (run.returncode, errors.splitlines()[-1:]) == (130, ["hawk: interrupted"]), errors

    cluster.add()
    run = command(*on_ray)
    output, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, errors
    result = json.loads(output.splitlines()[-1])
    assert result["images"] + result["skipped"] == 400
    assert result["skipped"] >= 8 * third
    assert result["failed"] == 0
    found = hashes(out)  # which no id and index may have twice
    assert len(found) == 400
    assert found == hashes(tmp_path / "whole")

    run = command(*on_ray)
    output, errors = run.communicate(timeout=PATIENCE)
    assert (run.returncode, "is complete: 400 images are there" in output) == (0, True), errors


def test_a_local_cluster_draws_what_one_process_draws_and_lists_failures(saved_model, tmp_path):
    """A job that was begun without Ray goes on with it: the records are the same."""
    lines = [{"id": "x", "prompt": "red cat"}, {"prompt": ""}, {"prompt": "blue apple"}, {"prompt": "green cat"}]
    prompts = write_lines(tmp_path / "p.jsonl", lines)
    words = (prompts, "-m", saved_model, "--block-size", 1, *SMALL)
    hawk_batch(*words, "-o", tmp_path / "whole", code=1)
    out = tmp_path / "out"
    hawk_batch(*words, "-o", out, code=1)
    (out / "blocks" / "000001.json").unlink()
    run = command(*words, "-o", out, "--ray", "local", "--num-workers", 1)
    output, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == 1, errors
    result = json.loads(output.splitlines()[-1])
    assert {name: result[name] for name in ("images", "failed", "skipped")} == {"images": 1, "failed": 1, "skipped": 2}
    assert hashes(out) == hashes(tmp_path / "whole")


def test_what_cannot_be_reached_is_refused_in_one_line(saved_model, tmp_path):
    words = (write_lines(tmp_path / "p.jsonl", [{"prompt": "cat"}]), "-m", saved_model, "-o", tmp_path / "out", *SMALL)
    port = free_port()
    assert f"no Ray cluster can be reached at 127.0.0.1:{port}" in refused(*words, "--ray", f"127.0.0.1:{port}")
    assert "not 'cuda:1': each worker has a GPU" in refused(*words[:5], "--device", "cuda:1", "--ray", "auto")
    for wrong in ("nowhere", "here:99999", "here:" + "9" * 5000):
        assert f"--ray takes HOST:PORT, auto or local, not '{wrong[:20]}" in refused(*words, "--ray", wrong)
