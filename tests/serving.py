"""A real server on a loopback port, in a thread of the test's process; its engine may be made slow or faulty."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache

import httpx
from openai import OpenAI

from hawk.decoding.recording import Recordings
from hawk.engine import DrawingEngine
from hawk.outputs import tokens_sha256
from hawk.pipeline import HawkPipeline
from hawk.server.app import make_app
from hawk.server.config import Limits, ServerConfig
from hawk.server.metrics import ServerMetrics
from hawk.server.running import HawkServer, listening, server_of
from hawk.server.studio import Studio
from hawk.server.worker import Worker

PROMPT = "a red apple"


class PacedStudio(Studio):
    """A studio whose engines wait before each step, and call `before` with the engine first."""

    pause = 0.0
    before: Callable[[DrawingEngine], None] | None = None
    recordings: Recordings | None = None
    """Recordings of a GPU's steps, which take the place of the pipeline's."""

    def engine(self, places: int) -> DrawingEngine:
        engine = super().engine(places)
        engine.recordings = self.recordings or engine.recordings
        step = engine.step

        def paced(on_step=None):
            time.sleep(self.pause)
            if self.before is not None:
                self.before(engine)
            return step(on_step)

        engine.step = paced
        return engine


@cache
def tiny_pipe(folder) -> HawkPipeline:
    """The pipeline of a tiny model in float64; that of another model in float32."""
    return HawkPipeline.from_pretrained(folder, "cpu", "float32" if folder == "bundled" else "float64")


@cache
def alone(folder, prompt: str, seed: int, **settings) -> str:
    """The fingerprint of an image's tokens when plain AR draws it alone."""
    return tokens_sha256(tiny_pipe(folder)(prompt, seed=seed, method="ar", **settings).tokens[0])


@dataclass
class Served:
    """A running server."""

    url: str
    studio: PacedStudio
    worker: Worker
    metrics: ServerMetrics
    server: HawkServer
    thread: threading.Thread
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))

    def openai(self, key: str = "none", retries: int = 0, **options) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=retries, **options)

    def post(self, body, path: str = "/v1/images/generations", **options) -> httpx.Response:
        return self.http.post(self.url + path, json=body, **options)

    def get(self, path: str, **options) -> httpx.Response:
        return self.http.get(self.url + path, **options)

    def wait(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the condition did not come true"
            time.sleep(0.005)

    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def connection(self) -> socket.socket:
        return socket.create_connection(self.address(), timeout=10)


@contextmanager
def serving(folder, limits: Limits | None = None, pause: float = 0.0, **settings) -> Iterator[Served]:
    """A server of the model in `folder` that runs in the body."""
    config = replace(ServerConfig(limits=limits or Limits(per_client=1000)), **settings)
    studio, metrics = PacedStudio(tiny_pipe(folder)), ServerMetrics(config.places)
    studio.pause = pause
    worker = Worker(studio, config.places, config.limits.queue, metrics, config.log_prompts)
    with listening("127.0.0.1", 0) as sock:
        server = server_of(make_app(config, worker, metrics), worker, config)
        worker.start()
        assert worker.ready.wait(20)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        served = Served(f"http://127.0.0.1:{sock.getsockname()[1]}", studio, worker, metrics, server, thread)
        served.wait(lambda: server.started)
        try:
            yield served
        finally:
            served.studio.pause, served.studio.before = 0.0, None
            served.http.close()
            worker.stop()
            assert worker.join(20.0)
            server.should_exit = server.force_exit = True
            thread.join(20)
            assert not thread.is_alive()
