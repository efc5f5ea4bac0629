"""Routes for those who watch the server: is it alive, does it take requests, and its figures."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from hawk.server.metrics import CONTENT_TYPE, ServerMetrics
from hawk.server.service import Service


def health_routes(service: Service, metrics: ServerMetrics) -> APIRouter:
    """The routes /healthz, /readyz and /metrics."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="Whether the worker's thread runs")
    async def healthz() -> JSONResponse:
        """200 while the worker's thread runs, else 503: restart the server then."""
        alive = service.worker.alive
        return JSONResponse({"status": "ok" if alive else "the worker has ended"}, 200 if alive else 503)

    @router.get("/readyz", summary="Whether the server takes requests")
    async def readyz() -> JSONResponse:
        """200 while requests are taken, else 503: the model is being prepared, or the server is stopping."""
        worker = service.worker
        ready = worker.alive and worker.ready.is_set() and not worker.draining
        return JSONResponse({"status": "ok" if ready else "not ready"}, 200 if ready else 503)

    @router.get("/metrics", summary="Figures in the text format of Prometheus")
    async def figures() -> Response:
        """Requests, queue, batch fill, tokens, accepted drafts by source, forwards and times."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return router
