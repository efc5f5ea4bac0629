"""HawkPipeline: text in, images out. The arguments are named as in diffusers."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from hawk.decoding.arguments import Number, boolean, check_function, name_of, path_of, whole_number
from hawk.decoding.grid import Grid
from hawk.decoding.planning import StepCosts
from hawk.decoding.recording import Engine, Recordings
from hawk.decoding.relaxed import Relaxation
from hawk.decoding.request import Condition, Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.decoding.trees import Drafter
from hawk.drafters.acceptance import Skills
from hawk.drafters.methods import UNTRAINED, Method, build_drafter, method_named
from hawk.drafters.parts import DraftParts
from hawk.drafters.settings import TreeLimits, costs_of, drifted, settings_for
from hawk.drafters.source import slow_drafts
from hawk.engine import DrawingEngine, Ended
from hawk.errors import CallersFunction, HawkError
from hawk.machine import lacking_operations_refused
from hawk.models.arguments import dtype_of, grid_of, image_seeds, paired_prompts, request_of, sampling_params
from hawk.models.loading import (
    device_named,
    drafter_folder,
    dtype_named,
    engine_named,
    is_large,
    load_on,
    model_folder,
)
from hawk.models.moving import Origin, evaluation_mode, moved, same_device, save_copy, weight_places
from hawk.models.pixels import sound_pixels
from hawk.models.protocol import Model
from hawk.outputs import (
    OUTPUT_TYPES,
    DrawnImage,
    OnImageEnd,
    OnStepEnd,
    PipelineOutput,
    Reports,
    RunningCalls,
    StopDrawingError,
    StoppedError,
    keep_finished,
    output_of,
    tokens_sha256,
)

__all__ = [
    "HawkPipeline",
    "OnImageEnd",
    "OnStepEnd",
    "PipelineOutput",
    "StoppedError",
    "grid_of",
    "image_seeds",
    "sampling_params",
    "tokens_sha256",
]

LOGGER = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class HawkPipeline:
    """A loaded model on a device; call it with a prompt.

    `borrowed` is a module that the caller goes on using: each call runs it in evaluation mode and then restores its
    mode. `origin` is where `from_pretrained` loaded the model from; pickles and copies are loaded from there again. A
    callback or another thread may set `_interrupt`, which stops the calls that are under way, and no later one.
    """

    model: Model
    device: torch.device
    dtype: str
    engine: Engine = "eager"
    borrowed: nn.Module | None = None
    origin: Origin | None = None
    _calls: RunningCalls = field(default_factory=RunningCalls, init=False)
    _places: tuple[Any, ...] = field(default=(), init=False)
    _warm: bool = field(default=False, init=False)
    _measures_again: bool = field(default=True, init=False)
    _warned: bool = field(default=False, init=False)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "bundled",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        drafter: str | Path | None = None,
        engine: str = "auto",
        torch_dtype: str | torch.dtype | None = None,
    ) -> HawkPipeline:
        """Load a model: "bundled", a folder, or a hub id `owner/name`.

        Args:
            device: "auto" (a CUDA GPU where there is one), "cpu", "cuda", "cuda:1", or "mps" (an Apple GPU).
            dtype: of the target and its drafter: float32, bfloat16, float16 or float64, as a name or as torch's. On a
                CPU, bfloat16 applies to matrix products and their weights only, float16 to the weights only, and
                everything else is float32. "auto", as None, is bfloat16 on a CPU with AMX or AVX512_BF16, float16 on
                other CPUs of the x86 family, bfloat16 on a GPU for a model of more than 200 million parameters, and
                float32 elsewhere.
            drafter: a drafter's folder or hub id, to use in place of the model's own.
            engine: how the steps of `ar`, `scd` and untrained `hawk` run. "eager": the host starts each step. "graph":
                the first image of a size records a step as a CUDA graph, which is then replayed. "compiled": the same
                with a step that is compiled first, which takes minutes. "auto" is "graph" on a CUDA GPU, "eager"
                elsewhere. On an Apple GPU every engine is "eager".
            torch_dtype: the same as `dtype`, under its name in diffusers.

        Raises:
            HawkError: no such model, a damaged one, a device that is not there, or two different dtypes.
        """
        on = device_named(str(device))
        chosen, asked = engine_named(engine, on), dtype_of(dtype, torch_dtype)
        dtype_named(asked, on)  # refuses a wrong name before anything is fetched
        own_drafter = None if drafter is None else drafter_folder(drafter)
        folder = model_folder(model)
        name = dtype_named(asked, on, large=is_large(folder))
        loaded = load_on(folder, on, name, own_drafter)
        LOGGER.info("loaded %s on %s in %s, engine %s", loaded.name, on, name, chosen)
        return cls(loaded, on, name, chosen, origin=Origin.of(model, drafter))

    def to(
        self,
        *places: str | torch.device | torch.dtype,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> HawkPipeline:
        """Move the pipeline to a device or a dtype or both, in any order, as in diffusers; returns the pipeline.

        A move to where the pipeline is changes nothing. What was measured and recorded for the old place is dropped.
        The weights themselves are cast: a cast to a narrower dtype and back, as to float16 and again to float32, does
        not bring back the precision that the weights lost. Load the model again for its full precision.

        Raises:
            HawkError: the device is not there, or the model cannot be changed in place; the message says how to load
                it instead.
        """
        for place in places:
            if isinstance(place, torch.dtype):
                dtype = place
            else:
                device = place
        on = self.device if device is None else device_named(str(device))
        name = self.dtype if dtype is None else dtype_named(dtype_of(dtype, None), on)
        if same_device(on, self.device) and name == self.dtype:
            return self
        if self.borrowed is not None:
            raise HawkError("the model is the caller's: move the model itself, then call hawk.accelerate again")
        self.model = moved(self.model, on, name)
        if on.type != self.device.type:
            self.engine = engine_named("auto", on)
        self.device, self.dtype = on, name
        self._warned = False
        for measured in ("priced", "costs", "recordings", "relaxation"):
            self.__dict__.pop(measured, None)
        return self

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Save the model and its drafter to a new folder that `from_pretrained` reads.

        The files are copied from where the model was loaded, so weights that were changed since are not saved. The
        drafter lies in `drafters/heads` there; a transformers checkpoint is loaded with drafter=that folder.

        Raises:
            HawkError: the folder is not empty or cannot be written, or the model was not loaded by `from_pretrained`.
        """
        folder = path_of("save_directory", save_directory, "the path of a new folder")
        save_copy(self._loaded_from("saved: call save_pretrained of the model and of its processor"), folder)

    @property
    def _interrupt(self) -> bool:
        """Whether the calls under way are to stop; a name of diffusers."""
        return self._calls.interrupt

    @_interrupt.setter
    def _interrupt(self, wanted: bool) -> None:
        self._calls.interrupt = wanted

    def __repr__(self) -> str:
        parts = (self.model.name, str(self.device), self.dtype, self.engine)
        return f"HawkPipeline({', '.join(parts)})"

    def __copy__(self) -> HawkPipeline:
        """A pipeline around the same model."""
        return replace(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and deep copies load the model from its origin again."""
        origin = self._loaded_from("pickled or copied: pickle the model, and call hawk.accelerate again")
        return type(self).from_pretrained, (origin.model, str(self.device), self.dtype, origin.drafter, self.engine)

    def _loaded_from(self, otherwise: str) -> Origin:
        """The origin; `HawkError` for a pipeline around a model of the caller's."""
        if self.origin is None:
            raise HawkError(f"a pipeline around a loaded model cannot be {otherwise}")
        return self.origin

    @property
    def defaults(self) -> SamplingParams:
        """The sampling parameters that a call uses where it names none."""
        return self.model.defaults

    @cached_property
    def priced(self) -> DraftParts:
        """The parts of `hawk`, with node cost and window set for this machine; the first access may time steps."""
        parts = self.model.drafting or UNTRAINED
        return replace(parts, fused=settings_for(parts.fused, self.model.target, self.model.fingerprint, self.engine))

    def measure(self) -> None:
        """Time the steps of this machine again, keep their costs, and set the window of `hawk` by them."""
        parts, target = self.model.drafting or UNTRAINED, self.model.target
        fused = settings_for(parts.fused, target, self.model.fingerprint, self.engine, anew=True)
        self.priced = replace(parts, fused=fused)
        self.__dict__.pop("costs", None)

    @cached_property
    def costs(self) -> StepCosts | None:
        """The step costs of this machine by which `priced` was set, read from their file once; None without any."""
        return costs_of(self.model.target, self.model.fingerprint, self.engine)

    @cached_property
    def skills(self) -> Skills:
        """How good the drafts of `hawk` were in earlier images, by their sampling parameters."""
        return Skills(self.model.fingerprint)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """In the body no call times steps again, so that its seconds are those of its images alone."""
        before, self._measures_again = self._measures_again, False
        try:
            yield
        finally:
            self._measures_again = before

    @cached_property
    def recordings(self) -> Recordings:
        """How the steps of a window are run, and what a GPU has recorded of them for further images."""
        return Recordings(self.engine)

    @cached_property
    def relaxation(self) -> Relaxation:
        """The nearest tokens of each token by the target's embeddings, for the lossy verifier."""
        target = self.model.target
        return Relaxation.between(target.embed(torch.arange(target.vocab_size, device=target.device)))

    def condition(self, prompts: Sequence[str], height: int | None = None, width: int | None = None) -> Condition:
        """Encode prompts for images of that size; `HawkError` for a prompt or a size that the model does not take."""
        texts, negatives = paired_prompts(prompts, None, 1)
        return self.model.condition(texts, negatives, grid_of(self.model, height, width))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str | None] | None = None,
        guidance_scale: Number | None = None,
        num_images_per_prompt: Number = 1,
        seed: Number | Sequence[Number] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        temperature: Number | None = None,
        top_k: Number | None = None,
        top_p: Number | None = None,
        method: str = "hawk",
        verifier: str | None = None,
        num_draft_tokens: Number | None = None,
        window: Number | None = None,
        height: Number | None = None,
        width: Number | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_image_end: OnImageEnd | None = None,
        batch_size: Number = 1,
        progress: bool = False,
    ) -> PipelineOutput | tuple[Any]:
        """Draw `num_images_per_prompt` images of each prompt.

        Numbers may be those of Python, numpy or torch; a float that is whole, as 8.0, is a whole number.

        Args:
            prompt: what to draw; a list draws images of each of its prompts.
            num_images_per_prompt: images of each prompt.
            negative_prompt: replaces the null caption in guidance; one for all prompts, or one for each (None or ""
                for none).
            guidance_scale, temperature, top_k, top_p: None takes the model's default. A `guidance_scale` of 1 or less
                turns guidance off; a `temperature` below 1e-5 is greedy.
            seed: image i of the call has the seed `seed + i`, so n images equal n single calls. A list holds one seed
                for each image. None draws a seed from the system.
            generator: in place of `seed`: one generator that all seeds are drawn from, or one for each image.
            method: a name of `hawk.drafters.methods.METHODS`.
            verifier: "coupled", "residual", "traversal", or "relaxed" (lossy); None is the method's own.
            num_draft_tokens, window: most drafts of a forward, and most positions that drafts may reach past the
                frontier; None leaves the choice to the method. Both are clamped to what the image has room for.
            height, width: in pixels; None is what the model was trained for.
            output_type: "pil"; "np" `[n, height, width, 3]` or "pt" `[n, 3, height, width]`, both in [0, 1].
            return_dict: False returns `(images,)`.
            callback_on_step_end: see `OnStepEnd`.
            callback_on_image_end: see `OnImageEnd`.
            batch_size: images decoded together. With `ar`, `scd` and untrained `hawk` on a CPU, an image that is
                finished is replaced by the next one; otherwise so many images begin and end together. Rounding may
                differ between batch sizes, so that a near-tie between two tokens may fall the other way.
            progress: show a bar of the call's tokens on stderr.

        Raises:
            HawkError: an argument is wrong; the message is one line that names it.
            StoppedError: the callback or another thread set `_interrupt`.

        Any exception that ends a call after some of its images has the attribute `finished`: their `PipelineOutput`.
        """
        with self._calls.begun() as running:
            output_type = name_of("output_type", output_type, OUTPUT_TYPES)
            check_function("callback_on_step_end", callback_on_step_end)
            check_function("callback_on_image_end", callback_on_image_end)
            tell = None if callback_on_step_end is None else partial(callback_on_step_end, self)
            progress, return_dict = boolean("progress", progress), boolean("return_dict", return_dict)
            batch_size = whole_number("batch_size", batch_size, least=1)
            limits = TreeLimits(
                None if num_draft_tokens is None else whole_number("num_draft_tokens", num_draft_tokens),
                None if window is None else whole_number("window", window),
            )
            chosen = method_named(method)
            request = request_of(
                self.model,
                prompt,
                negative_prompt,
                guidance_scale,
                num_images_per_prompt,
                seed,
                generator,
                temperature,
                top_k,
                top_p,
                chosen.verifier if verifier is None else verifier,
                height,
                width,
                lambda: self.relaxation,
            )
            grid, params = request.grid, request.params
            drawn: list[DrawnImage] = []
            with evaluation_mode(self.borrowed), tqdm(total=request.tokens, unit="token", disable=not progress) as bar:
                drafter = self.skills.taught(self.drafter_for(chosen, limits.within(grid), request.verifier), params)
                reports = Reports(running, tell, bar)
                try:
                    for image in self._draw(request, drafter, min(batch_size, request.images), reports):
                        drawn.append(image)
                        if callback_on_image_end is not None:
                            callback_on_image_end(self, image.place, output_of(request, [image], output_type))
                except StopDrawingError:
                    finished = output_of(request, drawn, output_type) if drawn else None
                    raise StoppedError(finished, request.images) from None
                except BaseException as error:  # of any kind: Ctrl-C, or what a callback raises
                    if drawn:
                        keep_finished(error, output_of(request, drawn, output_type))
                    raise
            self.skills.learn(params, [image.generation for image in drawn])
            if chosen.name == "hawk" and isinstance(drafter, Window) and batch_size == 1 and tell is None:
                self._measure_if_drifted(request, drawn)
            self._warn_of_slow_drafts(drawn)
            output = output_of(request, drawn, output_type)
            return output if return_dict else (output.images,)

    def drafter_for(self, method: Method, limits: TreeLimits, verifier: str) -> Drafter | Window:
        """The drafter of a method for a verifier; `HawkError` where what it needs is not trained."""
        parts = self.priced if method.name == "hawk" else self.model.drafting
        return build_drafter(method, parts, self.model.target, limits, verifier)

    def _draw(self, request: Request, drafter: Drafter | Window, places: int, reports: Reports) -> Iterator[DrawnImage]:
        """The images of a request, each as soon as it is finished; `StopDrawingError` where the call is interrupted."""
        engine: DrawingEngine[int] = DrawingEngine(self.model.target, places, self.recordings, known=True)
        engine.submit(range(request.images), request, drafter)
        while engine.busy:
            reports.call.stop_if_interrupted()
            self._valid_recordings()
            on_step = CallersFunction(reports.on_step)
            with lacking_operations_refused(self.device, on_step):
                ended = engine.step(on_step)
                images = self._with_pixels(ended, request.grid)
            reports.finished += len(images) * request.grid.size
            yield from images

    def _with_pixels(self, ended: Sequence[Ended[int]], grid: Grid) -> list[DrawnImage]:
        """Decode the images that the engine is done with; raises the error that ended one of them."""
        if not ended:
            return []
        generations = [each.generation for each in ended]
        started = time.perf_counter()
        tokens = torch.cat([generation.tokens for generation in generations])
        pixels = sound_pixels(self.model, tokens.unflatten(1, (grid.height, grid.width))).cpu()
        seconds = (time.perf_counter() - started) / len(ended)
        for each, generation in zip(ended, generations, strict=True):
            LOGGER.debug("drew image %d in %.2f s and %d steps", each.key, each.seconds, generation.stats.nfe)
        return [
            DrawnImage(each.key, generation, own[None], each.seconds + seconds, each.seconds)
            for each, generation, own in zip(ended, generations, pixels, strict=True)
        ]

    def _valid_recordings(self) -> Recordings:
        """The recordings; those that read weights which were replaced since the last batch are dropped."""
        module = self.model.target if self.borrowed is None else self.borrowed
        if self.engine != "eager" and isinstance(module, nn.Module):
            places = weight_places(module)
            if places != self._places:
                self.recordings.clear()
                self._places = places
        return self.recordings

    def _warn_of_slow_drafts(self, drawn: Sequence[DrawnImage]) -> None:
        """Log a warning, once in the pipeline's life, where the drafter gave numbers that are not finite."""
        sources = frozenset[str]().union(*(image.generation.stats.broken_sources for image in drawn))
        if sources and not self._warned:
            self._warned = True
            LOGGER.warning(slow_drafts(sources, str(self.model.target.dtype).removeprefix("torch.")))

    def _measure_if_drifted(self, request: Request, drawn: Sequence[DrawnImage]) -> None:
        """Time steps again, once in the pipeline's life, where those of a call took much longer than `hawk` counts on.

        Only steps like the timed ones are compared: of guided images of the model's own size, drawn one by one. The
        pipeline's first image is left out, since its steps are slower than later ones; so is the engine "compiled",
        where to time a step takes minutes.
        """
        compared, self._warm = drawn[0 if self._warm else 1 :], True
        alike = request.params.guided and request.grid == self.model.grid and self.engine != "compiled"
        if not (alike and compared and self._measures_again):
            return
        quickest = min(compared, key=lambda each: each.decoding / each.generation.stats.nfe)
        stats, target = quickest.generation.stats, self.model.target
        longer = drifted(quickest.decoding / stats.nfe, target, self.costs, self.engine, round(stats.nodes / stats.nfe))
        if longer is not None:
            self._measures_again = False
        if longer:
            LOGGER.info("steps no longer take the seconds that were measured: they are timed again")
            self.measure()
