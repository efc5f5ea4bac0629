"""The model as the worker's thread uses it: reads wishes, makes engines and drafters, turns tokens into pictures."""

from __future__ import annotations

import warnings
from dataclasses import replace

from jaxtyping import Int
from PIL import Image
from torch import Tensor

from hawk.decoding.grid import Grid
from hawk.decoding.request import Request
from hawk.decoding.tree import Window
from hawk.decoding.trees import Drafter
from hawk.drafters.methods import METHODS, Method, lacking, method_named
from hawk.drafters.settings import TreeLimits
from hawk.engine import DrawingEngine
from hawk.errors import HawkError
from hawk.models.arguments import grid_of, request_of
from hawk.models.pixels import sound_pixels
from hawk.outputs import as_output, image_metadata, image_settings
from hawk.pipeline import HawkPipeline
from hawk.server.jobs import JobImage, Reading, Wish


class Studio:
    """A loaded pipeline whose model belongs to one thread. `area` is the largest image in pixels of the model's own."""

    def __init__(self, pipe: HawkPipeline, area: float = 4.0) -> None:
        self.pipe, self.area = pipe, area
        self._drafters: dict[tuple[str, Grid], Drafter | Window] = {}

    def engine(self, places: int) -> DrawingEngine[JobImage]:
        """A new engine without images."""
        return DrawingEngine(self.pipe.model.target, places, self.pipe.recordings)

    def warm(self) -> None:
        """Time the machine's steps, if nobody did before, so that the first request need not wait for it."""
        self.drafter("hawk", self.pipe.model.grid)

    def drafter(self, name: str, grid: Grid) -> Drafter | Window:
        """The drafter of a method for a grid."""
        if (name, grid) not in self._drafters:
            method = method_named(name)
            made = self.pipe.drafter_for(method, TreeLimits().within(grid), method.verifier)
            self._drafters[name, grid] = self.pipe.skills.taught(made, self.pipe.model.defaults)
        return self._drafters[name, grid]

    def check_size(self, height: int | None, width: int | None) -> Grid:
        """The grid of an image of that many pixels; `HawkError` for one that the model or the server refuses."""
        model = self.pipe.model
        sides = [
            side * model.cell if given is None else given
            for given, side in ((height, model.grid.height), (width, model.grid.width))
        ]
        most = int(self.area * model.grid.size) * model.cell**2
        if sides[0] * sides[1] > most:
            raise HawkError(f"size must be at most {most} pixels, width x height, which is this server's limit")
        return grid_of(model, height, width)

    def read(self, wish: Wish) -> Reading:
        """Read a wish: prompts are encoded, settings checked. Raises `HawkError` for a wrong one."""
        model, method = self.pipe.model, method_named(wish.method)
        wish = self._drawable(wish)
        grid = self.check_size(wish.height, wish.width)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                request = self._request(wish, method)
            except HawkError as error:
                self._check_negative(wish.negative_prompt, grid)
                raise error
        settings = image_settings(request.params, grid, model.cell, request.verifier, self.pipe.dtype)
        texts = [
            image_metadata(wish.prompt, wish.negative_prompt, seed, model.name, method.name, settings)
            for seed in request.seeds
        ]
        hint = str(told[0].message) if told else ""
        return Reading(request, self.drafter(wish.method, grid), texts, hint)

    def _drawable(self, wish: Wish) -> Wish:
        """A wish that takes any size, with the model's own size where the model does not draw the wanted one."""
        if not wish.any_size:
            return wish
        try:
            self.check_size(wish.height, wish.width)
        except HawkError:
            return replace(wish, height=None, width=None)
        return wish

    def _request(self, wish: Wish, method: Method) -> Request:
        """The request of a wish; `HawkError` for a wrong one."""
        return request_of(
            self.pipe.model,
            wish.prompt,
            wish.negative_prompt or None,
            wish.guidance_scale,
            wish.images,
            wish.seed,
            None,
            wish.temperature,
            wish.top_k,
            wish.top_p,
            method.verifier,
            wish.height,
            wish.width,
        )

    def _check_negative(self, negative: str, grid: Grid) -> None:
        """Raise a `HawkError` that names the negative prompt, where the model cannot read it as a prompt."""
        try:
            if negative:
                self.pipe.model.condition([negative], [""], grid)
        except HawkError as error:
            raise HawkError(str(error).replace("the prompt", "the negative prompt", 1)) from error

    def picture(self, tokens: Int[Tensor, " n"], grid: Grid, committed: int | None = None) -> Image.Image:
        """The picture of an image's tokens; with `committed`, the cells from that position on are grey."""
        if committed is not None:
            tokens = tokens.clone()
            tokens[committed:] = tokens[committed - 1]  # what lies there is a draft, or nothing yet
        pixels = sound_pixels(self.pipe.model, tokens.view(1, grid.height, grid.width)).float().cpu()
        if committed is not None:
            cell, (row, col) = self.pipe.model.cell, divmod(committed, grid.width)
            pixels[:, :, row * cell : (row + 1) * cell, col * cell :] = 0
            pixels[:, :, (row + 1) * cell :] = 0
        picture: Image.Image = as_output(pixels, "pil")[0]
        return picture


def served_methods(pipe: HawkPipeline) -> tuple[str, ...]:
    """The seed-exact methods that a model can run: an image has the same tokens by each of them."""
    exact = (method for method in METHODS.values() if method.verifier == "coupled")
    return tuple(method.name for method in exact if lacking(method, pipe.model.drafting) is None)


def numbers(tokens: Int[Tensor, "*n"]) -> tuple[int, ...]:
    """The numbers of a tensor in raster order."""
    return tuple(tokens.flatten().tolist())
