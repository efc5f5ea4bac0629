"""What the routes share: jobs as coroutines wait for them, limits of each client, and facts about the model."""

from __future__ import annotations

import asyncio
import math
import time
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import Request

from hawk.server.answers import ApiError, too_many, unavailable, wrong
from hawk.server.backend import Backend
from hawk.server.card import ModelCard
from hawk.server.config import ServerConfig
from hawk.server.jobs import Accepted, DrainingError, Drawn, Event, Failed, Finished, FullError, Inbox, Job, Wish

PARAMS = {
    "prompt": "prompt",
    "guidance_scale": "guidance_scale",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "negative": "negative_prompt",
    "seed": "seed",
    "size": "size",
    "height": "size",
    "width": "size",
    "tokens": "size",
    "pixels": "size",
}
"""Words of Hawk's error messages, and the parameter of the API that each of them means."""


LATE = 30.0
"""Seconds after its deadline at which a job is given up whose worker does not answer, as in a step that never ends."""


class ClientGoneError(Exception):
    """The client closed its connection before the answer was complete."""


class Drawing:
    """A job as a coroutine waits for it. `close` must be called at the end; it cancels a job that is not over."""

    def __init__(self, service: Service, request: Request, wish: Wish, client: str) -> None:
        self.service, self.wish, self.client = service, wish, client
        self.events = Inbox()
        self.accepted: Accepted | None = None
        self._closed = False
        self._gone = asyncio.ensure_future(left(request))
        service.clients[client] += 1
        try:
            self.job: Job = service.worker.submit(wish, client, service.config.limits.timeout, self.events.tell)
        except BaseException:
            self._leave()
            raise

    async def next(self, patience: float | None = None) -> Event | None:
        """The next event; None where none comes within `patience` seconds.

        Raises:
            ApiError: the job failed.
            ClientGoneError: the client closed its connection.
        """
        getter = asyncio.ensure_future(self.events.get())
        left_over = max(0.0, self.job.deadline + LATE - time.monotonic())
        timeout = left_over if patience is None else min(patience, left_over)
        try:
            await asyncio.wait({getter, self._gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not getter.done():
                if self._gone.done():
                    raise ClientGoneError
                if timeout == left_over:
                    raise error_of(Failed("timeout", "the time of the request is over"))
                return None
            event = getter.result()
        finally:
            getter.cancel()
        if isinstance(event, Failed):
            raise error_of(event)
        return event

    async def images(self) -> list[Drawn]:
        """The finished images, in the order of their places."""
        drawn: list[Drawn] = []
        while not isinstance(event := await self.next(), Finished):
            if isinstance(event, Drawn):
                drawn.append(event)
        return sorted(drawn, key=lambda each: each.place)

    async def stream(self, patience: float) -> AsyncIterator[Event | None]:
        """The events until the job is finished, and None after every `patience` seconds without one."""
        while not isinstance(event := await self.next(patience), Finished):
            yield event

    def close(self) -> None:
        """Give the job up if it is not over."""
        if not self._closed:
            self.service.worker.cancel(self.job)
            self._leave()

    def _leave(self) -> None:
        self._closed = True
        self._gone.cancel()
        self.service.clients[self.client] -= 1
        if not self.service.clients[self.client]:
            del self.service.clients[self.client]


@dataclass
class Service:
    """The settings, what draws, and the number of requests that each client has at the moment."""

    config: ServerConfig
    worker: Backend
    clients: Counter[str] = field(default_factory=Counter)

    @property
    def model(self) -> ModelCard:
        """Facts about the model."""
        return self.worker.card

    async def begin(self, request: Request, wish: Wish) -> Drawing:
        """Submit a wish and wait until the model has read it.

        Raises:
            ApiError: the wish is wrong, the queue or the client's share of it is full, or the server is stopping.
            ClientGoneError: the client closed its connection.
        """
        limits, client = self.config.limits, client_of(request)
        check_text("prompt", wish.prompt, limits.prompt)
        check_text("negative_prompt", wish.negative_prompt, limits.prompt)
        if wish.images > self.config.most_images:
            raise wrong(f"n must be from 1 to {self.config.most_images} images, not {wish.images}", "n")
        if wish.method not in self.model.methods:
            raise wrong(f"method must be one of {', '.join(self.model.methods)}", "method")
        if self.clients[client] >= limits.per_client:
            raise too_many(f"a client may have {limits.per_client} requests at once", 1)
        if not self.worker.ready.is_set():
            raise unavailable("the model is being prepared: try again soon")
        try:
            drawing = Drawing(self, request, wish, client)
        except FullError as error:
            raise too_many(str(error), error.retry_after) from error
        except DrainingError as error:
            raise unavailable("the server is stopping and takes no more requests") from error
        try:
            while drawing.accepted is None:
                event = await drawing.next()
                drawing.accepted = event if isinstance(event, Accepted) else None
        except BaseException:
            drawing.close()
            raise
        return drawing


def check_text(param: str, text: str, most: int) -> None:
    """Raise `ApiError` for a prompt that is too long or has characters that no prompt needs.

    Line breaks and tabs are taken. JSON can carry half of a surrogate pair, which no text encoder takes.
    """
    if len(text) > most:
        raise wrong(f"{param} must have at most {most} characters, not {len(text)}", param, "string_above_max_length")
    for letter in text:
        kind = unicodedata.category(letter)
        if kind == "Cs":
            raise wrong(f"{param} must be Unicode text: U+{ord(letter):04X} is half of a surrogate pair", param)
        if kind == "Cc" and letter not in "\t\n\r":
            raise wrong(f"{param} must not have control characters: leave out U+{ord(letter):04X}", param)


def check_guidance(param: str, scale: float | None) -> None:
    """Raise `ApiError` for a guidance scale between 0 and 1 or below 0: 0 and 1 turn guidance off."""
    if scale is not None and not math.isfinite(scale):
        raise wrong(f"{param} must be a finite number, not {scale}", param)
    if scale is not None and scale < 1 and scale != 0:
        raise wrong(f"{param} must be 0 or 1 (guidance off), or more than 1, not {scale:g}", param)


async def left(request: Request) -> None:
    """Return when the client has closed the connection of a request whose body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def client_of(request: Request) -> str:
    """Whose turn a request takes: the API key's, else the address's."""
    state = request.scope.get("state", {})
    return str(state.get("hawk_client") or (request.client.host if request.client else "local"))


def error_of(failed: Failed) -> ApiError:
    """The answer to a request whose job failed."""
    if failed.kind == "refused":
        return wrong(failed.message, param_of(failed.message))
    if failed.kind == "timeout":
        return ApiError(504, failed.message, "server_error", code="timeout")
    if failed.kind == "error":
        return ApiError(500, failed.message, "server_error", code=f"error_{failed.reference}")
    if failed.kind == "cancelled":
        return ApiError(499, failed.message, code="cancelled")
    if failed.kind == "full":
        return too_many(failed.message, failed.retry_after)
    if failed.kind == "lost":
        return unavailable(failed.message, "replica_lost", failed.retry_after)
    return unavailable(failed.message)


def param_of(message: str) -> str | None:
    """The parameter that an error message of Hawk's is about: the first one whose word stands in the message."""
    places = {word: message.find(word) for word in PARAMS}
    found = [(place, -len(word), word) for word, place in places.items() if place >= 0]
    return PARAMS[min(found)[2]] if found else None
