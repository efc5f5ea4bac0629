"""A server whose images are drawn by replicas, without Ray: the replicas are objects of this process.

What Ray itself does is tested in tests/test_server_ray.py.
"""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest
import yaml
from openai import OpenAI
from typer.testing import CliRunner

from hawk.cli.app import app
from hawk.errors import HawkError
from hawk.server.app import make_app
from hawk.server.config import Limits, ServerConfig
from hawk.server.jobs import Failed, FullError, Wish
from hawk.server.metrics import ServerMetrics
from hawk.server.ray_app import arguments_of
from hawk.server.remote import LostError, RemoteWorker
from hawk.server.replica import Drawer, ReplicaSettings, Report
from hawk.server.running import TimedProtocol, listening, server_of
from serving import PROMPT, PacedStudio, alone

pytestmark = pytest.mark.usefixtures("unchecked")  # checks of signatures would take most of the time

ROUTE = "/v1/images/generations"


@dataclass
class LocalReplicas:
    """Replicas of this process; one that was killed answers nothing more. `fault` is raised in place of drawing."""

    drawers: list[Drawer]
    killed: set[str] = field(default_factory=set)
    fault: Exception | None = None

    async def draw(self, wish: Wish, client: str, timeout: float) -> AsyncGenerator[Report, None]:
        if self.fault is not None:
            raise self.fault
        alive = [each for each in self.drawers if each.name not in self.killed]
        drawer = min(alive, key=lambda each: each.worker.open_images)
        async with aclosing(drawer.draw(wish, client, timeout)) as reports:
            async for report in reports:
                if drawer.name in self.killed:
                    raise LostError("it was killed")
                yield report

    def running(self) -> int:
        return len(self.drawers) - len(self.killed)


@dataclass
class Served:
    """A running server of replicas."""

    url: str
    replicas: LocalReplicas
    worker: RemoteWorker
    server: object
    thread: threading.Thread

    def generate(self, **options):
        own = {name: options.pop(name) for name in ("seed", "method") if name in options}
        client = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
        return client.images.generate(model="hawk", prompt=PROMPT, extra_body={"method": "ar", **own}, **options)

    def shas(self, **options) -> list[str]:
        return [each.model_extra["tokens_sha256"] for each in self.generate(**options).data]

    def figures(self) -> list[str]:
        return httpx.get(f"{self.url}/metrics").text.splitlines()


