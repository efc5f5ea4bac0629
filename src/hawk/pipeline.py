"""HawkPipeline: text in, images out. The arguments are named as in diffusers."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from hawk.decoding.arguments import Number, is_several, real_number, shown, texts_of, whole_number
from hawk.decoding.canvas import Canvas
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.recording import Engine, Recordings
from hawk.decoding.relaxed import LOSSY, Relaxation
from hawk.decoding.request import Condition, Request, check_seeds
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.stats import Generation, OnStep, Stats
from hawk.decoding.tree import Window
from hawk.decoding.trees import Drafter
from hawk.decoding.verify import LOSSLESS
from hawk.drafters.methods import UNTRAINED, Method, build_drafter, method_named
from hawk.drafters.parts import DraftParts
from hawk.drafters.settings import TreeLimits, settings_for
from hawk.errors import HawkError
from hawk.machine import lacking_operations_refused
from hawk.models.loading import (
    device_named,
    drafter_folder,
    dtype_named,
    engine_named,
    is_large,
    load_on,
    model_folder,
)
from hawk.models.pixels import finite_pixels
from hawk.models.protocol import Model

OUTPUT_TYPES = ("pil", "np", "pt")

OnStepEnd = Callable[["HawkPipeline", int, int, dict[str, Any]], Any]
"""Called after each target forward with (pipeline, forwards of this batch so far, tokens committed so far in the whole
call, {"canvas": Canvas, "stats": Stats}). What it returns has no effect. To stop the call, it may
raise an exception of its own, or set `pipeline._interrupt = True` as in diffusers: the call then raises `StoppedError`.
"""


@dataclass(frozen=True)
class PipelineOutput:
    """Images of one call, and how they were drawn; the lists have one entry for each image.

    `tokens` and `origins` are `[images, grid.size]` on the CPU; `origins` index `source_names`, and -1 is a recovered
    or bonus token. `stats` holds the counts of each image's batch (the image's own counts at `batch_size` 1).
    `seconds` is the image's share of its batch's wall-clock time, from prompt to pixels.
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
    """A call was stopped by `pipe._interrupt = True`; `finished` is the output of the batches that were complete.

    Where no batch was complete, `finished` is None.
    """

    def __init__(self, finished: PipelineOutput | None, images: int) -> None:
        done = 0 if finished is None else len(finished.seeds)
        super().__init__(f"the call was stopped after {done} of {images} images")
        self.finished = finished


class _StopError(Exception):
    """Leaves the decoding of a batch, because `_interrupt` was set."""


