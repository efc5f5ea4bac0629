"""The application: routes, errors and the guard around them, made from settings and a backend."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from hawk import __version__
from hawk.pipeline import HawkPipeline
from hawk.server.answers import ApiError, internal
from hawk.server.backend import Backend
from hawk.server.config import ServerConfig
from hawk.server.guard import Guard
from hawk.server.health import health_routes
from hawk.server.live_api import live_routes
from hawk.server.metrics import ServerMetrics
from hawk.server.openai_api import openai_routes
from hawk.server.page import page_routes
from hawk.server.sdapi import sdapi_routes
from hawk.server.service import ClientGoneError, Service
from hawk.server.studio import Studio
from hawk.server.worker import Worker

GONE = 499
"""The status, never sent, of an answer to a client that went away."""


def make_worker(pipe: HawkPipeline, config: ServerConfig, metrics: ServerMetrics) -> Worker:
    """The worker of a server; its thread is not started yet."""
    return Worker(Studio(pipe, config.limits.area), config.places, config.limits.queue, metrics, config.log_prompts)


def make_app(config: ServerConfig, worker: Backend, metrics: ServerMetrics) -> ASGIApp:
    """The application of a server."""
    app = fastapi_app(config, worker, metrics)
    routes = frozenset(app.openapi()["paths"]) | {"/", "/openapi.json"}
    return Guard(app, config, metrics, routes)


def fastapi_app(config: ServerConfig, worker: Backend, metrics: ServerMetrics) -> FastAPI:
    """The routes, without the guard: what the OpenAPI document describes."""
    service = Service(config, worker)
    app = FastAPI(
        title="Hawk",
        version=__version__,
        summary="Images from text by autoregressive models with lossless speculative decoding.",
        docs_url=None,  # its page loads scripts from another site
        redoc_url=None,
        redirect_slashes=False,  # a redirect would send clients, with their keys, to what the Host header names
    )
    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientGoneError, gone)
    app.add_exception_handler(Exception, failed)
    routers = (openai_routes(service), live_routes(service), sdapi_routes(service), health_routes(service, metrics))
    for router in routers:
        app.include_router(router)
    app.include_router(page_routes())
    describe(app, keys=bool(config.keys))
    return app


def describe(app: FastAPI, keys: bool) -> None:
    """Correct the OpenAPI document: a body that does not match is answered by 400, and keys are bearer tokens."""
    document = app.openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    components = document.setdefault("components", {})
    for name in ("HTTPValidationError", "ValidationError"):
        components.get("schemas", {}).pop(name, None)
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]


async def api_error(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that cannot be served."""
    assert isinstance(error, ApiError)
    return error.response(request.url.path)


async def invalid(request: Request, error: Exception) -> JSONResponse:
    """The answer to a body that does not match its schema: the first fault, in OpenAI's shape."""
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    kind, param = str(first["type"]), param_at(first["loc"])
    if kind == "json_invalid":
        text = "the body is no JSON text"
        param = None
    elif param is None:
        text = "send a JSON object, with the header content-type: application/json"
    else:
        text = f"{param} {fault(kind, first)}"
    return ApiError(400, text, param=param, code=kind).response(request.url.path)


FAULTS = {
    "bool": "must be true or false",
    "extra_forbidden": "is not a parameter of this route",
    "float": "must be a number",
    "greater_than_equal": "must be {ge} or more",
    "int": "must be a whole number",
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "string": "must be text",
    "string_too_short": "must not be empty",
}
"""What is wrong with a field, by the kind of pydantic's error, or by the first word of that kind."""
LONGEST_SHOWN = 20
"""The most characters of a wrong value that a message repeats."""


def fault(kind: str, error: Mapping[str, Any]) -> str:
    """What is wrong with a field, with the value that was given where it is short."""
    text = FAULTS.get(kind) or FAULTS.get(kind.partition("_")[0])
    if text is None:
        return plain(str(error["msg"]))
    told, given = text.format(**error.get("ctx", {})), error.get("input")
    if kind in ("extra_forbidden", "missing", "string_too_short") or isinstance(given, (dict, list)):
        return told
    shown = json.dumps(given) if not isinstance(given, int) or abs(given) < 10**LONGEST_SHOWN else ""
    return f"{told}, not {shown}" if 0 < len(shown) <= LONGEST_SHOWN else told


def param_at(place: Sequence[str | int]) -> str | None:
    """The parameter that a place in the body names; None for the body itself."""
    names = [plain(str(part)) for part in place[1:] if isinstance(part, str)]
    return ".".join(names)[:100] or None


def plain(text: str) -> str:
    """Text of a client's in ASCII: halves of surrogate pairs cannot be sent back."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


async def http_error(request: Request, error: Exception) -> JSONResponse:
    """The answer of the framework's own refusals: an unknown path, a wrong method, a body that is not JSON."""
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    headers, detail = dict(error.headers or {}), str(error.detail)
    if detail == "There was an error parsing the body":
        detail = "the body is no JSON text in UTF-8"
    return ApiError(error.status_code, detail, code=codes.get(error.status_code), headers=headers).response(
        request.url.path
    )


async def failed(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request at which a route failed; the guard logs the error under the same reference."""
    return internal(request.scope["state"]["hawk_reference"]).response(request.url.path)


async def gone(request: Request, error: Exception) -> Response:
    """What ends a request whose client went away; nobody reads it."""
    return Response(status_code=GONE)
