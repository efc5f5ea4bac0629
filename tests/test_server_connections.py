"""Connections: silent ones are closed, and the answer to a refused body reaches a client that sends first."""

import contextlib
import http.client
import socket
import time

import pytest

from hawk.server.config import Limits
from serving import PROMPT, alone, serving

pytestmark = pytest.mark.usefixtures("unchecked")  # checks of signatures would take most of the time

HEAD = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def served(saved_model):
    with serving(saved_model, Limits(per_client=1000, idle_seconds=0.5)) as running:
        yield running


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closed a connection without an answer."""
    connection.settimeout(10)
    return connection.recv(100) == b""


def closed_while_it_sends(connection: socket.socket, piece: bytes, pause: float = 0.0) -> bool:
    """Whether the server closes a connection whose client goes on sending."""
    end = time.monotonic() + 10
    try:
        while time.monotonic() < end:
            connection.sendall(piece)
            time.sleep(pause)
    except ConnectionError:
        return True
    return False


def test_200_silent_connections_are_closed_while_requests_go_on(served, saved_model):
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(served.connection()) for _ in range(200)]
        for connection in silent[:50]:
            connection.sendall(HEAD)
        answer = served.post({"prompt": PROMPT, "seed": 1, "method": "ar"})
        assert [each["tokens_sha256"] for each in answer.json()["data"]] == [alone(saved_model, PROMPT, 1)]
        assert all(is_closed(connection) for connection in silent)


def test_a_head_that_comes_byte_by_byte_gets_no_more_time(served):
    with served.connection() as connection:
        assert closed_while_it_sends(connection, b"x", pause=0.05)


def test_a_head_that_is_no_http_is_refused_without_an_error_in_the_log(served, caplog):
    with served.connection() as connection:
        connection.sendall(b"\x16\x03\x01 a handshake of TLS\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_body_with_two_lengths_ends_its_connection(served):
    """RFC 9112, 6.1: what a proxy takes for the rest of that body must not be read as a request."""
    with served.connection() as connection:
        connection.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answer.lower()
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_connection_is_kept_for_the_next_request_and_closed_when_none_comes(served):
    connection = http.client.HTTPConnection(*served.address(), timeout=10)
    for _ in range(2):
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
    kept = connection.sock
    assert is_closed(kept)
    connection.close()


def test_a_request_that_takes_longer_than_a_silence_is_answered(served):
    served.studio.pause = 0.03  # of each of 24 forwards
    try:
        assert served.post({"prompt": PROMPT, "method": "ar"}).status_code == 200
    finally:
        served.studio.pause = 0.0


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ("", 413),
        ("Connection: close\r\n", 413),
        ("Host: evil.example\r\n", 403),
        ("Transfer-Encoding: chunked\r\n", 413),
    ],
    ids=["kept", "closed", "refused by its head", "of unknown length"],
)
def test_a_client_that_sends_40_mb_before_it_reads_sees_the_answer(served, more, status):
    size, piece = 40 * 2**20, b"a" * 2**20
    head = HEAD if "Host" not in more else HEAD.replace(b"Host: localhost\r\n", b"")
    chunked = "chunked" in more
    length = "" if chunked else f"Content-Length: {size}\r\n"
    with served.connection() as connection:
        connection.sendall(head + f"{more}Content-Type: application/json\r\n{length}\r\n".encode())
        for _ in range(40):
            connection.sendall(b"100000\r\n" + piece + b"\r\n" if chunked else piece)
        connection.sendall(b"0\r\n\r\n" if chunked else b"")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, b"error" in answer.read()) == (status, True)


def test_a_refused_body_that_never_ends_does_not_hold_its_connection(served, monkeypatch):
    monkeypatch.setattr("hawk.server.guard.MOST_DISCARDED", 2**20)
    with served.connection() as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000000\r\n\r\n")
        assert b" 413 " in connection.recv(1000)
        assert closed_while_it_sends(connection, b"a" * 2**16)


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/v1/models", "/static/page.css"])
def test_head_is_answered_as_get_without_a_body(served, path):
    head, get = served.http.head(served.url + path), served.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert int(head.headers["content-length"]) > 0
