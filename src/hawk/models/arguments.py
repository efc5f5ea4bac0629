"""The arguments of a call, checked against a model: prompts, size, sampling parameters, seeds, and dtypes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hawk.decoding.arguments import Number, is_several, items_of, real_number, shown, texts_of, whole_number
from hawk.decoding.grid import Grid
from hawk.decoding.relaxed import LOSSY, Relaxation
from hawk.decoding.request import Request, check_seeds, check_verifier
from hawk.decoding.sampling import SamplingParams
from hawk.errors import HawkError
from hawk.models.protocol import Model

MOST_IMAGES = 10_000
"""The most images of one call: the encoded prompts of all its images are in memory at once."""

MOST_PIXELS = 2**20
"""The most pixels of a side of an image; no known model draws a hundredth of them."""


def request_of(
    model: Model,
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str | None] | None = None,
    guidance_scale: Number | None = None,
    num_images_per_prompt: Number = 1,
    seed: Number | Sequence[Number] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    temperature: Number | None = None,
    top_k: Number | None = None,
    top_p: Number | None = None,
    verifier: str = "coupled",
    height: Number | None = None,
    width: Number | None = None,
    relaxation: Callable[[], Relaxation] | None = None,
) -> Request:
    """The images that a call asks a model for, with the arguments of `HawkPipeline.__call__`.

    `relaxation` makes what the lossy verifier needs. Raises `HawkError`, which names it, for a wrong argument.
    """
    prompts, negatives = paired_prompts(prompt, negative_prompt, num_images_per_prompt)
    params = sampling_params(model, guidance_scale, temperature, top_k, top_p)
    check_negatives(negatives, params)
    grid = grid_of(model, height, width)
    check_verifier(verifier)
    return Request(
        model.condition(prompts, negatives, grid),
        grid,
        params,
        image_seeds(len(prompts), seed, generator),
        verifier,
        relaxation() if relaxation is not None and verifier in LOSSY else None,
    )


def paired_prompts(
    prompt: str | Sequence[str], negative: str | Sequence[str | None] | None, copies: Number
) -> tuple[list[str], list[str]]:
    """One prompt and one negative prompt ("" for none) for each image.

    Raises:
        HawkError: a prompt is no text, their numbers do not match, or there are more than `MOST_IMAGES` images.
    """
    prompts = texts_of(prompt)
    given: Any = [negative] if negative is None else negative
    several = items_of("negative_prompt", given) if is_several(given) else None
    negatives = texts_of(given if several is None else ["" if text is None else text for text in several])
    if len(negatives) == 1:
        negatives *= len(prompts)
    if not prompts:
        raise HawkError("no prompt given: describe the image, as in 'a red apple'")
    if len(negatives) != len(prompts):
        raise HawkError(f"{len(prompts)} prompts need as many negative prompts or one, not {len(negatives)}")
    count = whole_number("num_images_per_prompt", copies, least=1)
    if count * len(prompts) > MOST_IMAGES:
        raise HawkError(f"one call draws at most {MOST_IMAGES} images, not {shown(count * len(prompts))}: make several")
    return ([text for text in prompts for _ in range(count)], [text for text in negatives for _ in range(count)])


@dataclass(frozen=True)
class ParamNames:
    """What the caller's call or command line names each field of `SamplingParams`: a refusal names it likewise."""

    cfg_scale: str = "guidance_scale"
    temperature: str = "temperature"
    top_k: str = "top_k"
    top_p: str = "top_p"


ARGUMENTS = ParamNames()
"""The names in a call of Python, as in diffusers and transformers."""
OPTIONS = ParamNames("--cfg-scale", "--temperature", "--top-k", "--top-p")
"""The names on the command line."""


def sampling_params(
    model: Model,
    scale: Number | None,
    temperature: Number | None,
    top_k: Number | None,
    top_p: Number | None,
    names: ParamNames = ARGUMENTS,
) -> SamplingParams:
    """The model's default sampling parameters, replaced by those that are given; a scale of 1 or less means 1 (off).

    Raises `HawkError`, which calls the parameter by its name in `names`, for a value out of its range.
    """
    given: dict[str, Any] = {
        "cfg_scale": None if scale is None else max(real_number(names.cfg_scale, scale), 1.0),
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    return replace(
        model.defaults,
        **{field: _checked(field, value, getattr(names, field)) for field, value in given.items() if value is not None},
    )


def _checked(field: str, value: Any, name: str) -> Any:
    """A value as the field of `SamplingParams` takes it; the `HawkError` for a wrong one calls the field `name`."""
    number: Any = whole_number(name, value) if field == "top_k" else real_number(name, value)
    try:
        return getattr(SamplingParams(**{field: number}), field)
    except HawkError as error:
        raise HawkError(str(error).replace(field, name, 1)) from error


def check_negatives(negatives: Sequence[str], params: SamplingParams, names: ParamNames = ARGUMENTS) -> None:
    """Raise `HawkError` for a negative prompt where guidance is off: the prompt would have no effect."""
    if any(negatives) and not params.guided:
        raise HawkError(
            f"a negative prompt has no effect at {names.cfg_scale} 1 or less: raise it, or leave out the prompt"
        )


def check_pixels(name: str, pixels: int, cell: int) -> None:
    """Raise `HawkError` unless a side of an image, in pixels, is a multiple of a token's cell and not too long."""
    if pixels < cell or pixels % cell:
        raise HawkError(f"{name} must be a positive multiple of {cell} pixels, not {shown(pixels)}")
    if pixels > MOST_PIXELS:
        raise HawkError(f"{name} must be at most {MOST_PIXELS} pixels, not {shown(pixels)}, which is too many")


def grid_of(model: Model, height: Number | None, width: Number | None) -> Grid:
    """The grid of an image of that many pixels (None: the model's own); `HawkError` for one that it cannot draw."""
    trained, cell = model.grid, model.cell
    sides = []
    for name, given, tokens in (("height", height, trained.height), ("width", width, trained.width)):
        pixels = tokens * cell if given is None else whole_number(name, given)
        check_pixels(name, pixels, cell)
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
        generators: list[Any] = items_of("generator", generator) if is_several(generator) else [generator] * count
        for each in generators:
            if not isinstance(each, torch.Generator):
                raise HawkError(f"generator must be a torch.Generator, or a list of them, not {shown(each)}")
        if len(generators) != count:
            raise HawkError(f"{count} images need one generator or {count}, not {len(generators)}")
        return [int(torch.randint(2**62, (), generator=g, device=g.device)) for g in generators]
    if is_several(seed):
        seeds = [whole_number("seed", each) for each in items_of("seed", seed)]
    else:
        first = secrets.randbelow(2**31) if seed is None else whole_number("seed", seed)
        seeds = [first + i for i in range(count)]
    if len(seeds) != count:
        raise HawkError(f"{count} images need one seed or {count}, not {len(seeds)}")
    check_seeds(seeds)
    return seeds


def dtype_of(dtype: str | torch.dtype | None, torch_dtype: str | torch.dtype | None) -> str:
    """The name of a dtype that is given by name or as torch's, under either of two arguments; "auto" if by neither.

    Raises `HawkError` where both are given and differ.
    """
    names = [str(each).removeprefix("torch.") for each in (dtype, torch_dtype) if each is not None]
    if len(set(names)) > 1:
        raise HawkError(f"dtype is {names[0]} and torch_dtype is {names[1]}: give one of them")
    return names[0] if names else "auto"
