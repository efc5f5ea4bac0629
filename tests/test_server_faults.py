"""What goes wrong around a server: clients that leave, dawdle or send nonsense, steps that fail, signals under load."""

import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from hawk.cli.app import app
from hawk.server.config import Limits
from serving import PROMPT, alone, serving

pytestmark = pytest.mark.usefixtures("unchecked")  # checks of signatures would take most of the time

SOURCE = Path(__file__).parents[1] / "src"


@pytest.fixture(scope="module")
def served(saved_model):
    with serving(saved_model, Limits(per_client=1000, body_seconds=0.5)) as running:
        yield running


def shas(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [each["tokens_sha256"] for each in answer.json()["data"]]


def raw_request(body: dict, **more) -> bytes:
    text = json.dumps({"prompt": PROMPT, "method": "ar", **body, **more})
    lines = ("POST /v1/images/generations HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join([*lines, f"Content-Length: {len(text)}", "", text]).encode()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(saved_model, stream):
    with serving(saved_model, pause=0.02, places=1) as served:
        with served.connection() as connection:
            connection.sendall(raw_request({"n": 3, "stream": stream}))
            served.wait(lambda: any(job.progress > 0 for job in served.worker.jobs()))
            if stream:
                assert b"200 OK" in connection.recv(100)
        served.wait(lambda: served.worker.open_images == 0, 5)
        assert shas(served.post({"prompt": PROMPT, "seed": 1, "method": "ar"})) == [alone(saved_model, PROMPT, 1)]
        assert 'hawk_jobs_total{outcome="cancelled"} 1.0' in served.get("/metrics").text


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe",
        b'"text"',
        b"[]",
        b"",
        b'{"prompt": "\\ud800"}',
        b'{"\\ud800": 1, "prompt": "a"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "guidance_scale": 1' + b"0" * 400 + b"}",
        b'{"prompt": "a", "top_k": 1' + b"0" * 5000 + b"}",
        b"[" * 50_000,
    ],
    ids=lambda content: content[:24].decode("latin-1"),
)
@pytest.mark.parametrize("path", ["/v1/images/generations", "/sdapi/v1/txt2img"])
def test_a_malformed_body_is_400(served, path, content):
    answer = served.http.post(served.url + path, content=content, headers={"content-type": "application/json"})
    ignored = path == "/sdapi/v1/txt2img" and any(name in content for name in (b"temperature", b"top_k"))
    assert answer.status_code in ((200, 400) if ignored or b"1, " in content else (400,)), answer.text
    if answer.status_code == 400:
        assert answer.json()["error"]


