"""`hawk train tokenizer | target | drafter`: the commands that call `hawk.training`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hawk.cli.options import CfgScaleOption, EngineOption, TemperatureOption, TopKOption, TopPOption
from hawk.errors import HawkError

if TYPE_CHECKING:
    from hawk.training.loop import FitConfig

train_app = typer.Typer(
    no_args_is_help=True,
    help="Train a tokenizer, a target or a drafter. The same command again resumes a killed run.",
)

MIN_IMAGES = 64
"""The smallest number of grids that a drafter is trained on."""
MOST_IMAGES = 10_000_000
"""The largest number of grids that a drafter is trained on."""

Data = Annotated[Path, typer.Option("--data", help="Folder that `hawk data build` wrote.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Run folder for the state, tensorboard and log; a run in it is resumed.")
]


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
        if self.lr is not None and not math.isfinite(self.lr):
            raise HawkError(f"--lr must be a finite number, not {self.lr}")
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


def with_fit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `FitOptions` in place of its parameter `options`, which receives their values.

    Typer reads a command's options from its signature, so the returned function has a signature with all of them.
    """
    own = [p for p in signature(command, eval_str=True).parameters.values() if p.name != "options"]
    shared = list(signature(FitOptions, eval_str=True).parameters.values())

    @wraps(command)
    def with_options(**values: Any) -> None:
        options = FitOptions(**{field.name: values.pop(field.name) for field in fields(FitOptions)})
        command(**values, options=options)

    with_options.__signature__ = Signature(  # type: ignore[attr-defined]
        [p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *shared)]
    )
    return with_options


@train_app.command("tokenizer")
@with_fit_options
def train_tokenizer_command(data: Data, out: Out, options: FitOptions) -> None:
    """Fit the FSQ tokenizer (pixels <-> tokens) on captioned sprites."""
    from hawk.training.sprites.tokenizer import preset, train_tokenizer

    _, fitted = train_tokenizer(data, out, options.applied_to(preset()))
    typer.echo(f"{out}: PSNR {fitted.scalars['psnr']:.2f} dB, {fitted.seconds / 60:.1f} minutes")


@train_app.command("target")
@with_fit_options
def train_target_command(
    data: Data,
    out: Out,
    tokenizer: Annotated[
        Path, typer.Option("--tokenizer", help="Run folder of `hawk train tokenizer`, or a model folder.")
    ],
    text: Annotated[Path, typer.Option("--text", help="Folder with words.txt, words.safetensors and text.json.")],
    options: FitOptions,
    name: Annotated[str, typer.Option("--name", help="Name of the model in the model folder.")] = "hawk-sprites",
    init: Annotated[
        Path | None, typer.Option("--init", help="Model folder whose weights training starts from.")
    ] = None,
    blind: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of images whose context tokens are all hidden.")
    ] = None,
    hazy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of images whose context tokens are partly hidden.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, max=256, help="Processes that compose images in advance.")
    ] = 0,
    muon: Annotated[
        bool | None, typer.Option("--muon/--adamw", help="Optimiser of the transformer's matrices.")
    ] = None,
) -> None:
    """Fit the text-to-image transformer and write a model folder to OUT/model."""
    from hawk.decoding.arguments import texts_of
    from hawk.models.folder import load_model, save_model
    from hawk.models.llamagen.words import StaticTextEncoder
    from hawk.models.tokenizers.fsq import FSQTokenizer
    from hawk.training.sprites.target import Dropouts, bundled_shape, preset, train_target
    from hawk.training.sprites.tokenizer import load_tokenizer

    texts_of(name)  # refuses a name that no file takes
    config = options.applied_to(preset() if muon is None else replace(preset(), muon=muon))
    is_model = (tokenizer / "config.json").is_file()
    vq = load_model(tokenizer, with_heads=False).tokenizer if is_model else load_tokenizer(tokenizer)
    if not isinstance(vq, FSQTokenizer):
        raise HawkError(f"the image tokenizer of {tokenizer} only decodes: training needs one that also encodes images")
    vq, words = vq.to(options.on), StaticTextEncoder.load(text)
    start = None if init is None else load_model(init, with_heads=False).target.state_dict()
    given = {name: share for name, share in (("blind", blind), ("hazy", hazy)) if share is not None}
    dropouts = replace(Dropouts(), **given)
    target, fitted = train_target(data, vq, words, bundled_shape(vq, words), config, out, dropouts, start, workers)
    save_model(out / "model", name, target, vq, text)
    typer.echo(f"{out / 'model'}: held-out loss {fitted.scalars['nll']:.3f} nats, {fitted.seconds / 60:.1f} minutes")


