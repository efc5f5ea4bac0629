"""A lane: images that are drawn together, each of which may join and leave at any step (continuous batching).

Every image has its own prompt, seed, sampling parameters and frontier; all of them share the grid and the window. One
step of window decoding (`window.advance`) serves all of them. The images of a lane lie side by side in the first
places of tensors that grow with their number, so that a step reads no place without an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from hawk.decoding.cache import KVCache
from hawk.decoding.canvas import Canvas
from hawk.decoding.forward import Target, not_finite
from hawk.decoding.grid import Grid
from hawk.decoding.noise import GumbelNoise
from hawk.decoding.pacing import Pace
from hawk.decoding.request import Request
from hawk.decoding.sampling import BatchParams, Rows, SamplingParams
from hawk.decoding.stats import Generation, Stats, window_stats
from hawk.decoding.tree import Window
from hawk.decoding.window import SOURCES, WindowState, advance, first_window, hold, pace_of, shown
from hawk.errors import HawkError

K = TypeVar("K", bound=Hashable)

PLACED = ("tokens", "origins", "committed", "history", "steps", "broken")
"""The tensors of a state that have one entry for each image."""


@dataclass(eq=False)
class Seat(Generic[K]):
    """An image in a lane: its key, and the reaches of its steps."""

    key: K
    reaches: list[int] = field(default_factory=list, kw_only=True)


@dataclass(eq=False)
class SeatOfRows(Seat[K]):
    """An image with its sampling parameters and the target's rows that belong to it.

    `rows` is (conditional row, unconditional row), which are one row for an image without guidance.
    """

    params: SamplingParams
    rows: list[int]


@dataclass(frozen=True)
class Left(Generic[K]):
    """An image that left a lane: its generation, or the error that ended it alone."""

    key: K
    outcome: Generation | HawkError


@dataclass(frozen=True)
class Progress(Generic[K]):
    """What is committed of the images that a step served, in the order of `keys`.

    `stats` counts images, the mean forwards of an image so far, and committed tokens. `steps` is the number of forwards
    of the lane or group so far, prefill included.
    """

    keys: tuple[K, ...]
    canvas: Canvas
    stats: Stats
    steps: int


class AnyLane(ABC, Generic[K]):
    """A batch of one grid and window whose images may change between steps. `places` is the largest number of images.

    `steps` counts the steps of the lane.
    """

    def __init__(self, target: Target, grid: Grid, window: Window, places: int) -> None:
        self.target, self.grid, self.window, self.places = target, grid, window, places
        self.steps = 0

    @property
    @abstractmethod
    def seats(self) -> Sequence[Seat[K]]:
        """The images in the order of their places."""

    @property
    def free(self) -> int:
        """How many more images may join."""
        return self.places - len(self.seats)

    @property
    def keys(self) -> list[K]:
        """The keys of the images in the order of their places."""
        return [seat.key for seat in self.seats]

    @abstractmethod
    def join(self, key: K, request: Request) -> list[Left[K]]:
        """Read the prompt of one image and draw its first token; the image takes part in the next step.

        An image of a single token is finished by that and leaves at once: it is returned.

        Raises `HawkError` where the lane is full, the request has another grid than the lane or several images, the
        target gives the first token no distribution, or the steps cannot be recorded.
        """

    @abstractmethod
    def leave(self, key: K) -> None:
        """Remove an image, finished or not."""

    @abstractmethod
    def step(self, on_step: Callable[[Progress[K]], None] | None = None) -> list[Left[K]]:
        """One target forward for all images; images that are finished, or that broke, leave after `on_step`."""

    def close(self) -> None:
        """Give back what the lane, which has no images any more, was lent."""

    def check_fits(self, request: Request) -> None:
        """Raise `HawkError` where the lane is full, or a request has another grid or several images."""
        if not self.free or request.images != 1 or request.grid != self.grid:
            raise HawkError(
                f"a lane of {self.places} images of {self.grid.height}x{self.grid.width} tokens takes one such image "
                f"at a time, and has room for {self.free}"
            )

    def progress_to(self, committed: list[int], canvas: Canvas) -> Progress[K]:
        """The progress of the images that are there, with so many committed tokens each."""
        forwards, images = sum(1 + len(seat.reaches) for seat in self.seats), len(self.seats)
        stats = Stats(images=images, nfe=round(forwards / images), committed=sum(committed))
        return Progress(tuple(self.keys), canvas, stats, 1 + self.steps)


class Lane(AnyLane[K]):
    """A lane whose steps the host runs.

    The steps reach as far as the window's ladder and the number of images make best (`pacing.Pace`).
    """

    def __init__(self, target: Target, grid: Grid, window: Window, places: int) -> None:
        super().__init__(target, grid, window, places)
        self._seats: list[SeatOfRows[K]] = []
        self._store: WindowState | None = None  # room for some images, at most `places`
        self._live: WindowState | None = None  # a view of the images that are there; None after they changed
        self._lengths: list[int] = []  # committed entries of each of the target's rows in the cache
        self._pace: Pace | None = None

    @property
    def seats(self) -> list[SeatOfRows[K]]:
        """The images in the order of their places."""
        return self._seats

    # --- joining and leaving ----------------------------------------------------------------------------------

    def join(self, key: K, request: Request) -> list[Left[K]]:
        """Let an image join (`AnyLane.join`); the store grows where it has no place."""
        self.check_fits(request)
        with torch.inference_mode():
            alone = first_window(self.target, request, self.window)
            if bool(alone.broken.any()):
                raise not_finite(alone.cache.keys.dtype)
            store, place = self._room_for(alone), len(self.seats)
            rows = [len(self._lengths) + row for row in range(len(alone.cache.lengths))]
            for row, length in enumerate(alone.cache.lengths):
                copy_row(alone, row, store, rows[row], length)
            self._lengths += alone.cache.lengths
            for name in PLACED:
                getattr(store, name)[place] = getattr(alone, name)[0]
            store.noise.replace(place, request.seeds[0])
        self.seats.append(SeatOfRows(key, request.params, rows))
        self._changed()
        if self.grid.size > 1:
            return []
        finished = Left(key, self._finished(place))
        self.leave(key)
        return [finished]

    def leave(self, key: K) -> None:
        """Remove an image, finished or not; the last images move to where it was."""
        place = self.keys.index(key)
        store, left = self._store, self.seats[place]
        assert store is not None
        with torch.inference_mode():
            for hole in sorted(set(left.rows), reverse=True):
                last = len(self._lengths) - 1
                if hole != last:
                    copy_row(store, last, store, hole, self._lengths[last])
                    self._lengths[hole] = self._lengths[last]
                    for seat in self.seats:
                        seat.rows = [hole if row == last else row for row in seat.rows]
                self._lengths.pop()
            last_seat = self.seats.pop()
            if last_seat is not left:
                for name in PLACED:
                    getattr(store, name)[place] = getattr(store, name)[len(self.seats)]
                store.noise.take(place, store.noise, len(self.seats))
                self.seats[place] = last_seat
        self._changed()

    def _changed(self) -> None:
        """Take note that the images of the lane are others."""
        self._live = None
        if not self.seats:
            self._pace = None
            return
        ladder = self.window.for_images(len(self.seats)).ladder
        if self._pace is None:
            self._pace = pace_of(replace(self.window, ladder=ladder), self.grid)
        else:
            self._pace.change(ladder)

    def _room_for(self, alone: WindowState) -> WindowState:
        """The store with room for one more image like this one; a larger one has twice as many places."""
        store, images = self._store, len(self.seats)
        has_place = store is not None and images < len(store.tokens)
        if store is not None and has_place and store.cache.capacity >= alone.cache.capacity:
            return store
        places = min(self.places, len(store.tokens) if store is not None and has_place else max(1, 2 * images))
        capacity = max(alone.cache.capacity, 0 if store is None else store.cache.capacity)
        made = empty_store(alone, places, 2 * places, capacity)
        if store is not None:
            rows = slice(len(self._lengths))
            for name in PLACED:
                getattr(made, name)[:images] = getattr(store, name)[:images]
            for mine, others in ((made.cache.keys, store.cache.keys), (made.cache.values, store.cache.values)):
                mine[:, rows, :, : store.cache.capacity] = others[:, rows]
            made.padding[rows] = store.padding[rows]
            for place in range(images):
                made.noise.take(place, store.noise, place)
        self._store = made
        return made

    # --- steps ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> WindowState:
        """The state of the images that are there: a view of the store's first places."""
        if self._live is None:
            store, images, rows = self._store, len(self.seats), len(self._lengths)
            assert store is not None
            of = Rows(tuple(seat.rows[0] for seat in self.seats), tuple(seat.rows[-1] for seat in self.seats))
            placed: dict[str, Any] = {name: getattr(store, name)[:images] for name in PLACED}
            self._live = replace(
                store,
                **placed,
                params=BatchParams.of([seat.params for seat in self.seats], store.noise.vocab, store.noise.held, of),
                cache=KVCache(store.cache.keys[:, :rows], store.cache.values[:, :rows], self._lengths),
                padding=store.padding[:rows],
                chain=store.chain[:images],
            )
        return self._live

    def step(self, on_step: Callable[[Progress[K]], None] | None = None) -> list[Left[K]]:
        """One target forward for all images; images that are finished, or that broke, leave after `on_step`."""
        with torch.inference_mode():
            state, pace, size = self.state, self._pace, self.grid.size
            assert pace is not None
            before = state.committed.tolist()
            reach = min(pace.reach, size - min(before))
            hold(state, before)
            advance(self.target, state, reach)
            self.steps += 1
            for seat in self.seats:
                seat.reaches.append(reach)
            after, broken = state.committed.tolist(), state.broken.tolist()
            pace.learn(reach, [now - was for was, now in zip(before, after, strict=True) if size - was > reach])
            ended = [
                Left(seat.key, not_finite(state.cache.keys.dtype) if broken[place] else self._finished(place))
                for place, seat in enumerate(self.seats)
                if broken[place] or after[place] == size
            ]
            if on_step is not None and not any(broken):
                on_step(self.progress())
        for each in ended:
            self.leave(each.key)
        return ended

    def progress(self) -> Progress[K]:
        """What is committed of the images that are there."""
        committed = self.state.committed.tolist()
        return self.progress_to(committed, shown(self.state, committed))

    def _finished(self, place: int) -> Generation:
        """The generation of an image whose tokens are all committed."""
        drawn = generation_at(self.state, place, self.seats[place].reaches)
        assert self._pace is not None
        drawn.stats.skill = self._pace.image.skill if self.window.ladder else None
        return drawn


