"""What a call of the pipeline tells of its steps and gives back, also where it is interrupted or ends early."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from hawk import __version__
from hawk.decoding.grid import Grid
from hawk.decoding.lane import Progress
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.stats import Generation, Stats
from hawk.decoding.verify import LOSSLESS

OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass(frozen=True)
class PipelineOutput(Mapping[str, Any]):
    """Images of one call, and how they were drawn; the lists have one entry for each image.

    As in diffusers, fields are attributes (`output.images`), keys (`output["images"]`) and entries of `to_tuple()`,
    which numbers index (`output[0]`).

    `tokens` and `origins` are `[images, grid.size]` on the CPU; `origins` index `source_names`, and -1 is a recovered
    or bonus token. `stats` holds the counts of each image, or of its group where images of a call begin and end
    together (methods with draft trees at a `batch_size` above 1). `seconds` is the image's share of the wall-clock time
    of the steps that it took part in, from prompt to pixels.
    """

    images: Any
    stats: list[Stats]
    seeds: list[int]
    tokens: Int[Tensor, "images n"]
    origins: Int[Tensor, "images n"]
    source_names: tuple[str, ...]
    seconds: list[float]
    grid: Grid
    params: SamplingParams
    verifier: str

    def __getitem__(self, key: Any) -> Any:
        """The field with that name, or the entry of `to_tuple()` with that number."""
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of all fields, images first."""
        return tuple(self.values())

    @property
    def lossless(self) -> bool:
        """Whether the images follow the distribution of plain AR."""
        return self.verifier in LOSSLESS

    @property
    def nfe(self) -> float:
        """Target forwards per image, prefill included (mean)."""
        return sum(stats.nfe for stats in self.stats) / len(self.stats)

    @property
    def accept_length(self) -> float:
        """Tokens committed per target forward."""
        return self.grid.size / self.nfe


class StoppedError(RuntimeError):
    """A call was stopped by `pipe._interrupt = True`; `finished` is the output of the images that were complete.

    Where no image was complete, `finished` is None.
    """

    def __init__(self, finished: PipelineOutput | None, images: int) -> None:
        done = 0 if finished is None else len(finished.seeds)
        super().__init__(f"the call was stopped after {done} of {images} images")
        self.finished = finished


OnStepEnd = Callable[[Any, int, int, dict[str, Any]], Any]
"""Called after each target forward with (pipeline, forwards so far of the images that are drawn together, tokens
committed so far in the whole call, {"canvas": Canvas, "stats": Stats, "images": list}).

The list has the places in the call of the images on the canvas. Canvas and stats are copies, so that changes to them
change no image; only `Canvas.states`, which is large, is the decoder's own and must not be changed. What the callback
returns has no effect. To stop the call, it may raise an exception of its own, or set `pipeline._interrupt = True` as in
diffusers: the call then raises `StoppedError`.
"""

OnImageEnd = Callable[[Any, int, PipelineOutput], Any]
"""Called as soon as an image is finished with (pipeline, the image's place in the call, the output of this image).

Images that are drawn together may be finished in another order than that of the call. What it returns has no effect.
"""


@dataclass(eq=False)
class RunningCall:
    """A call of a pipeline that is under way; `interrupted` tells it to stop."""

    interrupted: bool = False

    def stop_if_interrupted(self) -> None:
        """Raise `StopDrawingError` where the call is to stop."""
        if self.interrupted:
            raise StopDrawingError


class StopDrawingError(Exception):
    """Leaves the decoding, because the call was interrupted."""