@dataclass(eq=False)
class HawkPipeline:
    """A loaded model on a device; call it with a prompt.

    `borrowed` is a module that the caller goes on using: each call runs it in evaluation mode and then restores its
    mode. A callback or another thread may set `_interrupt`, which stops the present call; the next call resets it.
    """

    model: Model
    device: torch.device
    dtype: str
    engine: Engine = "eager"
    borrowed: nn.Module | None = field(default=None, repr=False)
    _interrupt: bool = field(default=False, init=False, repr=False)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "bundled",
        device: str = "auto",
        dtype: str = "auto",
        drafter: str | Path | None = None,
        engine: str = "auto",
    ) -> HawkPipeline:
        """Load a model: "bundled", a folder, or a hub id `owner/name`.

        Args:
            device: "auto" (a CUDA GPU where there is one), "cpu", "cuda", "cuda:1", or "mps" (an Apple GPU).
            dtype: of the target and its drafter: float32, bfloat16, float16 or float64. On a CPU, bfloat16 applies to
                matrix products only, and everything between them is float32. "auto" is bfloat16 on a CPU with matrix
                units (AMX) and for a model of more than 200 million parameters on a GPU, and float32 elsewhere.
            drafter: a drafter's folder or hub id, to use in place of the model's own.
            engine: how the steps of `ar`, `scd` and untrained `hawk` run. "eager": the host starts each step. "graph":
                the first image of a size records a step as a CUDA graph, which is then replayed. "compiled": the same
                with a step that is compiled first, which takes minutes. "auto" is "graph" on a CUDA GPU, "eager"
                elsewhere. On an Apple GPU every engine is "eager".

        Raises:
            HawkError: no such model, a damaged one, or a device that is not there.
        """
        on = device_named(device)
        chosen = engine_named(engine, on)
        dtype_named(dtype, on)  # refuses a wrong name before anything is fetched
        own_drafter = None if drafter is None else drafter_folder(drafter)
        folder = model_folder(model)
        dtype = dtype_named(dtype, on, large=is_large(folder))
        return cls(load_on(folder, on, dtype, own_drafter), on, dtype, chosen)

    @property
    def defaults(self) -> SamplingParams:
        """The sampling parameters that a call uses where it names none."""
        return self.model.defaults

    @cached_property
    def priced(self) -> DraftParts:
        """The parts of `hawk`, with node cost and window set for this machine; the first access may time steps."""
        parts = self.model.drafting or UNTRAINED
        return replace(parts, fused=settings_for(parts.fused, self.model.target, self.model.fingerprint, self.engine))

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
        texts = texts_of(prompts)
        return self.model.condition(texts, [""] * len(texts), grid_of(self.model, height, width))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
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
        batch_size: Number = 1,
    ) -> PipelineOutput | tuple[Any]:
        """Draw `num_images_per_prompt` images of each prompt.

        Numbers may be those of Python, numpy or torch; a float that is whole, as 8.0, is a whole number.

        Args:
            prompt: what to draw; a list draws images of each of its prompts.
            num_images_per_prompt: images of each prompt.
            negative_prompt: replaces the null caption in guidance; one for all prompts, or one for each.
            guidance_scale, temperature, top_k, top_p: None takes the model's default. A `guidance_scale` of 1 or less
                turns guidance off.
            seed: image i of the call has the seed `seed + i`, so n images equal n single calls. A list holds one seed
                for each image. None draws a seed from the system.
            generator: in place of `seed`: one generator that all seeds are drawn from, or one for each image.
            method: a name of `hawk.drafters.methods.METHODS`.
            verifier: "coupled", "residual", "traversal", or "relaxed" (lossy); None is the method's own.
            num_draft_tokens, window: most drafts of a forward, and most positions that drafts may reach past the
                frontier; None leaves the choice to the method.
            height, width: in pixels; None is what the model was trained for.
            output_type: "pil"; "np" `[n, height, width, 3]` or "pt" `[n, 3, height, width]`, both in [0, 1].
            return_dict: False returns `(images,)`.
            callback_on_step_end: see `OnStepEnd`.
            batch_size: images decoded together. More than 1 pays on a GPU only. Rounding differs between batch sizes,
                so that a near-tie between two tokens may fall the other way.

        Raises:
            HawkError: an argument is wrong; the message is one line that names it.
            StoppedError: the callback or another thread set `_interrupt`; the exception holds the finished images.
        """
        self._interrupt = False
        # check
        if output_type not in OUTPUT_TYPES:
            raise HawkError(f"unknown output_type {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")
        if not (callback_on_step_end is None or callable(callback_on_step_end)):
            raise HawkError(f"callback_on_step_end must be a function, not {shown(callback_on_step_end)}")
        batch_size = whole_number("batch_size", batch_size, least=1)
        limits = TreeLimits(
            None if num_draft_tokens is None else whole_number("num_draft_tokens", num_draft_tokens),
            None if window is None else whole_number("window", window),
        )
        chosen = method_named(method)
        prompts, negatives = paired_prompts(prompt, negative_prompt, num_images_per_prompt)
        params = sampling_params(self.model, guidance_scale, temperature, top_k, top_p)
        if any(negatives) and not params.guided:
            raise HawkError(
                "a negative prompt has no effect at guidance_scale 1 or less: raise it, or leave out the prompt"
            )
        grid = grid_of(self.model, height, width)
        verifier = chosen.verifier if verifier is None else verifier
        request = Request(
            self.model.condition(prompts, negatives, grid),
            grid,
            params,
            image_seeds(len(prompts), seed, generator),
            verifier,
            self.relaxation if verifier in LOSSY else None,
        )
        batches: list[Batch] = []
        with evaluation_mode(self.borrowed):
            drafter = self._drafter(chosen, limits, verifier)
            try:
                for start in range(0, request.images, batch_size):
                    rows = request.rows(slice(start, start + batch_size))
                    batches.append(self._draw(rows, drafter, callback_on_step_end, start * grid.size))
            except _StopError:
                finished = output_of(request, batches, output_type) if batches else None
                raise StoppedError(finished, request.images) from None
        output = output_of(request, batches, output_type)
        return output if return_dict else (output.images,)

    def _drafter(self, method: Method, limits: TreeLimits, verifier: str) -> Drafter | Window:
        """The drafter of a method for a verifier; `HawkError` where what it needs is not trained."""
        parts = self.priced if method.name == "hawk" else self.model.drafting
        return build_drafter(method, parts, self.model.target, limits, verifier)

    def _draw(self, request: Request, drafter: Drafter | Window, callback: OnStepEnd | None, before: int) -> Batch:
        """One batch, from conditions to pixels; `before` tokens of the call were committed in earlier batches."""
        if self._interrupt:
            raise _StopError
        started = time.perf_counter()
        with lacking_operations_refused(self.device):
            generation = generate(self.model.target, request, drafter, self._on_step(callback, before), self.recordings)
            codes = generation.tokens.unflatten(1, (request.grid.height, request.grid.width))
            pixels = finite_pixels(self.model, codes).cpu()
        return Batch(generation, pixels, time.perf_counter() - started)

    def _on_step(self, callback: OnStepEnd | None, before: int) -> OnStep:
        """The decoder's callback for a batch that `before` committed tokens precede; `_StopError` ends it."""

        def on_step(canvas: Canvas, stats: Stats) -> None:
            if callback is not None:
                callback(self, stats.nfe, before + sum(canvas.committed), {"canvas": canvas, "stats": stats})
            if self._interrupt and not canvas.done:
                raise _StopError

        return on_step


