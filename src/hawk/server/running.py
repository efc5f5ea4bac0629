"""Runs the application until a signal: the first one drains the server, a second one stops it.

A connection without a request under way is closed after some seconds, so that silent clients hold no place.
"""

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

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from hawk.errors import HawkError
from hawk.server.backend import Backend
from hawk.server.config import ServerConfig

LOGGER = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST_ANSWERS = 5
"""Seconds that clients have to read their answers after the last image was drawn."""
LAST_STEP = 10.0
"""Seconds that the worker's running step may take to end after the server was stopped."""


class HawkServer(uvicorn.Server):
    """A server that goes on answering while the worker draws the last images: new requests are refused by 503."""

    def __init__(self, config: uvicorn.Config, worker: Backend) -> None:
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


class TimedProtocol(H11Protocol):
    """HTTP/1.1 on one connection. The whole head of a request must arrive within `idle_seconds`.

    The seconds count from the beginning of the connection, or from the end of the answer before. A head that arrives
    byte by byte gets no more time. The time of a body and of its answer is limited by the guard.
    """

    idle_seconds = 20.0
    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Count the seconds while no request is under way; those that count already go on."""
        if self.transport.is_closing():  # as after a head that is no HTTP
            return
        # before the first head, the state is IDLE and there is no cycle
        if self.conn.their_state is not h11.IDLE and not self.cycle.response_complete:
            self._forget()
        elif self._limit is None:
            self._limit = self.loop.call_later(self.idle_seconds, self._close)

    def _forget(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _close(self) -> None:
        """Close the connection; what a client has not read after as many seconds again is dropped."""
        self.timeout_keep_alive_handler()
        self._limit = self.loop.call_later(self.idle_seconds, self.transport.abort)


def protocol_of(seconds: float) -> type[TimedProtocol]:
    """The protocol that closes connections after so many seconds without a request."""

    class Protocol(TimedProtocol):
        idle_seconds = seconds

    return Protocol


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


def server_of(app: ASGIApp, worker: Backend, config: ServerConfig) -> HawkServer:
    """The server of an application."""
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=config.behind_proxy,
        forwarded_allow_ips="127.0.0.1,::1",
        lifespan="off",
        loop="asyncio",  # also where uvloop is installed, as with Ray
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
