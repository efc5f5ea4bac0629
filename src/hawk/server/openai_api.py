"""The routes of OpenAI's images API."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from hawk.server.answers import ApiError, wrong
from hawk.server.card import ModelCard
from hawk.server.jobs import Drawn, Partial, Wish
from hawk.server.openai_schema import (
    ALIASES,
    ERRORS,
    ImageData,
    ImageRequest,
    ImagesResponse,
    ModelEntry,
    ModelList,
    Usage,
)
from hawk.server.pictures import Format, encoded
from hawk.server.service import ClientGoneError, Drawing, Service, check_guidance

SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})", re.ASCII)
LONGEST_SIZE = 20
"""The most characters of a wrong size that an error message repeats."""
ALIVE = 15.0
"""Seconds after which a stream without events sends a comment, so that proxies keep the connection."""


class EventStream(StreamingResponse):
    """Server-sent events of a drawing, which is closed whatever becomes of the connection."""

    def __init__(self, drawing: Drawing, events: AsyncIterator[str]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.drawing = drawing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.drawing.close()


def openai_routes(service: Service) -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(prefix="/v1", tags=["openai"], responses=ERRORS)
    card = service.model

    @router.post(
        "/images/generations",
        response_model=ImagesResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
        summary="Draw images",
    )
    async def generations(body: ImageRequest, request: Request) -> Response:
        """Draw `n` images of a prompt; with `stream`, their pictures are sent as server-sent events."""
        wish = wish_of(body, card)
        drawing = await service.begin(request, wish)
        answer = Answer(drawing, body.output_format or "png", body.output_compression, card)
        if body.stream:
            return EventStream(drawing, answer.events())
        try:
            return Response(await answer.whole(), media_type="application/json")
        finally:
            drawing.close()

    @router.get("/models", summary="List the models")
    async def models() -> ModelList:
        """The one model that is served."""
        return ModelList(data=[entry_of(card)])

    @router.get("/models/{name:path}", summary="Look up a model")
    async def model(name: str) -> ModelEntry:
        """The model, also under the names that clients have built in."""
        check_model(name, card)
        return entry_of(card)

    return router


def entry_of(card: ModelCard) -> ModelEntry:
    """The served model as /v1/models lists it."""
    size = f"{card.width}x{card.height}"
    return ModelEntry(id=card.name, created=card.created, size=size, methods=list(card.methods))


def check_model(name: str | None, card: ModelCard) -> None:
    """Raise `ApiError` for what is neither a name of the served model nor one that clients have built in."""
    if name is not None and name not in {card.name, card.loaded_as, *ALIASES} - {""}:
        raise ApiError(
            404, f"there is no such model; this server has {card.name}", param="model", code="model_not_found"
        )


def wish_of(body: ImageRequest, card: ModelCard) -> Wish:
    """The images that a body asks for; `ApiError` for what this server does not do."""
    check_model(body.model, card)
    if body.response_format == "url":
        raise wrong("this server keeps no files: response_format must be b64_json", "response_format")
    if body.background == "transparent":
        raise wrong("images have no transparent background: background must be auto or opaque", "background")
    kind, quality = body.output_format or "png", body.output_compression
    if kind == "png" and quality not in (None, 100):
        raise wrong("output_compression goes with the output_format jpeg or webp", "output_compression")
    if body.partial_images and not body.stream:
        raise wrong("partial_images go with stream", "partial_images")
    width, height = size_of(body.size, card)
    check_guidance("guidance_scale", body.guidance_scale)
    return Wish(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        images=body.n or 1,
        seed=body.seed,
        height=height,
        width=width,
        guidance_scale=body.guidance_scale,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        method=body.method or "hawk",
        partials=body.partial_images or 0,
    )


def size_of(size: str | None, card: ModelCard) -> tuple[int | None, int | None]:
    """Width and height in pixels, None for the model's own; `ApiError` for what names no size."""
    if size is None or size == "auto":
        return None, None
    match = SIZE.fullmatch(size)
    sides = (0, 0) if match is None else (int(match[1]), int(match[2]))
    if match is None or any(side % card.cell for side in sides):
        given = f", not {size}" if len(size) <= LONGEST_SIZE and size.isascii() and size.isprintable() else ""
        raise wrong(
            f"size must be auto or WIDTHxHEIGHT in pixels, each a multiple of {card.cell}, as "
            f"{card.width}x{card.height}{given}",
            "size",
        )
    return sides


class Answer:
    """The images of a drawing in the form that the client asked for."""

    def __init__(self, drawing: Drawing, kind: Format, quality: int | None, card: ModelCard) -> None:
        self.drawing, self.kind, self.quality, self.card = drawing, kind, quality, card
        assert drawing.accepted is not None
        self.grid, self.created = drawing.accepted.grid, int(time.time())
        self.shape = {
            "size": f"{self.grid.width * card.cell}x{self.grid.height * card.cell}",
            "output_format": kind,
            "background": "opaque",
            "quality": "high",
        }

    async def whole(self) -> str:
        """All images in one JSON document."""
        images = await self.drawing.images()
        data = [await self.data(each) for each in images]
        usage = Usage.of(len(images) * self.grid.size)
        document = ImagesResponse(created=self.created, data=data, model=self.card.name, usage=usage, **self.shape)
        return document.model_dump_json()

    async def data(self, drawn: Drawn) -> ImageData:
        """A finished image."""
        content = await asyncio.to_thread(encoded, drawn.picture, self.kind, drawn.metadata, self.quality)
        stats = drawn.stats
        return ImageData(
            b64_json=content,
            seed=drawn.seed,
            nfe=stats.nfe,
            accept_length=round(stats.accept_length, 4),
            seconds=round(drawn.seconds, 4),
            tokens_sha256=drawn.metadata["tokens_sha256"],
        )

    async def events(self) -> AsyncIterator[str]:
        """The images as server-sent events: partial images, then each finished one; or an error."""
        try:
            async for event in self.drawing.stream(ALIVE):
                if isinstance(event, Partial):
                    content = await asyncio.to_thread(encoded, event.picture, self.kind, {}, self.quality)
                    more: dict[str, Any] = {"b64_json": content, "partial_image_index": event.index}
                    yield self.event("partial_image", {**more, "index": event.place})
                elif isinstance(event, Drawn):
                    data = (await self.data(event)).model_dump()
                    usage = Usage.of(self.grid.size).model_dump()
                    yield self.event("completed", {**data, "index": event.place, "usage": usage})
                elif event is None:
                    yield ": the image is still being drawn\n\n"
        except ClientGoneError:
            return
        except ApiError as error:
            yield server_sent("error", {"type": "error", **error.shape})

    def event(self, name: str, content: Mapping[str, Any]) -> str:
        """An event of OpenAI's images API."""
        kind = f"image_generation.{name}"
        return server_sent(kind, {"type": kind, "created_at": self.created, **self.shape, **content})


def server_sent(name: str, content: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"
