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
from hawk.server.config import ServerConfig
from hawk.server.metrics import ServerMetrics
from hawk.server.security import HEADERS, Doorkeeper

LOGGER = logging.getLogger(__name__)

MOST_DISCARDED = 32 * 2**20
"""Bytes of a body that is too large which are read and dropped, so that the client reads the answer."""


class BodyGoneError(Exception):
    """The client went away before its body was complete."""


@dataclass
class Answered:
    """The status of the answer, once it has begun, and whether it is complete."""

    status: int = 0
    complete: bool = False


class Guard:
    """Wraps the application; the body of a request is read here, within limits, before the application is called."""

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

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered.status = message["status"]
                taken = {name for name, _ in message.get("headers", ())}
                added = [(name.encode(), value.encode("latin-1")) for name, value in more]
                message["headers"] = [*message.get("headers", ()), *(each for each in added if each[0] not in taken)]
            await asyncio.wait_for(send(message), self.config.limits.write_seconds)  # a client may stop reading
            answered.complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._serve(scope, receive, answer, headers)
        except ApiError as error:
            await error.response(scope["path"])(scope, receive, answer)
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

    async def _serve(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str]) -> None:
        """Check a request's headers, read its body, and let the application answer it."""
        client = self.door.check(scope["path"], headers) if scope["method"] != "OPTIONS" else None
        if scope["method"] == "OPTIONS":
            allowed = bool(self.door.cors(headers.get("origin")))
            await Response(status_code=204 if allowed else 405)(scope, receive, send)
            return
        scope["state"]["hawk_client"] = client
        try:
            body = await asyncio.wait_for(self._body(receive, headers), self.config.limits.body_seconds)
        except TimeoutError as error:
            raise ApiError(408, "the body did not arrive in time", code="timeout") from error
        waiting = [body]

        async def replay() -> Message:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            return await receive()

        await self.app(scope, replay, send)

    async def _body(self, receive: Receive, headers: dict[str, str]) -> bytes:
        """The body of a request; `ApiError` for one that is too large."""
        most, size = self.config.limits.body, 0
        parts: list[bytes] = []
        declared = headers.get("content-length", "0")
        large = declared.isdigit() and int(declared[:18]) > most
        more = True
        while more and size <= MOST_DISCARDED:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise BodyGoneError
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            large = large or size > most
            if large:
                parts.clear()
            else:
                parts.append(part)
        if large:
            raise ApiError(413, f"the body must have at most {most} bytes", code="body_too_large")
        return b"".join(parts)

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