def test_a_body_that_is_no_json_by_its_type_is_refused(served):
    """A form of another site's page cannot draw: it cannot set this content type."""
    answer = served.http.post(f"{served.url}/v1/images/generations", content=json.dumps({"prompt": PROMPT}))
    assert answer.status_code == 400


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_of_10_mb_is_413(served, declared):
    body = b'{"prompt": "' + b"a" * 10 * 2**20 + b'"}'
    content = body if declared else (body[start : start + 65536] for start in range(0, len(body), 65536))
    headers = {"content-type": "application/json"}
    answer = served.http.post(f"{served.url}/v1/images/generations", content=content, headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_a_body_that_does_not_arrive_is_408(served):
    with served.connection() as connection:
        connection.sendall(raw_request({})[:-10])
        assert b" 408 " in connection.recv(100)


@pytest.mark.proofs
def test_a_slow_reader_keeps_nobody_waiting(saved_model):
    with serving(saved_model, Limits(write_seconds=0.5, per_client=1000)) as served:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(served.address())
            # answers of 10 pictures each, more than the buffers of both sockets hold
            slow.sendall(raw_request({"n": 10, "size": "96x64", "stream": True, "partial_images": 3}) * 8)
            answer = served.post({"prompt": PROMPT, "seed": 2, "method": "ar"})
            assert shas(answer) == [alone(saved_model, PROMPT, 2)]
            served.wait(lambda: served.worker.open_images == 0, 20)
        assert shas(served.post({"prompt": PROMPT, "seed": 4, "method": "ar"})) == [alone(saved_model, PROMPT, 4)]


def test_a_failed_step_is_500_with_a_reference_and_the_others_finish(saved_model, caplog):
    def before(engine):
        seeds = [key.job.wish.seed for shared in engine.lanes.values() for key in shared.lane.keys]
        if 13 in seeds:
            raise RuntimeError("a kernel failed")

    with serving(saved_model, pause=0.01) as served, ThreadPoolExecutor(3) as pool:
        served.studio.before = before
        bodies = [{"prompt": PROMPT, "seed": seed, "method": "ar"} for seed in (1, 13, 2)]
        with caplog.at_level(logging.ERROR):
            first, bad, last = pool.map(served.post, bodies)
        assert shas(first) == [alone(saved_model, PROMPT, 1)]
        assert shas(last) == [alone(saved_model, PROMPT, 2)]
        assert bad.status_code == 500
        reference = bad.json()["error"]["code"].removeprefix("error_")
        assert reference in bad.json()["error"]["message"]
        assert f"error {reference}" in caplog.text
        assert PROMPT not in caplog.text
        assert served.get("/readyz").status_code == 200


def test_a_fault_of_a_route_is_500_with_the_reference_of_the_log(served, saved_model, caplog, monkeypatch):
    def broken(*_):
        raise RuntimeError("no picture")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr("hawk.server.openai_api.encoded", broken)
        answer = served.post({"prompt": PROMPT, "method": "scd"})
        reference = answer.headers["x-request-id"]
        served.wait(lambda: f"error {reference}" in caplog.text)
    assert answer.status_code == 500
    assert reference in answer.json()["error"]["message"]
    assert shas(served.post({"prompt": PROMPT, "seed": 1, "method": "ar"})) == [alone(saved_model, PROMPT, 1)]


def test_a_worker_that_hangs_is_504(saved_model, monkeypatch):
    monkeypatch.setattr("hawk.server.service.LATE", 0.2)
    with serving(saved_model, Limits(timeout=0.2)) as served:
        served.studio.pause = 2.0
        started = time.monotonic()
        assert served.post({"prompt": PROMPT, "method": "ar"}).status_code == 504
        assert time.monotonic() - started < 1.5


def test_a_draining_server_refuses_new_requests_and_finishes_the_others(saved_model):
    with serving(saved_model, pause=0.02) as served, ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.post, {"prompt": PROMPT, "seed": 1, "method": "ar"})
        served.wait(lambda: served.worker.open_images == 1)
        served.server.handle_exit(signal.SIGTERM, None)
        refused = served.post({"prompt": PROMPT})
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert served.get("/readyz").status_code == 503
        assert served.get("/healthz").status_code == 200
        assert shas(first.result(20)) == [alone(saved_model, PROMPT, 1)]
        served.thread.join(10)
        assert not served.thread.is_alive()


# --- the command, in a process of its own


def command(folder, *options: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "hawk", "serve", "--model", str(folder), "--dtype", "float64", *options]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.proofs
def test_a_signal_under_load_loses_no_image(saved_model):
    process = command(saved_model, "--port", "0", "--max-batch", "2", "--timeout", "60")
    try:
        url = process.stdout.readline().split(" at ")[1].strip()
        host, port = url.removeprefix("http://").split(":")
        limit = time.monotonic() + 30
        while True:
            connection = http.client.HTTPConnection(host, int(port), timeout=30)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                break
            assert time.monotonic() < limit
            time.sleep(0.05)
        answers: dict[int, httpx.Response] = {}

        def draw(seed: int) -> None:
            body = {"prompt": PROMPT, "seed": seed, "n": 4, "method": "ar"}
            answers[seed] = httpx.post(f"{url}/v1/images/generations", json=body, timeout=60)

        threads = [threading.Thread(target=draw, args=(seed,)) for seed in (100, 200, 300)]
        for thread in threads:
            thread.start()
        while "hawk_live_images 2.0" not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        for seed, answer in answers.items():
            assert shas(answer) == [alone(saved_model, PROMPT, seed + i) for i in range(4)]
        assert process.wait(20) == 0
        log = process.stderr.read()
        assert "Traceback" not in log
        assert PROMPT not in log
    finally:
        process.kill()
        process.communicate()


def test_a_port_in_use_ends_the_command_with_one_line(served):
    host, port = served.address()
    result = CliRunner().invoke(app, ["serve", "--host", host, "--port", str(port)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"hawk: cannot listen on {host} port {port}: Address already in use\n"
