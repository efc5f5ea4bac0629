"""Errors as clients are told of them: in the shape of OpenAI's API, or in that of the A1111 API."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import JSONResponse

A1111_PATHS = "/sdapi/"
"""The beginning of the paths of the A1111 API."""


@dataclass
class ApiError(Exception):
    """A request that cannot be served: the HTTP status, and what OpenAI's API calls message, type, param and code."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    @property
    def shape(self) -> dict[str, Any]:
        """The error in the shape of OpenAI's API."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self, path: str) -> JSONResponse:
        """The answer to a request of that path."""
        shape = self.shape
        if path.startswith(A1111_PATHS):
            shape = {"error": self.code or self.type, "detail": self.message, "body": "", "errors": self.message}
        return JSONResponse(shape, self.status, self.headers)


def wrong(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A wrong request (400)."""
    return ApiError(400, message, param=param, code=code)


def internal(reference: str) -> ApiError:
    """A fault of the server (500), which the log names by `reference`."""
    return ApiError(500, f"the server failed (error {reference})", "server_error", code="internal_error")


def unavailable(message: str, code: str = "unavailable", retry_after: int = 10) -> ApiError:
    """The server is stopping, is not ready yet, or lost what it was drawing (503)."""
    return ApiError(503, message, "server_error", code=code, headers={"retry-after": str(retry_after)})


def too_many(message: str, retry_after: int) -> ApiError:
    """The queue is full, or the client has too many requests (429)."""
    headers = {"retry-after": str(retry_after)}
    return ApiError(429, message, "rate_limit_error", code="rate_limit_exceeded", headers=headers)
