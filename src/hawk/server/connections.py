"""Connections: one that has no request under way is closed after some seconds, so that silent clients hold no place."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


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
