"""`hawk serve`: images over HTTP."""

from __future__ import annotations

import logging
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from hawk.cli.options import DeviceOption, DrafterOption, DtypeOption, EngineOption, ModelOption, ThreadsOption
from hawk.errors import INTERRUPTED, HawkError, install

LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
HOST_NAME = re.compile(rf"{LABEL}(?:\.{LABEL})*")
ORIGIN = re.compile(rf"(?P<scheme>https?)://(?:{LABEL}(?:\.{LABEL})*|\[[0-9a-f:]+\])(?::(?P<port>[1-9][0-9]{{0,4}}))?")
"""A web origin as browsers send it in the header Origin."""


def serve(
    model: ModelOption = "bundled",
    drafter: DrafterOption = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is every address.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="File with the API keys that are accepted, one in a line.")
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Listen on other addresses than loopback without an API key.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="Host name under which clients reach the server, besides localhost."),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            "--cors", metavar="ORIGIN", help="Web origin whose pages may use the API, as https://example.org."
        ),
    ] = None,
    behind_proxy: Annotated[
        bool,
        typer.Option("--behind-proxy", help="Take clients' addresses from X-Forwarded-For of a proxy on this machine."),
    ] = False,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, max=256, help="Images drawn at once.")] = 4,
    max_queue: Annotated[int, typer.Option("--max-queue", min=0, max=10_000, help="Images that may wait.")] = 64,
    per_client: Annotated[
        int, typer.Option("--per-client", min=1, max=10_000, help="Requests of a client (key or address) at once.")
    ] = 16,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds from a request's arrival to its last image.")
    ] = 300.0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    engine: EngineOption = "auto",
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts to the log.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve images over HTTP: OpenAI's images API, and the part of the A1111 API that chat programs use.

    Ctrl-C or SIGTERM ends the server once the accepted images are drawn, a second one at once.
    """
    check_installed()
    from hawk.cli.options import load_pipeline
    from hawk.server.config import Limits, ServerConfig, read_keys
    from hawk.server.running import check_address

    check_address(host)
    keys = () if api_key_file is None else read_keys(api_key_file)
    if not (keys or no_auth or is_loopback(host)):
        raise HawkError(f"{host} can be reached from other machines: give --api-key-file, or --no-auth for no key")
    for origin in cors or []:
        check_origin(origin)
    hosts = tuple(host_name(name) for name in allowed_host or [])
    limits = Limits(queue=max_queue, per_client=per_client, timeout=timeout)
    config = ServerConfig(max_batch, limits, keys, tuple(cors or ()), hosts, log_prompts, behind_proxy)

    from hawk.server.app import make_app, make_worker
    from hawk.server.metrics import ServerMetrics
    from hawk.server.running import listening, run, server_of

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with listening(host, port) as sock:
        pipe = load_pipeline(model, device, dtype, drafter, threads, engine)
        metrics = ServerMetrics(max_batch)
        worker = make_worker(pipe, config, metrics)
        server = server_of(make_app(config, worker, metrics), worker, config)
        at = f"[{host}]" if ":" in host else host
        print(f"serving {pipe.model.name} at http://{at}:{sock.getsockname()[1]}", flush=True)
        if no_auth and not keys and not is_loopback(host):
            print("WARNING: --no-auth: everybody who reaches this address can draw images", flush=True)
        if open_page:
            show_page(sock.getsockname()[1])
        finished = run(server, sock)
    if not finished:
        raise typer.Exit(INTERRUPTED)


def show_page(port: int) -> None:
    """Open the page in a browser, where this machine has a screen."""
    import os
    import sys
    import webbrowser

    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(f"http://127.0.0.1:{port}/")


def check_installed() -> None:
    """Raise `HawkError` unless the packages of the extra "serve" are installed."""
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise HawkError(f"hawk serve needs {', '.join(missing)}: {install('serve')}")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(name: str) -> str:
    """A host name as the server compares it; `HawkError` for what no client sends as a host name."""
    plain = name.lower().rstrip(".")
    if not HOST_NAME.fullmatch(plain):
        raise HawkError(
            "--allowed-host takes a host name alone, as images.example.org (no scheme, port, path or *; letters beyond "
            f"a-z in their xn-- form), not {name!r}"
        )
    return plain


def check_origin(origin: str) -> None:
    """Raise `HawkError` for what no browser sends as the origin of a page."""
    match = ORIGIN.fullmatch(origin)
    if match is None or (match["scheme"], match["port"]) in (("http", "80"), ("https", "443")):
        raise HawkError(
            "--cors takes an origin as a browser sends it: http:// or https://, a host name in small letters, and the "
            f"port unless it is 80 or 443, as https://example.org or http://localhost:3000, not {origin!r}"
        )