def generation_at(state: WindowState, place: int, reaches: list[int]) -> Generation:
    """The generation of the image at a place, all of whose tokens are committed; `reaches` are those of its steps."""
    size = state.grid.size
    origins: Int[Tensor, "1 n"] = state.origins[place : place + 1, :size].clone()
    history = state.history[place, : int(state.steps[place])].tolist()
    stats = window_stats([[count] for count in history], origins.tolist(), reaches[: len(history) - 1], SOURCES)
    names = SOURCES if state.window.reach else ()
    return Generation(state.tokens[place : place + 1, :size].clone(), origins, names, stats, tuple(accumulate(history)))


def copy_row(source: WindowState, row: int, state: WindowState, to: int, length: int) -> None:
    """Copy the committed entries and the padding of one of the target's rows to a row of a state, perhaps the same."""
    for mine, others in ((state.cache.keys, source.cache.keys), (state.cache.values, source.cache.values)):
        mine[:, to, :, :length] = others[:, row, :, :length]
    state.padding[to] = source.padding[row]


def empty_store(alone: WindowState, places: int, rows: int, capacity: int) -> WindowState:
    """A state with room for so many images like the one of `alone`, with so many of the target's rows."""
    placed: dict[str, Any] = {
        name: (held := getattr(alone, name)).new_zeros(places, *held.shape[1:]) for name in PLACED
    }
    layers, _, heads, _, width = alone.cache.keys.shape
    held = alone.noise.held
    return replace(
        alone,
        **placed,
        cache=KVCache.empty(layers, rows, heads, capacity, width, alone.cache.keys),
        padding=alone.padding.new_zeros(rows),
        noise=GumbelNoise([0] * places, alone.grid.size, alone.noise.vocab, held, alone.noise.ring),
        chain=alone.chain[:1].expand(places, -1, -1),
    )
