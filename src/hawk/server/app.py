"""The application: routes, errors and the guard around them, made from settings and a worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from hawk import __version__
from hawk.pipeline import HawkPipeline
from hawk.server.answers import ApiError, internal
from hawk.server.config import ServerConfig
from hawk.server.guard import Guard
from hawk.server.health import health_routes
from hawk.server.live_api import live_routes
from hawk.server.metrics import ServerMetrics
from hawk.server.openai_api import openai_routes
from hawk.server.page import page_routes
from hawk.server.sdapi import sdapi_routes
from hawk.server.service import ClientGoneError, ModelCard, Service
from hawk.server.studio import Studio
from hawk.server.worker import Worker

GONE = 499
"""The status, never sent, of an answer to a client that went away."""


def make_worker(pipe: HawkPipeline, config: ServerConfig, metrics: ServerMetrics) -> Worker:
    """The worker of a server; its thread is not started yet."""
    return Worker(Studio(pipe, config.limits.area), config.places, config.limits.queue, metrics, config.log_prompts)


def make_app(config: ServerConfig, worker: Worker, metrics: ServerMetrics) -> ASGIApp:
    """The application of a server."""
    app = fastapi_app(config, worker, metrics)
    routes = frozenset(app.openapi()["paths"]) | {"/", "/openapi.json"}
    return Guard(app, config, metrics, routes)


def fastapi_app(config: ServerConfig, worker: Worker, metrics: ServerMetrics) -> FastAPI:
    """The routes, without the guard: what the OpenAPI document describes."""
    service = Service(config, worker, ModelCard.of(worker.studio.pipe, int(time.time())))
    app = FastAPI(
        title="Hawk",
        version=__version__,
        summary="Images from text by autoregressive models with lossless speculative decoding.",
        docs_url=None,  # its page loads scripts from another site
        redoc_url=None,
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
    param = param_at(first["loc"])
    message = "the body is no JSON text" if first["type"] == "json_invalid" else plain(str(first["msg"]))
    if param is None and first["type"] in ("model_attributes_type", "dict_type", "missing"):
        message = "send a JSON object, with the header content-type: application/json"
    if first["type"] == "extra_forbidden":
        message = "there is no such parameter"
    text = message if param is None else f"{param}: {message}"
    return ApiError(400, text, param=param, code=str(first["type"])).response(request.url.path)


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
