"""The page at `/`: plain files that are read once, so that no path of a client reaches the file system."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from hawk.server.answers import ApiError

INDEX = "index.html"
TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "png": "image/png",
    "svg": "image/svg+xml",
}
"""Kinds of files of the page; files of other kinds are not served."""


def page_routes() -> APIRouter:
    """The routes / and /static/NAME, for the files of the folder `static`."""
    contents = {
        entry.name: entry.read_bytes()
        for entry in files("hawk.server").joinpath("static").iterdir()
        if entry.name.rpartition(".")[2] in TYPES
    }
    router = APIRouter(include_in_schema=False)

    def file(name: str) -> Response:
        if name not in contents:
            raise ApiError(404, "there is no such file", code="not_found")
        kind = TYPES[name.rpartition(".")[2]]
        return Response(contents[name], media_type=kind, headers={"cache-control": "no-cache"})

    @router.get("/")
    async def index() -> Response:
        """The page."""
        return file(INDEX)

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        """A file that the page loads."""
        return file(name)

    return router
