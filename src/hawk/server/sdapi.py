"""The part of the A1111 web UI's API that Open WebUI, SillyTavern and others use to draw images."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from hawk.decoding.request import MAX_SEED
from hawk.server.answers import wrong
from hawk.server.card import ModelCard
from hawk.server.jobs import Drawn, Wish
from hawk.server.openai_schema import GUIDANCE
from hawk.server.pictures import encoded
from hawk.server.service import Service, check_guidance, client_of

MOST_SIDE = 2**16


class TextToImage(BaseModel):
    """What to draw. Fields of the A1111 API that are not listed are taken and have no effect."""

    model_config = ConfigDict(extra="ignore")

    prompt: str = Field("", description="What to draw.")
    negative_prompt: str | None = Field("", description="What the images should not show.")
    seed: int | None = Field(-1, ge=-1, le=MAX_SEED, description="-1 is a random seed.")
    width: int | None = Field(None, ge=1, le=MOST_SIDE, description="A size that the model lacks becomes its own.")
    height: int | None = Field(None, ge=1, le=MOST_SIDE, description="As `width`.")
    cfg_scale: float | None = Field(None, description=GUIDANCE)
    batch_size: int | None = Field(1, ge=1, le=100, description="Images; `n_iter` times as many are drawn.")
    n_iter: int | None = Field(1, ge=1, le=100, description="See `batch_size`.")
    sampler_name: str | None = Field(None, description="A method of Hawk; other names mean hawk.")
    send_images: bool | None = Field(True, description="False leaves the files out of the answer.")


class Options(BaseModel):
    """Options; only the name of the model counts, and it must be that of the served model."""

    model_config = ConfigDict(extra="ignore")

    sd_model_checkpoint: str | None = None


def sdapi_routes(service: Service) -> APIRouter:
    """The routes under /sdapi/v1."""
    router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])
    card = service.model

    @router.post("/txt2img", summary="Draw images")
    async def txt2img(body: TextToImage, request: Request) -> JSONResponse:
        """Draw `batch_size` times `n_iter` images of a prompt."""
        drawing = await service.begin(request, wish_of(body, card))
        try:
            images = await drawing.images()
            texts = [infotext(each) for each in images]
            content = [
                await asyncio.to_thread(encoded, each.picture, "png", {"parameters": text, **each.metadata})
                for each, text in zip(images, texts, strict=True)
            ]
        finally:
            drawing.close()
        info = info_of(drawing.wish, images, texts, card)
        parameters = body.model_dump()
        return JSONResponse(
            {"images": content if body.send_images else [], "parameters": parameters, "info": json.dumps(info)}
        )

    @router.get("/progress", summary="How far the client's images are")
    async def progress(request: Request) -> JSONResponse:
        """The share of the client's oldest request that is drawn; no picture of it."""
        jobs = [job for job in service.worker.jobs() if job.client == client_of(request)]
        share = min((job.progress for job in jobs), default=0.0)
        state = {
            "skipped": False,
            "interrupted": False,
            "job": "txt2img" if jobs else "",
            "job_count": len(jobs),
            "job_no": 0,
            "sampling_step": 0,
            "sampling_steps": 0,
        }
        document = {"progress": share, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}
        return JSONResponse(document)

    @router.post("/interrupt", summary="Stop the client's images")
    async def interrupt(request: Request) -> JSONResponse:
        """Cancel the requests of the client, and of no other."""
        for job in service.worker.jobs():
            if job.client == client_of(request):
                service.worker.cancel(job)
        return JSONResponse({})

    @router.get("/options", summary="Options")
    async def options() -> JSONResponse:
        """The name of the model."""
        return JSONResponse({"sd_model_checkpoint": card.name, "samples_format": "png", "CLIP_stop_at_last_layers": 1})

    @router.post("/options", summary="Choose the model")
    async def choose(body: Options) -> JSONResponse:
        """Take the name of the served model, and refuse any other."""
        if body.sd_model_checkpoint not in (None, "", card.name, title(card)):
            raise wrong(f"there is no such model; this server has {card.name}", "sd_model_checkpoint")
        return JSONResponse(None)

    for path, content in lists(card).items():
        router.add_api_route(f"/{path}", listing(content), methods=["GET"], summary=f"List {path}", name=path)
    return router


def listing(content: list[dict[str, Any]]) -> Any:
    """A route that answers with a list that does not change."""

    async def listed() -> JSONResponse:
        """A list of this server, in the form of the A1111 API."""
        return JSONResponse(content)

    return listed


def title(card: ModelCard) -> str:
    """The model's name as the A1111 API shows it."""
    return f"{card.name} ({card.width}x{card.height})"


def lists(card: ModelCard) -> dict[str, list[dict[str, Any]]]:
    """The lists that clients read before they draw; samplers are Hawk's methods."""
    model = {"title": title(card), "model_name": card.name, "hash": None, "sha256": None, "filename": card.name}
    scheduler = {
        "name": "automatic",
        "label": "Automatic",
        "aliases": None,
        "default_rho": -1,
        "need_inner_model": False,
    }
    upscaler = {"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 1}
    return {
        "sd-models": [{**model, "config": None}],
        "samplers": [{"name": name, "aliases": [], "options": {}} for name in card.methods],
        "schedulers": [scheduler],
        "upscalers": [upscaler],
        "latent-upscale-modes": [{"name": "None"}],
        "sd-vae": [],
    }


def wish_of(body: TextToImage, card: ModelCard) -> Wish:
    """The images that a body asks for. A size that the model does not draw becomes the model's own."""
    check_guidance("cfg_scale", body.cfg_scale)
    return Wish(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        images=(body.batch_size or 1) * (body.n_iter or 1),
        seed=None if body.seed in (None, -1) else body.seed,
        height=body.height,
        width=body.width,
        any_size=True,
        guidance_scale=body.cfg_scale,
        method=body.sampler_name if body.sampler_name in card.methods else "hawk",
        watched=True,  # for the route /progress
    )


def infotext(drawn: Drawn) -> str:
    """An image's settings in the one text that clients of the A1111 API show."""
    text, settings = drawn.metadata, json.loads(drawn.metadata["settings"])
    lines = [text["prompt"]]
    if "negative_prompt" in text:
        lines.append(f"Negative prompt: {text['negative_prompt']}")
    facts = {
        "Steps": drawn.stats.nfe,
        "Sampler": text["method"],
        "CFG scale": settings["cfg_scale"],
        "Seed": drawn.seed,
        "Size": f"{settings['width']}x{settings['height']}",
        "Model": text["model"],
    }
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in facts.items())])


def info_of(wish: Wish, images: list[Drawn], texts: list[str], card: ModelCard) -> dict[str, Any]:
    """What the field `info` of an answer says, before it is turned into text."""
    size = images[0].picture.size
    return {
        "prompt": wish.prompt,
        "all_prompts": [wish.prompt] * len(images),
        "negative_prompt": wish.negative_prompt,
        "all_negative_prompts": [wish.negative_prompt] * len(images),
        "seed": images[0].seed,
        "all_seeds": [each.seed for each in images],
        "width": size[0],
        "height": size[1],
        "sampler_name": wish.method,
        "cfg_scale": card.defaults.cfg_scale if wish.guidance_scale is None else wish.guidance_scale,
        "steps": images[0].stats.nfe,
        "batch_size": len(images),
        "sd_model_name": card.name,
        "infotexts": texts,
        "stats": [asdict(each.stats) | {"broken_sources": sorted(each.stats.broken_sources)} for each in images],
    }
