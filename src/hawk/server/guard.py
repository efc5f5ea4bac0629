"""The outermost layer of the application: checks, limits, headers, the log and the figures of every request."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from dataclasses import dataclass
from typing import Any

from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hawk.server.answers import ApiError, internal
from hawk.server.config import Limits, ServerConfig
from hawk.server.metrics import ServerMetrics
from hawk.server.security import HEADERS, Doorkeeper

LOGGER = logging.getLogger(__name__)

MOST_DISCARDED = 256 * 2**20
"""Bytes of a refused body that are read and dropped: many clients read an answer only after they have sent all."""


class BodyGoneError(Exception):
    """The client went away before its body was complete."""


@dataclass
class Answered:
    """The status of the answer, once it has begun, and whether it is complete."""

    status: int = 0
    complete: bool = False


class Body:
    """The body of a request, which is read or dropped within limits; the time counts from the making of this object."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self.receive, self.limits = receive, limits
        self._deadline = asyncio.get_running_loop().time() + limits.body_seconds
        self._more = True

    async def read(self, headers: dict[str, str]) -> bytes:
        """The whole body.

        Raises:
            ApiError: it is too large, or does not arrive in time.
            BodyGoneError: the client closed the connection.
        """
        too_large = ApiError(413, f"the body must have at most {self.limits.body} bytes", code="body_too_large")
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared[:18]) > self.limits.body:
            raise too_large
        read = bytearray()
        try:
            async with asyncio.timeout_at(self._deadline):
                while self._more:
                    read += await self._part()
                    if len(read) > self.limits.body:
                        raise too_large
        except TimeoutError as error:
            raise ApiError(408, "the body did not arrive in time", code="timeout") from error
        return bytes(read)

    async def drop(self) -> bool:
        """Read the rest of the body and forget it; returns whether the body was read to its end."""
        dropped = 0
        try:
            async with asyncio.timeout_at(self._deadline):
                while self._more and dropped < MOST_DISCARDED:
                    dropped += len(await self._part())
        except (TimeoutError, BodyGoneError):
            return False
        return not self._more

    async def _part(self) -> bytes:
        """The next part of the body."""
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise BodyGoneError
        self._more = message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part


class Guard:
    """Wraps the application; the body of a request is read here, within limits, before the application is called.

    HEAD is answered as GET, without a body.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, metrics: ServerMetrics, routes: frozenset[str]) -> None:
        self.app, self.config, self.metrics, self.routes = app, config, metrics, routes
        self.door = Doorkeeper(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started, reference, answered = time.perf_counter(), uuid.uuid4().hex[:12], Answered()
        scope.setdefault("state", {})["hawk_reference"] = reference
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        more = [*HEADERS.items(), ("x-request-id", reference), *self.door.cors(headers.get("origin"))]
        if "transfer-encoding" in headers and "content-length" in headers:
            more.append(("connection", "close"))  # a proxy may see another end of this body, and a request behind it

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered.status = message["status"]
                taken = {name for name, _ in message.get("headers", ())}
                added = [(name.encode(), value.encode("latin-1")) for name, value in more]
                message["headers"] = [*message.get("headers", ()), *(each for each in added if each[0] not in taken)]
            await asyncio.wait_for(send(message), self.config.limits.write_seconds)  # a client may stop reading
            answered.complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        body = Body(receive, self.config.limits)
        try:
            await self._serve(scope, body, answer, headers)
        except ApiError as error:
            await self._refuse(error, scope, body, answer)
        except BodyGoneError:
            pass
        except TimeoutError:
            LOGGER.info("request %s: the client stopped reading", reference)
        except Exception:
            LOGGER.exception("error %s in %s %s", reference, scope["method"], self.route(scope["path"]))
            if not answered.status:
                await internal(reference).response(scope["path"])(scope, receive, answer)
        finally:
            self._note(scope, reference, answered, time.perf_counter() - started)

    async def _serve(self, scope: Scope, body: Body, send: Send, headers: dict[str, str]) -> None:
        """Check a request's headers, read its body, and let the application answer it."""
        client = self.door.check(scope["path"], headers) if scope["method"] != "OPTIONS" else None
        if scope["method"] == "OPTIONS":
            allowed = bool(self.door.cors(headers.get("origin")))
            await Response(status_code=204 if allowed else 405)(scope, body.receive, send)
            return
        scope["state"]["hawk_client"] = client
        waiting = [await body.read(headers)]

        async def replay() -> Message:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            return await body.receive()

        # uvicorn sends no body to HEAD, so that the routes of GET answer it
        as_get = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        await self.app(as_get, replay, send)

    async def _refuse(self, error: ApiError, scope: Scope, body: Body, send: Send) -> None:
        """Send the answer of an error at once, but end it only after the rest of the body was read and dropped.

        A connection that is closed while its client still sends is reset, and the client may never see the answer.
        """

        async def hold(message: Message) -> None:
            await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

        await error.response(scope["path"])(scope, body.receive, hold)
        if not await body.drop():
            LOGGER.info("request %s: the rest of the refused body was not read", scope["state"]["hawk_reference"])
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def route(self, path: str) -> str:
        """The path, if it is one of the routes: figures and logs must not grow with what clients send."""
        return path if path in self.routes else "other"

    def _note(self, scope: Scope, reference: str, answered: Answered, seconds: float) -> None:
        """Log a request and count it; an answer that was not completed has the status 499."""
        route, status = self.route(scope["path"]), answered.status if answered.complete else 499
        self.metrics.answered(route, status, seconds)
        state: dict[str, Any] = scope.get("state", {})
        client = state.get("hawk_client") or (scope["client"] or ("local",))[0]
        level = logging.DEBUG if route in ("/healthz", "/readyz", "/metrics") else logging.INFO
        LOGGER.log(level, "%s %s %s %d %.2f s, %s", reference, scope["method"], route, status, seconds, client)