def wait(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def drawers(saved_model) -> Iterator[list[Drawer]]:
    """Two replicas whose pace can be set."""
    settings = ReplicaSettings(str(saved_model), "cpu", "float64", limits=Limits())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hawk.server.replica.Studio", PacedStudio)
        made = [Drawer(settings), Drawer(settings)]
    yield made
    for each in made:
        each.worker.stop()
        assert each.worker.join(10.0)


@contextmanager
def serving(drawers: list[Drawer], pause: float = 0.0) -> Iterator[Served]:
    """A server of replicas, each step of which takes `pause` seconds more."""
    for each in drawers:
        each.worker.studio.pause = pause
    config, replicas = ServerConfig(), LocalReplicas(drawers)
    metrics = ServerMetrics(config.places)
    worker = RemoteWorker(replicas, drawers[0].worker.card, metrics)
    with listening("127.0.0.1", 0) as sock:
        server = server_of(make_app(config, worker, metrics), worker, config)
        worker.start()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        wait(lambda: server.started)
        try:
            yield Served(f"http://127.0.0.1:{sock.getsockname()[1]}", replicas, worker, server, thread)
        finally:
            server.should_exit = server.force_exit = True
            thread.join(20)
            worker.stop()
            assert worker.join(5.0)
            assert not thread.is_alive()


def test_plain_answers_streams_and_figures(drawers, saved_model):
    with serving(drawers) as served:
        assert served.shas(n=3, seed=1) == [alone(saved_model, PROMPT, seed) for seed in (1, 2, 3)]
        events = list(served.generate(seed=1, stream=True, partial_images=3))
        assert [each.type for each in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
        assert events[3].model_extra["tokens_sha256"] == alone(saved_model, PROMPT, 1)
        with pytest.raises(openai.BadRequestError, match="at most 6144 pixels"):
            served.generate(size="1024x1024")
        wait(lambda: "hawk_replicas 2.0" in served.figures())
        figures = served.figures()
        wanted = ('hawk_images_total{method="ar"} 4.0', "hawk_places 8.0", 'hawk_jobs_total{outcome="finished"} 2.0')
        assert [each for each in wanted if each not in figures] == []
        assert "hawk_tokens_total 96.0" in figures
        assert httpx.get(f"{served.url}/live/about").json()["model"] == "tiny"
        assert [httpx.get(served.url + path).status_code for path in ("/", "/healthz", "/readyz")] == [200] * 3


def test_a1111_clients_get_the_models_own_size_and_see_the_progress(drawers):
    with serving(drawers, pause=0.02) as served, ThreadPoolExecutor(1) as pool:
        body = {"prompt": PROMPT, "width": 512, "height": 512, "sampler_name": "ar"}
        first = pool.submit(httpx.post, f"{served.url}/sdapi/v1/txt2img", json=body, timeout=20)
        progress = f"{served.url}/sdapi/v1/progress"
        wait(lambda: 0 < httpx.get(progress).json()["progress"] < 1)
        assert first.result().json()["parameters"]["width"] == 512
        assert '"width": 48' in first.result().json()["info"].replace("\\", "")
        second = pool.submit(httpx.post, f"{served.url}/sdapi/v1/txt2img", json=body, timeout=20)
        wait(lambda: httpx.get(progress).json()["progress"] > 0)
        assert httpx.post(f"{served.url}/sdapi/v1/interrupt").status_code == 200
        assert second.result().json()["error"] == "cancelled"


def test_a_killed_replica_loses_its_own_requests_alone(drawers, saved_model):
    with serving(drawers, pause=0.02) as served, ThreadPoolExecutor(2) as pool:
        stream = served.generate(seed=1, stream=True, partial_images=3)
        assert next(iter(stream)).type == "image_generation.partial_image"
        other = pool.submit(served.shas, seed=4)
        wait(lambda: all(each.worker.open_images for each in drawers))
        lost = pool.submit(served.shas, seed=2)  # which the first replica gets
        wait(lambda: drawers[0].worker.open_images == 2)
        served.replicas.killed.add(drawers[0].name)
        with pytest.raises(openai.APIError, match="the replica that was drawing this request ended: send") as caught:
            list(stream)
        assert caught.value.code == "replica_lost"
        with pytest.raises(openai.InternalServerError) as caught:
            lost.result(20)
        assert (caught.value.status_code, caught.value.code) == (503, "replica_lost")
        assert caught.value.response.headers["retry-after"] == "1"
        assert other.result(20) == [alone(saved_model, PROMPT, 4)]
        assert served.shas(seed=5) == [alone(saved_model, PROMPT, 5)]
        assert 'hawk_jobs_total{outcome="lost"} 2.0' in served.figures()
        served.replicas.killed.add(drawers[1].name)
        wait(lambda: httpx.get(f"{served.url}/readyz").status_code == 503)
        assert httpx.get(f"{served.url}/healthz").status_code == 200


def test_a_client_that_leaves_frees_its_place_in_the_replica(drawers):
    with serving(drawers, pause=0.02) as served:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(served.url + ROUTE, json={"prompt": PROMPT, "n": 8, "method": "ar"}, timeout=0.2)
        wait(lambda: not any(each.worker.open_images for each in drawers))
        assert 'hawk_jobs_total{outcome="cancelled"} 1.0' in served.figures()


def test_a_full_cluster_is_429_and_a_fault_of_a_replica_500(drawers, caplog):
    with serving(drawers) as served:
        served.replicas.fault = FullError(7)
        with pytest.raises(openai.RateLimitError, match="the queue is full: try again in 7 s") as caught:
            served.generate()
        assert caught.value.response.headers["retry-after"] == "7"
        served.replicas.fault = RuntimeError("no such kernel")
        with caplog.at_level(logging.ERROR), pytest.raises(openai.InternalServerError) as caught:
            served.generate()
        assert caught.value.status_code == 500
        assert caught.value.code.removeprefix("error_") in caplog.text
        assert "no such kernel" not in caught.value.message


def test_a_signal_ends_the_server_once_the_accepted_images_are_drawn(drawers, saved_model):
    with serving(drawers, pause=0.02) as served, ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.shas, seed=1)
        wait(lambda: any(each.worker.open_images for each in drawers))
        served.server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(openai.InternalServerError, match="stopping and takes no more requests"):
            served.generate()
        assert first.result(20) == [alone(saved_model, PROMPT, 1)]
        served.thread.join(10)
        assert not served.thread.is_alive()


def test_the_time_of_a_request_counts_while_no_replica_has_room(drawers):
    class Endless(LocalReplicas):
        async def draw(self, wish, client, timeout):
            await asyncio.sleep(20)
            yield Report("none", ())

    async def follow() -> list:
        events: list = []
        worker = RemoteWorker(Endless(drawers), drawers[0].worker.card)
        worker.submit(Wish(PROMPT), "me", 0.05, events.append)
        while not events:
            await asyncio.sleep(0.01)
        return events

    assert asyncio.run(follow()) == [Failed("timeout", "the time of the request is over")]


def test_a_replica_says_why_it_cannot_draw(saved_model, tmp_path):
    missing = Drawer(ReplicaSettings(str(tmp_path / "none"), "cpu"))
    assert "no model folder at" in asyncio.run(missing.introduce())
    other = Drawer(ReplicaSettings(str(saved_model), "cpu", version="0.0.1"))
    assert "and not 0.0.1: install one version everywhere" in asyncio.run(other.introduce())


# --- the command and the file


def test_uvicorn_chooses_nothing_by_itself(drawers):
    """uvloop and httptools, which Ray installs, must not replace what the limits of connections rely on."""
    config, metrics = ServerConfig(), ServerMetrics(1)
    worker = RemoteWorker(LocalReplicas(drawers), drawers[0].worker.card)
    settings = server_of(make_app(config, worker, metrics), worker, config).config
    assert settings.loop == "asyncio"
    assert issubclass(settings.http, TimedProtocol)


def test_replicas_go_with_ray(saved_model, monkeypatch):
    refused = CliRunner().invoke(app, ["serve", "--port", "0", "--replicas", "2"])
    assert (refused.exit_code, "--replicas goes with --ray" in refused.stderr) == (2, True)
    monkeypatch.setattr("hawk.batch.on_ray.find_spec", lambda _: None)
    lacking = CliRunner().invoke(app, ["serve", "--port", "0", "--ray", "local"])
    assert (lacking.exit_code, "--ray needs Ray" in lacking.stderr) == (2, True)


def test_the_file_for_serve_deploy_agrees_with_the_command():
    path = Path(__file__).parents[1] / "docs" / "serve-ray.yaml"
    (application,) = yaml.safe_load(path.read_text(encoding="utf-8"))["applications"]
    arguments = arguments_of(application["args"])
    drawer = next(each for each in application["deployments"] if each["name"] == Drawer.__name__)
    assert drawer["max_ongoing_requests"] == arguments.replica.requests
    assert drawer["max_queued_requests"] == arguments.config.limits.queue
    assert arguments.config == ServerConfig()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "args must have api_key_file, or no_auth: true for no key"),
        ({"no_auth": True, "queue": 3}, "args: queue: Extra inputs are not permitted"),
        ({"no_auth": True, "max_batch": 0}, "args: max_batch: Input should be greater than or equal to 1"),
        ({"no_auth": True, "cors": ["*"]}, "--cors takes an origin"),
        ({"api_key_file": "/no/such/file"}, "cannot read the API keys"),
    ],
)
def test_wrong_arguments_of_a_file_are_named(args, message):
    with pytest.raises(HawkError) as caught:
        _ = arguments_of(args).replica
    assert message in str(caught.value)