@dataclass(frozen=True)
class Batch:
    """Images that were decoded together, their pixels in [-1, 1], and the wall-clock seconds of the whole batch."""

    generation: Generation
    pixels: Float[Tensor, "images 3 height width"]
    seconds: float


@contextmanager
def evaluation_mode(module: nn.Module | None) -> Iterator[None]:
    """Run the body with a module in evaluation mode; afterwards each part of the module has its own mode again."""
    training = [] if module is None else [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def output_of(request: Request, batches: Sequence[Batch], output_type: str) -> PipelineOutput:
    """The output of a call whose first images are in `batches`; all of them, unless the call was interrupted."""
    drawn = [batch.generation for batch in batches]
    sizes = [len(generation.tokens) for generation in drawn]
    return PipelineOutput(
        images=as_output(torch.cat([batch.pixels for batch in batches]), output_type),
        stats=[generation.stats for generation, size in zip(drawn, sizes, strict=True) for _ in range(size)],
        seeds=list(request.seeds[: sum(sizes)]),
        tokens=torch.cat([generation.tokens for generation in drawn]).cpu(),
        origins=torch.cat([generation.origins for generation in drawn]).cpu(),
        source_names=drawn[0].source_names,
        seconds=[batch.seconds / size for batch, size in zip(batches, sizes, strict=True) for _ in range(size)],
        grid=request.grid,
        params=request.params,
        verifier=request.verifier,
    )


def paired_prompts(
    prompt: str | Sequence[str], negative: str | Sequence[str] | None, copies: Number
) -> tuple[list[str], list[str]]:
    """One prompt and one negative prompt ("" for none) for each image; `HawkError` for what is no prompt."""
    prompts = texts_of(prompt)
    negatives = [negative or ""] * len(prompts) if negative is None or negative == "" else texts_of(negative)
    if len(negatives) == 1:
        negatives *= len(prompts)
    if not prompts:
        raise HawkError("no prompt given: describe the image, as in 'a red apple'")
    if len(negatives) != len(prompts):
        raise HawkError(f"{len(prompts)} prompts need as many negative prompts or one, not {len(negatives)}")
    each = range(whole_number("num_images_per_prompt", copies, least=1))
    return ([text for text in prompts for _ in each], [text for text in negatives for _ in each])


def sampling_params(
    model: Model, scale: Number | None, temperature: Number | None, top_k: Number | None, top_p: Number | None
) -> SamplingParams:
    """The model's default sampling parameters, replaced by those that are given; a scale of 1 or less means 1 (off)."""
    given: dict[str, Any] = {
        "cfg_scale": None if scale is None else max(real_number("guidance_scale", scale), 1.0),
        "temperature": None if temperature is None else real_number("temperature", temperature),
        "top_k": None if top_k is None else whole_number("top_k", top_k),
        "top_p": None if top_p is None else real_number("top_p", top_p),
    }
    return replace(model.defaults, **{name: value for name, value in given.items() if value is not None})


def grid_of(model: Model, height: Number | None, width: Number | None) -> Grid:
    """The grid of an image of that many pixels (None: the model's own); `HawkError` for one that it cannot draw."""
    trained, cell = model.grid, model.cell
    sides = []
    for name, given, tokens in (("height", height, trained.height), ("width", width, trained.width)):
        pixels = tokens * cell if given is None else whole_number(name, given)
        if pixels < cell or pixels % cell:
            raise HawkError(f"{name} must be a positive multiple of {cell} pixels, not {pixels}")
        sides.append(pixels // cell)
    grid = Grid(*sides)
    model.check_grid(grid)
    return grid


def image_seeds(
    count: int,
    seed: Number | Sequence[Number] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> list[int]:
    """The seed of each image: as given, `seed + i`, drawn from the generators, or drawn from the system.

    Raises:
        HawkError: a seed or a generator is none, or out of range, or there are not as many as images.
    """
    if seed is not None and generator is not None:
        raise HawkError("give either seed or generator, not both")
    if generator is not None:
        generators: list[Any] = list(generator) if is_several(generator) else [generator] * count
        for each in generators:
            if not isinstance(each, torch.Generator):
                raise HawkError(f"generator must be a torch.Generator, or a list of them, not {shown(each)}")
        if len(generators) != count:
            raise HawkError(f"{count} images need one generator or {count}, not {len(generators)}")
        return [int(torch.randint(2**62, (), generator=g, device=g.device)) for g in generators]
    if is_several(seed):
        seeds = [whole_number("seed", each) for each in seed]
    else:
        first = secrets.randbelow(2**31) if seed is None else whole_number("seed", seed)
        seeds = [first + i for i in range(count)]
    if len(seeds) != count:
        raise HawkError(f"{count} images need one seed or {count}, not {len(seeds)}")
    check_seeds(seeds)
    return seeds


def tokens_sha256(tokens: Int[Tensor, " n"]) -> str:
    """A fingerprint of an image's tokens: sha256 of the tokens as little-endian int32."""
    return hashlib.sha256(tokens.cpu().numpy().astype("<i4").tobytes()).hexdigest()


def as_output(pixels: Float[Tensor, "n 3 h w"], output_type: str) -> Any:
    """Pixels in [-1, 1] as PIL images, or as an array `[n, h, w, 3]` or tensor `[n, 3, h, w]` in [0, 1]."""
    unit = (pixels.float().clamp(-1, 1) + 1) / 2
    if output_type == "pt":
        return unit
    array = unit.permute(0, 2, 3, 1).numpy()
    if output_type == "np":
        return array
    return [Image.fromarray(image) for image in np.rint(array * 255).astype(np.uint8)]