class RunningCalls:
    """The calls of a pipeline that are under way, perhaps in several threads, and the interrupt that stops them.

    An interrupt reaches the calls that are under way when it is set, and no later one.
    """

    def __init__(self) -> None:
        self._changing = Lock()
        self._calls: list[RunningCall] = []
        self._interrupt = False

    @property
    def interrupt(self) -> bool:
        """The last interrupt that was set; False again after a call that starts while no call is to stop."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, wanted: bool) -> None:
        with self._changing:
            self._interrupt = bool(wanted)
            for call in self._calls:
                call.interrupted = self._interrupt

    @contextmanager
    def begun(self) -> Iterator[RunningCall]:
        """A new call, which is under way in the body."""
        call = RunningCall()
        with self._changing:
            if not any(each.interrupted for each in self._calls):
                self._interrupt = False
            self._calls.append(call)
        try:
            yield call
        finally:
            with self._changing:
                self._calls.remove(call)


@dataclass
class Reports:
    """What a call tells of its steps: to the caller's callback `tell`, and to a progress bar in tokens.

    `tell` takes the forwards of the lane or group, the tokens committed in the whole call, and copies of canvas and
    stats, with the places of their images in the call. `finished` is the number of tokens of images that are finished.
    """

    call: RunningCall
    tell: Callable[[int, int, dict[str, Any]], Any] | None
    bar: Any
    finished: int = 0

    def on_step(self, progress: Progress[int]) -> None:
        """The engine's callback; `StopDrawingError` ends the call, unless an image was finished by the step."""
        canvas, stats = progress.canvas, progress.stats
        committed = self.finished + sum(canvas.committed)
        self.bar.update(committed - self.bar.n)
        if self.tell is not None:
            seen = {"canvas": canvas.copied(), "stats": stats.copied(), "images": list(progress.keys)}
            self.tell(progress.steps, committed, seen)
        if not any(count == canvas.grid.size for count in canvas.committed):
            self.call.stop_if_interrupted()


def keep_finished(error: BaseException, finished: PipelineOutput) -> None:
    """Give an exception that ends a call the attribute `finished`: the output of the images that were complete."""
    vars(error)["finished"] = finished


@dataclass(frozen=True)
class DrawnImage:
    """A finished image of a call: its place in the call, its generation, and its pixels in [-1, 1].

    `seconds` is its share of the wall-clock time, `decoding` of the time until its tokens were drawn.
    """

    place: int
    generation: Generation
    pixels: Float[Tensor, "1 3 height width"]
    seconds: float
    decoding: float


def output_of(request: Request, drawn: Sequence[DrawnImage], output_type: str) -> PipelineOutput:
    """The output of a call whose finished images are `drawn`: all images of the request, unless it was interrupted."""
    drawn = sorted(drawn, key=lambda image: image.place)
    generations = [image.generation for image in drawn]
    return PipelineOutput(
        images=as_output(torch.cat([image.pixels for image in drawn]), output_type),
        stats=[generation.stats for generation in generations],
        seeds=[request.seeds[image.place] for image in drawn],
        tokens=torch.cat([generation.tokens for generation in generations]).cpu(),
        origins=torch.cat([generation.origins for generation in generations]).cpu(),
        source_names=generations[0].source_names,
        seconds=[image.seconds for image in drawn],
        grid=request.grid,
        params=request.params,
        verifier=request.verifier,
    )


def tokens_sha256(tokens: Int[Tensor, " n"]) -> str:
    """A fingerprint of an image's tokens: sha256 of the tokens as little-endian int32."""
    return hashlib.sha256(tokens.cpu().numpy().astype("<i4").tobytes()).hexdigest()


def image_settings(params: SamplingParams, grid: Grid, cell: int, verifier: str, dtype: str) -> dict[str, Any]:
    """The settings that an image depends on, besides prompt, seed, model and method; `cell` is a token's side."""
    size = {"height": grid.height * cell, "width": grid.width * cell}
    return {**asdict(params), **size, "verifier": verifier, "lossless": verifier in LOSSLESS, "dtype": dtype}


def image_metadata(
    prompt: str, negative: str, seed: int, model: str, method: str, settings: Mapping[str, Any]
) -> dict[str, str]:
    """Text metadata for the PNG of an image, without what is known only after it is drawn.

    Equal calls give equal text, so it holds no time and no path.
    """
    return {
        "prompt": prompt,
        **({"negative_prompt": negative} if negative else {}),
        "seed": str(seed),
        "model": model,
        "method": method,
        "settings": json.dumps(settings),
    }


def drawn_metadata(tokens: Int[Tensor, " n"]) -> dict[str, str]:
    """What the PNG of an image says besides: the image's tokens, and the version of Hawk."""
    return {"tokens_sha256": tokens_sha256(tokens), "Software": f"hawk {__version__}"}


def as_output(pixels: Float[Tensor, "n 3 h w"], output_type: str) -> Any:
    """Pixels in [-1, 1] as PIL images, or as an array `[n, h, w, 3]` or tensor `[n, 3, h, w]` in [0, 1]."""
    unit = (pixels.float().clamp(-1, 1) + 1) / 2
    if output_type == "pt":
        return unit
    array = unit.permute(0, 2, 3, 1).numpy()
    if output_type == "np":
        return array
    return [Image.fromarray(image) for image in np.rint(array * 255).astype(np.uint8)]
