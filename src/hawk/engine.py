"""The engine: draws many images at once, each of which joins and leaves between steps (continuous batching).

Images that are drawn by a window (`ar`, `scd`, `hawk` without trained sources) share lanes (`hawk.decoding.lane`): one
lane for each grid and window, all lanes together with at most `places` images. Where a GPU replays recorded steps, the
images of a lane also need the same formulas (`hawk.decoding.recorded_lane`). Images that are drawn by trees are drawn
in groups that begin and end together.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from hawk.decoding.canvas import Canvas
from hawk.decoding.forward import Target
from hawk.decoding.generate import SMALLER, generate
from hawk.decoding.lane import AnyLane, Lane, Left, Progress
from hawk.decoding.memory import refused_where_memory_ends
from hawk.decoding.recorded_lane import RecordedLane, formulas_of
from hawk.decoding.recording import Recordings
from hawk.decoding.request import Request
from hawk.decoding.stats import Generation, Stats
from hawk.decoding.tree import Window
from hawk.decoding.trees import Drafter
from hawk.errors import CallersFunction, HawkError

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Ended(Generic[K]):
    """An image that the engine is done with: its generation, or the error that ended it alone.

    `seconds` is the image's share of the steps that it took part in.
    """

    key: K
    outcome: Generation | HawkError
    seconds: float

    @property
    def generation(self) -> Generation:
        """The generation; raises the error that ended the image."""
        if isinstance(self.outcome, HawkError):
            raise self.outcome
        return self.outcome


@dataclass
class Asked(Generic[K]):
    """Images that wait: those of a request, each with its key. A lane takes them one by one, a group together."""

    keys: Sequence[K]
    request: Request
    drafter: Drafter | Window


@dataclass
class SharedLane(Generic[K]):
    """A lane, and the seconds that each of its images has used."""

    lane: AnyLane[K]
    seconds: dict[K, float] = field(default_factory=dict)


class DrawingEngine(Generic[K]):
    """Draws images of one target as they come; `places` is the largest number of images at once.

    Images begin in the order in which they were submitted. `step` is called until the engine is no longer `busy`. An
    image's tokens are those that it has when it is drawn alone, as far as the rounding of the device's products does
    not depend on the number of rows (`hawk verify`).

    `known` says that all images are known beforehand. Then those of recorded windows are drawn in groups, too, whose
    prompts are read together.
    """

    def __init__(self, target: Target, places: int, recordings: Recordings | None = None, known: bool = False) -> None:
        self.target, self.places, self.known = target, places, known
        self.recordings = None if recordings is None or recordings.engine == "eager" else recordings
        self.waiting: deque[Asked[K]] = deque()
        self.lanes: dict[Hashable, SharedLane[K]] = {}

    @property
    def busy(self) -> bool:
        """Whether an image waits or is being drawn."""
        return bool(self.waiting or self.lanes)

    @property
    def live(self) -> int:
        """The number of images that are being drawn."""
        return sum(len(each.lane.keys) for each in self.lanes.values())

    def submit(self, keys: Sequence[K], request: Request, drafter: Drafter | Window) -> None:
        """Put the images of a request at the end of the queue; `keys` names them.

        Raises:
            HawkError: the drafts do not carry what the request's verifier needs.
        """
        request.check_drafts(drafter.lossless_with)
        size = 1 if self._joins(drafter) else self.places
        for start in range(0, request.images, size):
            part = slice(start, start + size)
            self.waiting.append(Asked(keys[part], request.rows(part), drafter))

    def cancel(self, key: K) -> bool:
        """Forget an image that waits alone or is in a lane; its place is free for the next step."""
        for asked in self.waiting:
            if list(asked.keys) == [key]:
                self.waiting.remove(asked)
                return True
        for at, shared in self.lanes.items():
            if key in shared.lane.keys:
                shared.lane.leave(key)
                del shared.seconds[key]
                self._free(at)
                return True
        return False

    def step(self, on_step: Callable[[Progress[K]], None] | None = None) -> list[Ended[K]]:
        """Let images that wait join, and run one step of one lane, or a whole group; returns the images that ended.

        Lanes take turns. An error that `on_step` raises passes through as it is.

        Raises:
            HawkError: the memory is too small, or a group's logits are not finite.
        """
        told = None if on_step is None else CallersFunction(on_step)
        with torch.inference_mode(), refused_where_memory_ends(SMALLER, told):
            ended = self._admit()
            if self.lanes:
                return ended + self._step_lane(told)
            if self.waiting:
                return ended + self._draw_group(self.waiting.popleft(), told)
            return ended

    def _joins(self, drafter: Drafter | Window) -> bool:
        """Whether images of that drafter join and leave between steps."""
        return isinstance(drafter, Window) and (self.recordings is None or not self.known)

    def _lane_for(self, request: Request, window: Window) -> Hashable:
        """The key of the lane for a request, which is made where there is none."""
        grid, recordings = request.grid, self.recordings
        at = (grid, window, None if recordings is None else formulas_of(self.target, request))
        if at not in self.lanes:
            made: AnyLane[K] = (
                Lane(self.target, grid, window, self.places)
                if recordings is None
                else RecordedLane(self.target, grid, window, self.places, recordings)
            )
            self.lanes[at] = SharedLane(made)
        return at

    def _admit(self) -> list[Ended[K]]:
        """Let the first images of the queue join lanes while there is room; returns those that ended at once."""
        ended: list[Ended[K]] = []
        while self.waiting and self.live < self.places:
            asked = self.waiting[0]
            if not isinstance(asked.drafter, Window) or not self._joins(asked.drafter):
                break  # a group begins when the images before it are finished
            self.waiting.popleft()
            key, at = asked.keys[0], self._lane_for(asked.request, asked.drafter)
            shared = self.lanes[at]
            started = time.perf_counter()
            try:
                finished = shared.lane.join(key, asked.request)
            except HawkError as error:
                ended.append(Ended(key, error, time.perf_counter() - started))
            else:
                shared.seconds[key] = time.perf_counter() - started
                ended += [Ended(left.key, left.outcome, shared.seconds.pop(left.key)) for left in finished]
            finally:
                self._free(at)  # also where memory ended: a lane without images has no steps
        return ended

    def _step_lane(self, told: CallersFunction | None) -> list[Ended[K]]:
        """One step of the lane whose turn it is."""
        at = next(iter(self.lanes))
        shared = self.lanes.pop(at)
        self.lanes[at] = shared  # the next turn is the next lane's
        lane, keys = shared.lane, tuple(shared.lane.keys)
        watched = 0.0  # the caller's callback takes no part in an image's time

        def tell(progress: Progress[K]) -> None:
            nonlocal watched
            began = time.perf_counter()
            assert told is not None
            told(progress)
            watched += time.perf_counter() - began

        started = time.perf_counter()
        left: list[Left[K]] = lane.step(None if told is None else tell)
        taken = (time.perf_counter() - started - watched) / len(keys)
        for key in keys:
            shared.seconds[key] += taken
        ended = [Ended(each.key, each.outcome, shared.seconds.pop(each.key)) for each in left]
        self._free(at)
        return ended

    def _free(self, at: Hashable) -> None:
        """Drop a lane without images, with its memory; a recording is kept for further images."""
        lane = self.lanes[at].lane
        if not lane.keys:
            del self.lanes[at]
            lane.close()

    def _draw_group(self, asked: Asked[K], told: CallersFunction | None) -> list[Ended[K]]:
        """Draw images that begin and end together."""
        keys, started = tuple(asked.keys), time.perf_counter()

        def on_step(canvas: Canvas, stats: Stats) -> None:
            assert told is not None
            told(Progress(keys, canvas, stats, stats.nfe))

        tell = None if told is None else on_step
        drawn = generate(self.target, asked.request, asked.drafter, tell, self.recordings)
        seconds = (time.perf_counter() - started) / len(keys)
        return [Ended(key, of_image(drawn, place), seconds) for place, key in enumerate(keys)]


def of_image(drawn: Generation, place: int) -> Generation:
    """One image of a group, with the counts of the group."""
    part = slice(place, place + 1)
    return Generation(drawn.tokens[part], drawn.origins[part], drawn.source_names, drawn.stats)
