"""The routes of the page: facts about the model, and drawings that are told step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from hawk.decoding.request import MAX_SEED
from hawk.drafters.methods import METHODS
from hawk.server.answers import ApiError
from hawk.server.card import ModelCard
from hawk.server.jobs import Drawn, Partial, Stepped, Wish
from hawk.server.openai_api import ALIVE, EventStream, server_sent
from hawk.server.openai_schema import ERRORS, GUIDANCE, METHOD
from hawk.server.pictures import encoded
from hawk.server.service import ClientGoneError, Drawing, Service, check_guidance

MOST_PARTIALS = 32
"""The most pictures of an unfinished image in a stream."""


class LiveRequest(BaseModel):
    """What to draw. Fields that are left out, or null, take the model's own setting."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(description="What to draw.", min_length=1)
    negative_prompt: str | None = Field(None, description="What the image should not show.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Seed of the image; random if left out.")
    guidance_scale: float | None = Field(None, description=GUIDANCE)
    temperature: float | None = Field(None, description="Sampling temperature; 0 is greedy.")
    top_k: int | None = Field(None, description="Sample from the k most likely tokens; 0 turns it off.")
    top_p: float | None = Field(None, description="Sample from the most likely tokens that hold this probability.")
    method: str | None = Field(None, description=METHOD)
    partials: int = Field(0, ge=0, le=MOST_PARTIALS, description="Pictures of the unfinished image.")


class MethodFact(BaseModel):
    """A method that the model can be drawn with."""

    name: str
    summary: str


class About(BaseModel):
    """Facts about the model, for the page; sizes are in pixels and in tokens."""

    model: str
    width: int
    height: int
    rows: int
    columns: int
    guidance_scale: float
    temperature: float
    top_k: int
    top_p: float
    methods: list[MethodFact]
    prompts: list[str] = Field(description="Prompts that name what the model was taught.")


def live_routes(service: Service) -> APIRouter:
    """The routes under /live."""
    router = APIRouter(prefix="/live", tags=["page"], responses=ERRORS)
    facts = about(service.model)

    @router.get("/about", summary="Facts about the model")
    async def read_about() -> About:
        """What the page needs to know before it draws."""
        return facts

    @router.post("/draw", response_class=StreamingResponse, summary="Draw an image and tell of every step")
    async def draw(body: LiveRequest, request: Request) -> EventStream:
        """Server-sent events: accepted, then step and partial, then drawn; or error.

        `drawn` has the file, `origins` (the source of each token, an index of `sources`, -1 for the model itself) and
        `forwards` (the number of tokens that were committed after each forward).
        """
        drawing = await service.begin(request, wish_of(body))
        return EventStream(drawing, events(drawing, service.model))

    return router


def about(card: ModelCard) -> About:
    """The facts about the served model."""
    params, grid = card.defaults, card.grid
    return About(
        model=card.name,
        width=card.width,
        height=card.height,
        rows=grid.height,
        columns=grid.width,
        guidance_scale=params.cfg_scale,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        methods=[MethodFact(name=name, summary=METHODS[name].summary) for name in card.methods],
        prompts=list(card.prompts),
    )


def wish_of(body: LiveRequest) -> Wish:
    """The image that a body asks for."""
    check_guidance("guidance_scale", body.guidance_scale)
    return Wish(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        seed=body.seed,
        guidance_scale=body.guidance_scale,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        method=body.method or "hawk",
        partials=body.partials,
        watched=True,
    )


async def events(drawing: Drawing, card: ModelCard) -> AsyncIterator[str]:
    """The steps of a drawing as server-sent events, its pictures as PNG files in base64."""
    accepted, wish = drawing.accepted, drawing.wish
    assert accepted is not None
    params, grid = accepted.params, accepted.grid
    yield server_sent(
        "accepted",
        {
            "seed": accepted.seeds[0],
            "ahead": accepted.ahead,
            "rows": grid.height,
            "columns": grid.width,
            "method": wish.method,
            "guidance_scale": params.cfg_scale,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "hint": accepted.hint,
        },
    )
    try:
        async for event in drawing.stream(ALIVE):
            if isinstance(event, Stepped):
                yield server_sent("step", {"committed": event.committed, "nfe": event.nfe, "seconds": event.seconds})
            elif isinstance(event, Partial):
                content = await asyncio.to_thread(encoded, event.picture, "png", {})
                yield server_sent("partial", {"committed": len(event.tokens), "picture": content})
            elif isinstance(event, Drawn):
                yield server_sent("drawn", await drawn(event))
            elif event is None:
                yield ": the image is still being drawn\n\n"
    except ClientGoneError:
        return
    except ApiError as error:
        yield server_sent("error", error.shape)


async def drawn(event: Drawn) -> dict[str, Any]:
    """A finished image: its PNG file with the settings, the source and the forward of each cell, and its counts.

    All that the overlay and the replay of a picture need is in this event, also for a client that missed the steps.
    """
    return {
        "picture": await asyncio.to_thread(encoded, event.picture, "png", event.metadata),
        "seed": event.seed,
        "origins": event.origins,
        "forwards": event.forwards,
        "sources": event.source_names,
        "nfe": event.stats.nfe,
        "accept_length": round(event.stats.accept_length, 4),
        "seconds": round(event.seconds, 4),
        "tokens_sha256": event.metadata["tokens_sha256"],
    }
