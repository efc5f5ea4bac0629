"""Facts about the served model, as routes tell them."""

from __future__ import annotations

from dataclasses import dataclass

from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.models.bundled_prompts import BENCH_PROMPTS
from hawk.pipeline import HawkPipeline
from hawk.server.studio import served_methods


@dataclass(frozen=True)
class ModelCard:
    """Facts about the model that is served; `cell` is in pixels, `created` in seconds since 1970.

    `loaded_as` is what the server was started with: "bundled", a folder or a hub id; "" for a model in memory.
    `defaults` are the model's own settings, `prompts` some that name what the model was taught.
    """

    name: str
    grid: Grid
    cell: int
    defaults: SamplingParams
    methods: tuple[str, ...]
    prompts: tuple[str, ...]
    created: int
    loaded_as: str = ""

    @property
    def height(self) -> int:
        """The height of the model's own images in pixels."""
        return self.grid.height * self.cell

    @property
    def width(self) -> int:
        """The width of the model's own images in pixels."""
        return self.grid.width * self.cell

    @classmethod
    def of(cls, pipe: HawkPipeline, created: int) -> ModelCard:
        """The facts about a pipeline's model."""
        model = pipe.model
        loaded_as = "" if pipe.origin is None else pipe.origin.model
        prompts = tuple(BENCH_PROMPTS) if loaded_as == "bundled" else ()
        methods = served_methods(pipe)
        return cls(model.name, model.grid, model.cell, model.defaults, methods, prompts, created, loaded_as)