@train_app.command("drafter")
@with_fit_options
def train_drafter_command(
    target: Annotated[
        str, typer.Option("--target", "--model", help="bundled, a model folder, a checkpoint, or a hub id owner/name.")
    ],
    out: Out,
    options: FitOptions,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="File with one prompt a line; the drafter is written to OUT/drafter."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="In place of --prompts: folder of `hawk data build`, whose captions are the prompts; the drafter is "
            "written into the model folder.",
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--kind", help="heads (horizontal and vertical), spatial, feature; or several of them with commas."
        ),
    ] = "heads",
    recipe: Annotated[str, typer.Option("--recipe", help="hawk, paper, mixed, or a YAML file of your own.")] = "hawk",
    sources: Annotated[
        str | None, typer.Option("--sources", help="Sources of hawk's pool, with commas (default: the fastest).")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images",
            min=MIN_IMAGES,
            max=MOST_IMAGES,
            help="Grids to draw (default: the recipe's number, else one per prompt; with --data 512).",
        ),
    ] = None,
    height: Annotated[int | None, typer.Option("--height", min=1, help="Height of the images in pixels.")] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Width of the images in pixels.")] = None,
    cfg_scale: CfgScaleOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    draw_batch: Annotated[
        int | None,
        typer.Option(
            "--draw-batch", min=1, help="Grids that a process draws together (default: the recipe's number, else 32)."
        ),
    ] = None,
    cache_gb: Annotated[
        float,
        typer.Option("--cache-gb", min=0, help="Disk space for the target's states; what does not fit is recomputed."),
    ] = 20.0,
    target_dtype: Annotated[
        str, typer.Option("--target-dtype", help="The target's dtype, as --dtype of `hawk generate`.")
    ] = "auto",
    engine: EngineOption = "auto",
) -> None:
    """Fit a drafter and the pool on grids that the target draws itself. Runs under torchrun as well."""
    from hawk.models.arguments import OPTIONS
    from hawk.models.folder import HEADS_FOLDER
    from hawk.models.loading import device_named, dtype_named, is_checkpoint, is_large, model_folder
    from hawk.pipeline import grid_of, sampling_params
    from hawk.training.drafters.recipe import load_recipe
    from hawk.training.drafters.run import FrozenModel, Plan, train_drafter
    from hawk.training.sprites.texts import SpriteCaptions
    from hawk.training.texts import PromptFile, Texts
    from hawk.training.world import World

    if (prompts is None) == (data is None):
        raise HawkError("give either --prompts FILE (one prompt a line) or --data FOLDER (of `hawk data build`)")
    if not math.isfinite(cache_gb):
        raise HawkError(f"--cache-gb must be a finite number, not {cache_gb}")
    chosen = load_recipe(recipe)
    if chosen.ranges is not None:
        for option, value, span in (
            ("--temperature", temperature, chosen.ranges.temperatures),
            ("--cfg-scale", cfg_scale, chosen.ranges.cfg_scales),
        ):
            if value is not None and span is not None:
                raise HawkError(f"recipe {recipe} draws from a range, {span[0]} to {span[1]}: leave {option} out")
    kinds = {name: chosen.kind(name) for name in listed(kind)}
    kinds = {name: replace(how, fit=options.applied_to(how.fit)) for name, how in kinds.items()}
    world = World.join(options.on)
    for how in kinds.values():
        world.own(how.fit.batch_size)  # raises HawkError early for a batch that does not split among the processes
    texts: Texts
    if prompts is not None:
        texts = PromptFile.read(prompts)
        count = images or chosen.images or max(MIN_IMAGES, len(texts.lines))
    else:
        assert data is not None
        texts, count = SpriteCaptions.read(data), images or chosen.images or 512
    device, folder = device_named(options.on), model_folder(target)
    if data is not None and is_checkpoint(folder):
        raise HawkError(f"{folder} is a transformers checkpoint, nothing is written into it: give --prompts FILE")
    frozen = FrozenModel.load(folder, device, dtype_named(target_dtype, device, large=is_large(folder)), engine)
    plan = Plan(
        kinds=kinds,
        images=count,
        params=sampling_params(frozen.bare, cfg_scale, temperature, top_k, top_p, OPTIONS),
        grid=grid_of(frozen.bare, height, width),
        sources=None if sources is None else tuple(listed(sources)),
        draw_batch=draw_batch or chosen.draw_batch or Plan.draw_batch,
        cache_gb=cache_gb,
        ranges=chosen.ranges,
    )
    summary = train_drafter(frozen, texts, plan, out, folder / HEADS_FOLDER if data else None, world)
    world.leave()
    if summary is not None:
        typer.echo(summary)


def listed(names: str) -> list[str]:
    """The names in a text that separates them by commas."""
    return [name.strip() for name in names.split(",")]
