"""A lane whose steps a GPU replays: images join and leave between two replays of one recording.

The shapes of a recording never change, so a recording has a number of places, and a place without an image holds a
finished one, which commits nothing. As more images join, recordings of 1, 2, 4, 8, ... places take turns.

The host follows the device by `LAG` steps: it hears of a finished image two steps late, and during these two steps the
image's place commits nothing. It never waits for the device in a step in which no image joins or ends. Before images
move to another recording, whose window may be another one, the host waits until it has heard of all steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from hawk.decoding.cache import FixedCache
from hawk.decoding.forward import Target, not_finite
from hawk.decoding.grid import Grid
from hawk.decoding.lane import PLACED, AnyLane, Left, Progress, Seat, empty_store, generation_at
from hawk.decoding.recording import Recording, Recordings, Sent
from hawk.decoding.request import Request
from hawk.decoding.sampling import BatchParams, SamplingParams
from hawk.decoding.stats import Generation
from hawk.decoding.tree import Window
from hawk.decoding.window import LAG, WindowState, enter, first_window, hold, shown

K = TypeVar("K", bound=Hashable)

OWN = ("temperature", "top_k", "top_p", "cfg_scale", "is_greedy")
"""The tensors of the sampling parameters that have one entry for each image."""


@dataclass(eq=False)
class Guest(Seat[K]):
    """An image, and what the host knows of its committed tokens."""

    committed: int = 1
    broken: bool = False


class RecordedLane(AnyLane[K]):
    """A lane whose images need the same formulas (`formulas_of`), guidance among them.

    An image joins a recording of the smallest power of two of places that holds all images, or of all `places` where
    the engine compiles its steps, which takes minutes for each number of places.
    """

    def __init__(self, target: Target, grid: Grid, window: Window, places: int, recordings: Recordings) -> None:
        super().__init__(target, grid, window, places)
        self.recordings = recordings
        self._guests: list[Guest[K] | None] = []  # by place
        self._recording: Recording | None = None
        self._sent = Sent()
        self._served: deque[list[Guest[K] | None]] = deque()  # the images of each step that the host has not heard of

    @property
    def seats(self) -> list[Guest[K]]:
        """The images in the order of their places."""
        return [guest for guest in self._guests if guest is not None]

    # --- joining and leaving ----------------------------------------------------------------------------------

    def join(self, key: K, request: Request) -> list[Left[K]]:
        """Let an image join (`AnyLane.join`); the images move to another recording where this one has no place."""
        self.check_fits(request)
        with torch.inference_mode():
            room = self._room_with_one_more()
            alone = first_window(self.target, request, self.window.for_images(room))
            if bool(alone.broken.any()):
                raise not_finite(alone.cache.keys.dtype)
            if room != len(self._guests) or alone.cache.capacity > self._state.cache.capacity:
                self._move_to(room, alone, request.params)
            place = self._guests.index(None)
            copy_place(alone, 0, self._state, place)
        self._guests[place] = Guest(key)
        if self.grid.size > 1:
            return []
        finished = Left(key, generation_at(self._state, place, []))
        self.leave(key)
        return [finished]

    def leave(self, key: K) -> None:
        """Remove an image, finished or not; its place commits nothing until another image joins there."""
        place = next(place for place, guest in enumerate(self._guests) if guest is not None and guest.key == key)
        with torch.inference_mode():
            empty_place(self._state, place)
        self._guests[place] = None

    def close(self) -> None:
        """Give the recording back, for further images of its shape."""
        if self._recording is not None:
            self.recordings.take_back(self._recording)
        self._recording, self._guests = None, []

    @property
    def _state(self) -> WindowState:
        assert self._recording is not None
        return self._recording.state

    def _room_with_one_more(self) -> int:
        """The places of the recording that the next image joins; one with four times as many as needed is given up."""
        images, room = len(self.seats) + 1, len(self._guests)
        if self.recordings.engine == "compiled":
            return self.places
        return room if images <= room < 4 * images else min(self.places, 1 << (images - 1).bit_length())

    def _move_to(self, room: int, alone: WindowState, params: SamplingParams) -> None:
        """Move all images to a recording of so many places, for images like that of `alone`."""
        left, guests = self._recording, self.seats
        while self._served:  # the new steps may be narrower: the noise that they hold is counted from the last token
            self._hear(0)
        capacity = max(alone.cache.capacity, 0 if left is None else left.state.cache.capacity)
        recording = self.recordings.lend(self.target, lambda: empty_lane(alone, params, room, capacity))
        if left is not None:
            for place, guest in enumerate(guests):
                copy_place(left.state, self._guests.index(guest), recording.state, place)
            self.recordings.take_back(left)
        self._recording, self._guests = recording, [*guests, *[None] * (room - len(guests))]
        if left is not None and left.state.window.reach < recording.state.window.reach:
            self._hold()
            drafted = recording.state.committed[:, None] + (left.state.window.reach - 1)
            enter(recording.state, drafted, recording.state.window.reach)

    def _hold(self) -> None:
        """Draw the noise of the next step, counted from the tokens that the host knows to be committed."""
        committed = [self.grid.size if guest is None else guest.committed for guest in self._guests]
        hold(self._state, committed, LAG)

    # --- steps ------------------------------------------------------------------------------------------------

    def step(self, on_step: Callable[[Progress[K]], None] | None = None) -> list[Left[K]]:
        """Replay one step for all images; images that the host hears to be finished, or broken, leave.

        Such images leave after `on_step`, which is told of the images as they were `LAG` steps ago.
        """
        assert self._recording is not None
        with torch.inference_mode():
            state, size = self._state, self.grid.size
            self._hold()
            self._recording.step()
            self.steps += 1
            for guest in self.seats:
                guest.reaches.append(state.window.reach)
            self._sent.send(state.progress)
            self._served.append(list(self._guests))
            self._hear(LAG)
            ended = [
                Left(guest.key, not_finite(state.cache.keys.dtype) if guest.broken else self._drawn(guest))
                for guest in self.seats
                if guest.broken or guest.committed == size
            ]
            if on_step is not None and self.seats and not any(guest.broken for guest in self.seats):
                on_step(self.progress())
        for each in ended:
            self.leave(each.key)
        return ended

    def _hear(self, late: int) -> None:
        """Take note of what the images had committed `late` steps ago, and whether they were broken by then."""
        values = self._sent.receive(late)
        if values is None:
            return
        served = self._served.popleft()
        for place, guest in enumerate(served):
            if guest is not None:
                guest.committed, guest.broken = values[place], bool(values[len(served) + place])

    def _drawn(self, guest: Guest[K]) -> Generation:
        return generation_at(self._state, self._guests.index(guest), guest.reaches)

    def progress(self) -> Progress[K]:
        """What the host knows to be committed of the images that are there."""
        committed = [guest.committed for guest in self.seats]
        places = [self._guests.index(guest) for guest in self.seats]
        return self.progress_to(committed, shown(self._state, committed, places))


def formulas_of(target: Target, request: Request) -> tuple[bool, str, int, bool]:
    """What a step of the request computes (`BatchParams.formulas`)."""
    return BatchParams.alike(request.params, 1, target.vocab_size, torch.empty(0)).formulas


def empty_lane(alone: WindowState, params: SamplingParams, places: int, capacity: int) -> WindowState:
    """A state with so many places for images like that of `alone`; every place holds a finished image."""
    own = BatchParams.alike(params, places, alone.noise.vocab, alone.params.temperature)
    made = empty_store(alone, places, len(own.image), capacity)
    made.committed.fill_(alone.grid.size)
    return replace(made, params=own, reaches=[])


def empty_place(state: WindowState, place: int) -> None:
    """Let a place hold a finished image, which commits nothing."""
    state.committed[place] = state.grid.size
    state.broken[place] = False


def copy_place(source: WindowState, place: int, state: WindowState, to: int) -> None:
    """Copy an image to a place of another state, whose window may be another one; the noise is drawn again."""
    for name in PLACED:
        mine, others = getattr(state, name), getattr(source, name)
        if mine.ndim == 1:
            mine[to] = others[place]
        else:
            width = min(mine.shape[1], others.shape[1])
            mine[to, :width] = others[place, :width]
    for name in OWN:
        state.params.tensors[name][to] = source.params.tensors[name][place]
    assert isinstance(state.cache, FixedCache)
    ends = source.cache.committed()
    for row, new in zip(rows_of(source, place), rows_of(state, to), strict=True):
        held = source.cache.capacity
        for mine, others in ((state.cache.keys, source.cache.keys), (state.cache.values, source.cache.values)):
            mine[:, new, :, :held] = others[:, row]
            mine[:, new, :, held:] = 0  # a NaN that an earlier image left there would pass through the mask
        state.padding[new] = source.padding[row]
        state.cache.ends[new] = ends[row]
    state.noise.replace(to, source.noise.seeds[place])


def rows_of(state: WindowState, place: int) -> tuple[int, ...]:
    """The target's rows of the image at a place, in a state whose rows are [cond of all; uncond of all]."""
    return (place, len(state.committed) + place) if state.params.guided else (place,)
