"""`hawk serve`: images over HTTP."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hawk.cli.options import (
    DeviceOption,
    DrafterOption,
    DtypeOption,
    EngineOption,
    ModelOption,
    RayOption,
    ThreadsOption,
)
from hawk.errors import INTERRUPTED, HawkError, install

if TYPE_CHECKING:
    from hawk.server.backend import Backend
    from hawk.server.config import ServerConfig
    from hawk.server.metrics import ServerMetrics
    from hawk.server.replica import ReplicaSettings


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
    ray: RayOption = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas",
            min=1,
            max=10_000,
            help="With --ray: processes with a model each (default: one for each GPU, or 1 without GPUs).",
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve images over HTTP: OpenAI's images API, and the part of the A1111 API that chat programs use.

    Ctrl-C or SIGTERM ends the server once the accepted images are drawn, a second one at once.
    """
    check_installed()
    from hawk.server.config import LOG_FORMAT, Limits, ServerConfig, check_origin, host_name, read_keys
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

    if ray is None and replicas is not None:
        raise HawkError("--replicas goes with --ray: without it, this process draws all images")

    from hawk.server.app import make_app
    from hawk.server.metrics import ServerMetrics
    from hawk.server.replica import ReplicaSettings
    from hawk.server.running import listening, run, server_of

    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    settings = ReplicaSettings(model, device, dtype, drafter, engine, threads, max_batch, limits)
    with listening(host, port) as sock, ExitStack() as stack:
        metrics = ServerMetrics(max_batch)
        if ray is None:
            worker = local_worker(settings, config, metrics)
        else:
            worker = replicas_at(ray, replicas, settings, config, metrics, stack)
        server = server_of(make_app(config, worker, metrics), worker, config)
        at = f"[{host}]" if ":" in host else host
        print(f"serving {worker.card.name} at http://{at}:{sock.getsockname()[1]}", flush=True)
        if no_auth and not keys and not is_loopback(host):
            print("WARNING: --no-auth: everybody who reaches this address can draw images", flush=True)
        if open_page:
            show_page(sock.getsockname()[1])
        finished = run(server, sock)
    if not finished:
        raise typer.Exit(INTERRUPTED)


def local_worker(settings: ReplicaSettings, config: ServerConfig, metrics: ServerMetrics) -> Backend:
    """The worker of this process, which has loaded the model."""
    from hawk.cli.options import load_pipeline
    from hawk.server.app import make_worker

    loaded = (settings.model, settings.device, settings.dtype, settings.drafter, settings.threads, settings.engine)
    return make_worker(load_pipeline(*loaded), config, metrics)


def replicas_at(
    address: str,
    wanted: int | None,
    settings: ReplicaSettings,
    config: ServerConfig,
    metrics: ServerMetrics,
    stack: ExitStack,
) -> Backend:
    """The replicas on a Ray cluster, which end with the stack; `HawkError` where the cluster has no room for them."""
    from dataclasses import replace

    from hawk.batch.on_ray import LOCAL, check_installed, cluster_at, device_on_ray

    check_installed()
    from hawk.server.on_ray import replicas_on_ray, resources

    cluster = stack.enter_context(cluster_at(address))
    kind = device_on_ray(settings.device, lambda: cluster).type
    model, drafter = absolute(settings.model), settings.drafter and absolute(settings.drafter)
    threads = settings.threads or (1 if kind == "cpu" else None)
    settings = replace(settings, model=model, drafter=drafter, device=kind, threads=threads)
    room = cluster.room(resources(settings))
    if wanted is not None and wanted > room:
        raise HawkError(f"the cluster at {address} has room for {room} replicas, not {wanted}: lower --replicas")
    count = wanted or (room if kind == "cuda" else 1)
    return stack.enter_context(replicas_on_ray(settings, count, config, metrics, address != LOCAL))


def absolute(name: str) -> str:
    """The name of a model with the whole path, if it is a folder: a replica has another working folder."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


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
