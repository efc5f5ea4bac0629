"""Runs the application until a signal: the first one drains the server, a second one stops it."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from hawk.errors import HawkError
from hawk.server.config import ServerConfig
from hawk.server.connections import protocol_of
from hawk.server.worker import Worker

LOGGER = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST_ANSWERS = 5
"""Seconds that clients have to read their answers after the last image was drawn."""
LAST_STEP = 10.0
"""Seconds that the worker's running step may take to end after the server was stopped."""


class HawkServer(uvicorn.Server):
    """A server that goes on answering while the worker draws the last images: new requests are refused by 503."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self.worker = worker
        self.stopped = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain the server by the first signal, stop it by the second."""
        if not self.worker.draining:
            LOGGER.info("stopping once the accepted images are drawn; a second signal stops at once")
            self.worker.drain()
        else:
            self.stopped = True
            self.worker.stop()
            self.should_exit = self.force_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals in the body; unlike in uvicorn's own server, they are not raised again after it.

        Only the main thread of a process can; a server in another thread ends once its worker has ended.
        """
        handled = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        before = {each: signal.signal(each, self.handle_exit) for each in handled}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    async def on_tick(self, counter: int) -> bool:
        """End the server once the worker has ended."""
        if self.worker.ended.is_set():
            self.should_exit = True
        return await super().on_tick(counter)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; `HawkError` where the system refuses the address, as for a port in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except socket.gaierror as error:
        raise HawkError(no_address(host)) from error
    except OSError as error:
        why = os.strerror(error.errno or 0)
        if error.errno == errno.EADDRNOTAVAIL:
            why = "this machine does not have that address"
        raise HawkError(f"cannot listen on {host} port {port}: {why}") from error


def check_address(host: str) -> None:
    """Raise `HawkError` for what is neither an IP address nor a host name that has one."""
    try:
        if not host:
            raise HawkError(no_address(host))
        socket.getaddrinfo(host, None, socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (socket.gaierror, UnicodeError) as error:
        raise HawkError(no_address(host)) from error


def no_address(host: str) -> str:
    """The message that a host cannot be listened on, whatever the port."""
    return (
        f"--host takes an address of this machine, as 127.0.0.1 or 0.0.0.0 (all addresses), not {host!r}: "
        "there is no such address or host name"
    )


def server_of(app: ASGIApp, worker: Worker, config: ServerConfig) -> HawkServer:
    """The server of an application."""
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=config.behind_proxy,
        forwarded_allow_ips="127.0.0.1,::1",
        lifespan="off",
        http=protocol_of(config.limits.idle_seconds),
        ws="none",
        limit_concurrency=config.limits.connections,
        timeout_keep_alive=math.ceil(config.limits.idle_seconds),
        timeout_graceful_shutdown=LAST_ANSWERS,
    )
    return HawkServer(settings, worker)


def run(server: HawkServer, sock: socket.socket) -> bool:
    """Serve until a signal; returns whether all accepted images were drawn.

    Raises:
        HawkError: an error ended the worker.
    """
    server.worker.start()
    try:
        asyncio.run(server.serve(sockets=[sock]))
    finally:
        server.worker.stop()
        server.worker.join(LAST_STEP)
    if server.worker.broken:
        raise HawkError("the model cannot be used: the log shows the error")
    return not server.stopped
