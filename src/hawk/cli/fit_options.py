"""The options of `hawk train` that say how something is fitted, and on which pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hawk.errors import HawkError

if TYPE_CHECKING:
    from hawk.training.endless.pictures import Pictures
    from hawk.training.loop import FitConfig
    from hawk.training.world import World


@dataclass(frozen=True)
class FitOptions:
    """The options that all commands share; None keeps the recipe's value."""

    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps (default: the recipe's).")] = None
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, max=1_000_000, help="Images in a step, counting all processes together."),
    ] = None
    lr: Annotated[float | None, typer.Option("--lr", min=0.0, help="Peak learning rate.")] = None
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of weights, batches and dropout.")] = 0
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "cpu"
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16 (autocast).")] = "bfloat16"
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the training step with torch.compile.")
    ] = False

    @property
    def on(self) -> str:
        """The device by its own name, also for auto; `HawkError` for one that is not there."""
        from hawk.models.loading import device_named

        return str(device_named(self.device))

    def applied_to(self, recipe: FitConfig) -> FitConfig:
        """The recipe with these options; raises `HawkError` for an unknown dtype or device, or an infinite rate."""
        check_finite("--lr", self.lr)
        if self.dtype not in ("float32", "bfloat16"):
            raise HawkError(f"--dtype is float32 or bfloat16, not {self.dtype!r}")
        return replace(
            recipe,
            steps=self.steps or recipe.steps,
            batch_size=self.batch_size or recipe.batch_size,
            lr=recipe.lr if self.lr is None else self.lr,
            seed=self.seed,
            device=self.on,
            dtype=self.dtype,
            compile=self.compiled,
        )


@dataclass(frozen=True)
class PictureOptions(FitOptions):
    """The options of the commands that fit on endless pictures; None keeps the recipe's value."""

    photos: Annotated[
        Path | None,
        typer.Option(
            "--photos",
            help="Train on cut-outs of the photographs in this folder, not on drawn scenes; they are fetched into a "
            "folder that is new or empty (by apt-get).",
        ),
    ] = None
    side: Annotated[
        int, typer.Option("--side", min=64, max=1024, help="Side of the pictures in pixels, a multiple of 8.")
    ] = 128
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", min=0.0, help="End after so many minutes at the latest, the learning rate with them."
        ),
    ] = None
    warmup: Annotated[
        int | None, typer.Option("--warmup", min=0, help="Steps in which the learning rate rises to its peak.")
    ] = None
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", min=0.0, help="Decay of weight matrices.")] = (
        None
    )
    ema: Annotated[
        float | None, typer.Option("--ema", min=0.0, max=1.0, help="Decay of the averaged weights, below 1.")
    ] = None
    save_every: Annotated[int | None, typer.Option("--save-every", min=1, help="Steps between two saved states.")] = (
        None
    )
    evaluate_every: Annotated[
        int | None, typer.Option("--evaluate-every", min=1, help="Steps between two measurements on held-out pictures.")
    ] = None
    workers: Annotated[
        int, typer.Option("--workers", min=0, max=256, help="Processes that draw pictures in advance.")
    ] = 0
    pause: Annotated[Path | None, typer.Option("--pause", help="Training waits while this file exists.")] = None

    def applied_to(self, recipe: FitConfig) -> FitConfig:
        """The recipe with these options; raises `HawkError` also for other numbers that no fit can have."""
        for name, value in (("--minutes", self.minutes), ("--weight-decay", self.weight_decay), ("--ema", self.ema)):
            check_finite(name, value)
        if self.minutes == 0:
            raise HawkError("--minutes must be above 0: leave it out to train all steps")
        if self.ema == 1:
            raise HawkError("--ema must be below 1: with 1 the averaged weights would never change")
        fit = super().applied_to(recipe)
        return replace(
            fit,
            minutes=fit.minutes if self.minutes is None else self.minutes,
            warmup=fit.warmup if self.warmup is None else self.warmup,
            weight_decay=fit.weight_decay if self.weight_decay is None else self.weight_decay,
            ema=fit.ema if self.ema is None else self.ema,
            save_every=self.save_every or fit.save_every,
            evaluate_every=self.evaluate_every or fit.evaluate_every,
        )

    def pictures(self, world: World) -> Pictures:
        """The pictures to train on; the first process fetches photographs that are not there, the others wait."""
        from hawk.training.photos.data import PhotoPictures
        from hawk.training.photos.sources import photos_in
        from hawk.training.scenes.data import ScenePictures

        if self.photos is None:
            return ScenePictures(side=self.side)
        if world.first:
            photos_in(self.photos)
        world.wait()
        return replace(PhotoPictures.load(photos_in(self.photos)), side=self.side)

    def check_side(self, cell: int) -> None:
        """Raise `HawkError` if the pictures are no whole number of token cells, `cell` pixels wide."""
        if self.side % cell:
            raise HawkError(f"--side must be a multiple of {cell}, the pixels of a token, not {self.side}")


def check_finite(option: str, value: float | None) -> None:
    """Raise `HawkError` if an option is infinite or not a number."""
    if value is not None and not math.isfinite(value):
        raise HawkError(f"{option} must be a finite number, not {value}")


def with_fit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of its parameter `options` (a dataclass), which receives their values.

    SIGTERM makes the command save what it fits, and end.
    Typer reads a command's options from its signature, so the returned function has a signature with all of them.
    """
    parameters = signature(command, eval_str=True).parameters
    kind = parameters["options"].annotation
    own = [p for p in parameters.values() if p.name != "options"]
    shared = list(signature(kind, eval_str=True).parameters.values())

    @wraps(command)
    def with_options(**values: Any) -> None:
        from hawk.cli.interrupts import is_importing
        from hawk.training.stopping import heeding_sigterm

        options = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        with heeding_sigterm(is_importing):  # torch may end the process when its import is cut short
            command(**values, options=options)

    with_options.__signature__ = Signature(  # type: ignore[attr-defined]
        [p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *shared)]
    )
    return with_options
