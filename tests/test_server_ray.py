"""`hawk serve --ray`: two replicas on a cluster of this machine, one of which is killed under load; `serve deploy`.

These tests need the extra `ray`, which CI does not install.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import httpx
import openai
import pytest
import yaml
from openai import OpenAI

from serving import PROMPT, alone
from test_batch_ray import ENVIRONMENT, PATIENCE, Node, Process, free_port, processes, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra ray)"),
    pytest.mark.usefixtures("unchecked"),
]
KEY = "a-key-of-enough-letters"
FILE = Path(__file__).parents[1] / "docs" / "serve-ray.yaml"
LARGE = {"n": 4, "size": "96x64"}
"""Images that take some seconds."""


def drawers(found: list[Process]) -> list[int]:
    """The processes that draw."""
    return [each.pid for each in found if each.words.startswith("ray::ServeReplica") and "Drawer" in each.words]


def command(*words: object) -> subprocess.Popen:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "hawk", "serve", *map(str, words)], env=ENVIRONMENT, **options)


def rest_of(stream) -> tuple[int, str | None]:
    """The number of finished images that are left in a stream, and the code of the error that ends it."""
    count = 0
    try:
        for event in stream:
            count += event.type == "image_generation.completed"
    except openai.APIError as error:
        return count, error.code
    return count, None


@dataclass
class Served:
    """A running command; `log` is the file of its standard error stream."""

    url: str
    process: subprocess.Popen
    log: Path

    @cached_property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE)

    def generate(self, key: str = KEY, **options):
        own = {name: options.pop(name) for name in ("seed", "method") if name in options}
        client = self.client.with_options(api_key=key)
        return client.images.generate(model="hawk", prompt=PROMPT, extra_body={"method": "ar", **own}, **options)

    def shas(self, **options) -> list[str]:
        return [each.model_extra["tokens_sha256"] for each in self.generate(**options).data]

    def figure(self, name: str) -> float:
        """A figure of /metrics."""
        text = httpx.get(f"{self.url}/metrics", headers={"authorization": f"Bearer {KEY}"}).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.split()[0] == name)

    def outcome(self, seed: int) -> list[str] | tuple[int, str, str]:
        """The tokens of large images, or the status, the code and the message of an error."""
        try:
            return self.shas(seed=seed, **LARGE)
        except openai.APIStatusError as error:
            return error.status_code, error.code, error.body["message"]


@pytest.fixture(scope="module")
def served(saved_model, tmp_path_factory) -> Iterator[Served]:
    """Two replicas that draw one image at once: each has two requests, and three more may wait."""
    folder = Path(tmp_path_factory.mktemp("served", numbered=True))
    (folder / "keys").write_text(KEY)
    with (folder / "log").open("w") as log:
        words = ("--model", saved_model, "--dtype", "float64", "--port", "0", "--api-key-file", folder / "keys")
        limits = ("--max-batch", 1, "--max-queue", 3, "--ray", "local", "--replicas", 2)
        process = subprocess.Popen(
            [sys.executable, "-m", "hawk", "serve", *map(str, words + limits)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            line = process.stdout.readline()
            assert " at " in line, (folder / "log").read_text()
            yield Served(line.split(" at ")[1].strip(), process, folder / "log")
        finally:
            Node(process).kill()
            process.communicate()


def test_the_sdk_gets_images_and_streams_from_two_replicas(served, saved_model):
    wanted = [alone(saved_model, PROMPT, seed) for seed in range(1, 9)]
    assert len(drawers(Node(served.process).processes())) == 2
    assert served.shas(n=4, seed=1) == wanted[:4]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda seed: served.shas(seed=seed)[0], range(1, 9))) == wanted
    events = list(served.generate(seed=1, stream=True, partial_images=3))
    assert [each.type for each in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert events[3].model_extra["tokens_sha256"] == wanted[0]
    assert served.figure('hawk_images_total{method="ar"}') == 13
    with pytest.raises(openai.AuthenticationError, match="API key"):
        served.generate("wrong")
    with pytest.raises(openai.BadRequestError, match="at most 6144 pixels"):
        served.generate(size="1024x1024")


def test_a_full_queue_is_429(served, saved_model):
    with ThreadPoolExecutor(14) as pool:
        outcomes = list(pool.map(served.outcome, range(14)))
    refused = [each for each in outcomes if isinstance(each, tuple)]
    assert {*refused} == {(429, "rate_limit_exceeded", "the queue is full: try again in 5 s")}
    assert len(refused) <= 14 - 7
    for seed, outcome in enumerate(outcomes):
        if not isinstance(outcome, tuple):
            assert outcome == [alone(saved_model, PROMPT, seed + i, height=64, width=96) for i in range(4)]


def test_a_replica_that_is_killed_loses_only_what_it_drew(served, saved_model):
    first, other = drawers(Node(served.process).processes())
    stream = served.generate(seed=1, stream=True, partial_images=3, **LARGE)
    assert next(iter(stream)).type == "image_generation.partial_image"
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(served.outcome, seed) for seed in range(0, 50, 10)]
        wait_until(lambda: served.figure("hawk_live_images") == 2)
        os.kill(first, signal.SIGKILL)
        outcomes = [each.result(PATIENCE) for each in answers]
    streamed, code = rest_of(stream)
    lost = [each for each in outcomes if isinstance(each, tuple)]
    print(f"\nlost: {len(lost)} of 5 requests; the stream had {streamed} of 4 images, and the error {code}")
    assert {*lost} <= {(503, "replica_lost", "the replica that was drawing this request ended: send the request again")}
    assert (streamed, code) == (4, None) or code == "replica_lost"
    assert len(lost) + (code is not None) == 2  # each replica has two requests
    for seed, outcome in zip(range(0, 50, 10), outcomes, strict=True):
        if not isinstance(outcome, tuple):
            assert outcome == [alone(saved_model, PROMPT, seed + i, height=64, width=96) for i in range(4)]
    assert served.shas(seed=7) == [alone(saved_model, PROMPT, 7)]
    wait_until(lambda: served.figure("hawk_replicas") == 2)
    again = drawers(Node(served.process).processes())
    assert other in again
    assert len(again) == 2
    with ThreadPoolExecutor(4) as pool:
        assert all(isinstance(each, list) for each in pool.map(served.outcome, range(4)))


def test_sigterm_draws_what_was_accepted_and_leaves_no_process(served, saved_model):
    every = {each.pid for each in Node(served.process).processes()}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.outcome, 3)
        wait_until(lambda: served.figure("hawk_live_images") == 1)
        served.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.InternalServerError, match="stopping and takes no more requests"):
            served.generate()
        assert answer.result(PATIENCE) == [alone(saved_model, PROMPT, 3 + i, height=64, width=96) for i in range(4)]
    assert served.process.wait(PATIENCE) == 0
    wait_until(lambda: not every & {each.pid for each in processes()})
    log = served.log.read_text()
    assert "Traceback" not in log
    assert PROMPT not in log


def test_what_the_cluster_refuses_is_told_in_one_line(saved_model):
    port = free_port()
    run = command("--port", 0, "--model", saved_model, "--ray", f"127.0.0.1:{port}")
    _, errors = run.communicate(timeout=PATIENCE)
    assert (run.returncode, f"no Ray cluster can be reached at 127.0.0.1:{port}" in errors) == (2, True), errors
    run = command("--port", 0, "--model", saved_model, "--ray", "local", "--replicas", 9999)
    _, errors = run.communicate(timeout=PATIENCE)
    assert (run.returncode, "replicas, not 9999: lower --replicas" in errors.splitlines()[-1]) == (2, True), errors


def test_the_documented_file_deploys(saved_model, tmp_path_factory):
    """`serve deploy` takes the file; the second deployment of it that runs here has the tiny model."""
    from ray.serve.schema import ServeDeploySchema

    folder = Path(tmp_path_factory.mktemp("ray", numbered=True))  # a short path, for the sockets in it
    document = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    ServeDeploySchema.model_validate(document)
    port, dashboard, http = free_port(), free_port(), free_port()
    document["http_options"]["port"] = http
    document["applications"][0]["args"] |= {"model": str(saved_model), "dtype": "float64"}
    (folder / "serve.yaml").write_text(yaml.safe_dump(document))
    ray, serve = (str(Path(sys.executable).parent / name) for name in ("ray", "serve"))
    words = ["--head", f"--port={port}", "--num-cpus=2", f"--dashboard-port={dashboard}", f"--temp-dir={folder}/r"]
    more = [f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}", "--block"]
    more += ["--include-dashboard=true", "--object-store-memory=100000000", "--disable-usage-stats"]
    with (folder / "log").open("wb") as log:
        head = subprocess.Popen([ray, "start", *words, *more], env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        deploy = [serve, "deploy", str(folder / "serve.yaml"), "-a", f"http://127.0.0.1:{dashboard}"]

        def deployed() -> bool:
            assert head.poll() is None, (folder / "log").read_text()
            return subprocess.run(deploy, env=ENVIRONMENT, capture_output=True, check=False).returncode == 0

        wait_until(deployed)
        served = Served(f"http://127.0.0.1:{http}", head, folder / "log")

        def ready() -> bool:
            try:
                return httpx.get(f"{served.url}/readyz").status_code == 200
            except httpx.HTTPError:
                time.sleep(0.5)
                return False

        wait_until(ready)
        assert served.shas(n=4, seed=1) == [alone(saved_model, PROMPT, seed) for seed in range(1, 5)]
        events = list(served.generate(seed=1, stream=True, partial_images=3))
        assert [each.type for each in events][-1] == "image_generation.completed"
        assert len(events) == 4
        assert httpx.get(f"{served.url}/v1/models", headers={"host": "evil.example"}).status_code == 403
    finally:
        Node(head).kill()
