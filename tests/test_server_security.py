"""Whom the server answers: hosts, origins, keys; its headers, its log, and the options of the command."""

import logging

import httpx
import pytest
from typer.testing import CliRunner

from hawk.cli.app import app
from hawk.errors import HawkError
from hawk.server.answers import ApiError
from hawk.server.config import ServerConfig, check_origin, host_name, read_keys
from hawk.server.security import Doorkeeper
from serving import PROMPT, serving

pytestmark = pytest.mark.usefixtures("unchecked")  # checks of signatures would take most of the time

KEY = "a-key-of-enough-letters"


@pytest.fixture(scope="module")
def served(saved_model):
    with serving(saved_model, origins=("https://app.example",), hosts=("images.example",)) as running:
        yield running


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("192.168.1.5:8000", 200),
        ("images.example", 200),
        ("IMAGES.example.:443", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("evil.example:127.0.0.1", 403),
        ("[::1", 403),
        ("localhost:", 200),
        ("localhost:http", 403),
        ("evil.example@localhost", 403),
        ("evil.example\\@localhost", 403),
        ("localhost/evil.example", 403),
        ("localhost#evil.example", 403),
        ("localhost?evil.example", 403),
        ("", 403),
    ],
)
def test_the_host_header(served, host, status):
    assert served.get("/v1/models", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://app.example", 200), ("{own}", 200), ("https://evil.example", 403), ("null", 403), ("", 403)],
)
def test_the_origin_of_a_page(served, origin, status):
    answer = served.get("/v1/models", headers={"origin": origin.format(own=served.url)})
    assert answer.status_code == status
    allowed = answer.headers.get("access-control-allow-origin")
    assert allowed == (origin if origin == "https://app.example" else None)


def test_a_browser_asks_first(served):
    def ask(origin: str) -> httpx.Response:
        headers = {"origin": origin, "access-control-request-method": "POST"}
        return served.http.options(f"{served.url}/v1/images/generations", headers=headers)

    assert ask("https://app.example").status_code == 204
    assert "authorization" in ask("https://app.example").headers["access-control-allow-headers"]
    assert ask("https://evil.example").status_code == 405


def test_headers_of_every_answer(served):
    for path in ("/", "/v1/models", "/nothing", "/v1/images/generations"):
        headers = served.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"
        assert "server" not in headers
        assert headers["x-request-id"]


@pytest.mark.parametrize("path", ["/../etc/passwd", "/static/../../x", "/static/%2e%2e/x", "/v1/models/../../x", "//x"])
def test_no_path_reaches_the_file_system(served, path):
    with served.connection() as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert b" 404 " in answer.split(b"\r\n")[0]


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/images/generations/", "/sdapi/v1/options/", "/healthz/"])
def test_a_path_with_another_end_is_not_redirected(served, path):
    """A redirect's address is made from the Host header, and its scheme is not that of a proxy with TLS."""
    answer = served.get(path)
    assert answer.status_code == 404
    assert answer.json()


def test_the_page_and_its_files(served):
    assert served.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert served.get("/static/index.html").content == served.get("/").content
    assert served.get("/static/app.py").status_code == 404


def test_an_unknown_path_has_the_shape_of_an_error(served):
    assert served.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert served.get("/v1/images/generations").status_code == 405


def test_figures_do_not_grow_with_what_clients_send(served):
    for number in range(5):
        served.get(f"/path/{number}")
    assert "/path/" not in served.get("/metrics").text


@pytest.mark.parametrize(("asked", "found"), [(False, False), (True, True)])
def test_prompts_are_logged_only_where_asked_for(saved_model, caplog, asked, found):
    with caplog.at_level(logging.DEBUG), serving(saved_model, log_prompts=asked) as served:
        served.post({"prompt": PROMPT, "method": "scd"})
        served.post({"prompt": PROMPT, "size": "33x33"})
        served.post({"prompt": PROMPT, "unknown": PROMPT})
    own = [record.getMessage() for record in caplog.records if record.name.startswith(("hawk", "uvicorn"))]
    assert any("/v1/images/generations 200" in line for line in own)
    assert any(PROMPT in line for line in own) == found


def test_keys():
    door = Doorkeeper(ServerConfig(keys=("first-key-of-many", KEY)))
    assert door.client("/v1/models", f"Bearer {KEY}") == "key 2"
    assert door.client("/readyz", "") is None
    for header in ("", KEY, "Bearer ", f"Bearer {KEY}x", "Basic !!!", "Bearer \udcff"):
        with pytest.raises(ApiError) as caught:
            door.client("/v1/models", header)
        assert caught.value.status == 401


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no API key"),
        ("# only a comment\n", "no API key"),
        ("short\n", "16"),
        ("a key with a space\n", "space"),
    ],
)
def test_files_of_keys(tmp_path, content, message):
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(HawkError, match=message):
        read_keys(path)
    path.write_text(f"# mine\n\n{KEY}\n")
    assert read_keys(path) == (KEY,)


WRONG_ORIGINS = (
    "*",
    "null",
    "app.example",
    "https://",
    "https://*.example",
    "https://app.example/",
    "https://app.example/page",
    "https://app.example:443",
    "https://App.example",
    "https://app.example https://other.example",
    "https://me@app.example",
)
WRONG_HOSTS = (
    "",
    "*",
    "*.example",
    "https://app.example",
    "app.example:8000",
    "app.example/x",
    "a b",
    "bücher.example",
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--api-key-file", "nothing"], "cannot read the API keys in nothing: No such file"),
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached from other machines"),
        (["--host", "no.such.name.invalid", "--no-auth"], "--host takes an address of this machine, as 127.0.0.1 or"),
        (["--host", "nohost"], "not 'nohost': there is no such address or host name"),
        (["--host", ""], "--host takes an address of this machine"),
        (["--host", "http://127.0.0.1"], "--host takes an address of this machine"),
        (["--host", "127.0.0.1:8000"], "--host takes an address of this machine"),
        (["--host", "192.0.2.1", "--no-auth"], "this machine does not have that address"),
        *((["--cors", origin], "--cors takes an origin as a browser sends it") for origin in WRONG_ORIGINS),
        *((["--allowed-host", name], "--allowed-host takes a host name alone") for name in WRONG_HOSTS),
    ],
)
def test_wrong_options_end_with_one_line(empty_folder, options, message):
    result = CliRunner().invoke(app, ["serve", *options])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_sound_names_and_origins_are_taken():
    assert host_name("Images.example.ORG.") == "images.example.org"
    for origin in ("https://app.example", "http://localhost:3000", "http://[::1]:5173", "https://app.example:8443"):
        check_origin(origin)


def test_a_missing_package_ends_with_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "fastapi" else object())
    result = CliRunner().invoke(app, ["serve"])
    assert (result.exit_code, result.stderr.splitlines()) == (
        2,
        ["hawk: hawk serve needs fastapi: run pip install '.[serve]' in Hawk's folder"],
    )
