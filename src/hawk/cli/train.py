"""`hawk train tokenizer | target | drafter`: thin commands over `hawk.training`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hawk.cli.options import CfgScaleOption, TemperatureOption, TopKOption, TopPOption

if TYPE_CHECKING:
    from hawk.training.loop import FitConfig

train_app = typer.Typer(no_args_is_help=True, help="Train a tokenizer, a target or a drafter; a killed run goes on.")

MIN_IMAGES = 64
"""Grids that a drafter learns from at least."""

Data = Annotated[Path, typer.Option("--data", help="Folder that `hawk data build` wrote.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Run folder: state, tensorboard, log; resumed if it holds one.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps (default: the recipe's).")]
Batch = Annotated[int | None, typer.Option("--batch-size", min=1, help="Images a step, of all processes together.")]
Rate = Annotated[float | None, typer.Option("--lr", min=0.0, help="Peak learning rate.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of weights, batches and dropout.")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32 or bfloat16 (autocast).")]
Compile = Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the training step with torch.compile.")]


def _adjusted(
    base: FitConfig,
    steps: int | None,
    batch_size: int | None,
    lr: float | None,
    seed: int,
    device: str,
    dtype: str,
    compiled: bool,
) -> FitConfig:
    """The recipe with the options that were given."""
    from hawk.errors import HawkError

    if dtype not in ("float32", "bfloat16"):
        raise HawkError(f"--dtype is float32 or bfloat16, not {dtype!r}")
    return replace(
        base,
        steps=steps or base.steps,
        batch_size=batch_size or base.batch_size,
        lr=lr if lr is not None else base.lr,
        seed=seed,
        device=device,
        dtype=dtype,
        compile=compiled,
    )


@train_app.command("tokenizer")
def train_tokenizer_command(
    data: Data,
    out: Out,
    steps: Steps = None,
    batch_size: Batch = None,
    lr: Rate = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "bfloat16",
    compiled: Compile = False,
) -> None:
    """Fit the FSQ tokenizer (pixels <-> tokens) on captioned sprites."""
    from hawk.training.sprites.tokenizer import preset, train_tokenizer

    config = _adjusted(preset(), steps, batch_size, lr, seed, device, dtype, compiled)
    _, fitted = train_tokenizer(data, out, config)
    typer.echo(f"{out}: PSNR {fitted.scalars['psnr']:.2f} dB, {fitted.seconds / 60:.1f} minutes")


@train_app.command("target")
def train_target_command(
    data: Data,
    out: Out,
    tokenizer: Annotated[
        Path, typer.Option("--tokenizer", help="Run folder of `hawk train tokenizer`, or a model folder.")
    ],
    text: Annotated[Path, typer.Option("--text", help="Folder with words.txt, words.safetensors and text.json.")],
    name: Annotated[str, typer.Option("--name", help="Name of the model folder's model.")] = "hawk-sprites",
    init: Annotated[Path | None, typer.Option("--init", help="Model folder whose weights to go on from.")] = None,
    blind: Annotated[float | None, typer.Option(min=0, max=1, help="Share of images with all context hidden.")] = None,
    hazy: Annotated[float | None, typer.Option(min=0, max=1, help="Share of images with part of it hidden.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that compose images ahead.")] = 0,
    muon: Annotated[
        bool | None, typer.Option("--muon/--adamw", help="Optimiser of the transformer's matrices.")
    ] = None,
    steps: Steps = None,
    batch_size: Batch = None,
    lr: Rate = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "bfloat16",
    compiled: Compile = False,
) -> None:
    """Fit the text-to-image transformer; writes a model folder to OUT/model."""
    from hawk.errors import HawkError
    from hawk.models.folder import load_model, save_model
    from hawk.models.llamagen.words import StaticTextEncoder
    from hawk.models.tokenizers.fsq import FSQTokenizer
    from hawk.training.sprites.target import Dropouts, bundled_shape, preset, train_target
    from hawk.training.sprites.tokenizer import load_tokenizer

    recipe = preset() if muon is None else replace(preset(), muon=muon)
    config = _adjusted(recipe, steps, batch_size, lr, seed, device, dtype, compiled)
    is_model = (tokenizer / "config.json").is_file()
    vq = load_model(tokenizer, with_heads=False).tokenizer if is_model else load_tokenizer(tokenizer)
    if not isinstance(vq, FSQTokenizer):
        raise HawkError(f"the image tokenizer of {tokenizer} only decodes: training needs one that also encodes images")
    vq, words = vq.to(device), StaticTextEncoder.load(text)
    start = None if init is None else load_model(init, with_heads=False).target.state_dict()
    given = {name: share for name, share in (("blind", blind), ("hazy", hazy)) if share is not None}
    dropouts = replace(Dropouts(), **given)
    target, fitted = train_target(data, vq, words, bundled_shape(vq, words), config, out, dropouts, start, workers)
    save_model(out / "model", name, target, vq, text)
    typer.echo(f"{out / 'model'}: held-out loss {fitted.scalars['nll']:.3f} nats, {fitted.seconds / 60:.1f} minutes")


@train_app.command("drafter")
def train_drafter_command(
    target: Annotated[
        str, typer.Option("--target", "--model", help="bundled, a model folder, a checkpoint, or a hub id owner/name.")
    ],
    out: Out,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="One prompt a line. The drafter is written to OUT/drafter."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="In place of prompts: captions of `hawk data build`; written into the model."),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="heads (horizontal and vertical), spatial, feature; several with commas.")
    ] = "heads",
    recipe: Annotated[str, typer.Option("--recipe", help="hawk, paper, or a YAML file of your own.")] = "hawk",
    sources: Annotated[
        str | None, typer.Option("--sources", help="Sources of hawk's pool, with commas (default: the fastest).")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images", min=MIN_IMAGES, help="Grids to draw (default: the recipe's; one a prompt; of --data 512)."
        ),
    ] = None,
    height: Annotated[int | None, typer.Option("--height", min=1, help="Of the images, in pixels.")] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Of the images, in pixels.")] = None,
    cfg_scale: CfgScaleOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    draw_batch: Annotated[int, typer.Option("--draw-batch", min=1, help="Grids drawn together by a process.")] = 32,
    cache_gb: Annotated[
        float, typer.Option("--cache-gb", min=0, help="Disk for the target's states; what does not fit is recomputed.")
    ] = 20.0,
    target_dtype: Annotated[str, typer.Option("--target-dtype", help="The target's, as in generate.")] = "auto",
    steps: Steps = None,
    batch_size: Batch = None,
    lr: Rate = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "bfloat16",
    compiled: Compile = False,
) -> None:
    """Fit a drafter on grids that the target draws itself, and the pool; a killed run goes on. Runs under torchrun."""
    from hawk.errors import HawkError
    from hawk.models.folder import HEADS_FOLDER
    from hawk.models.loading import device_named, dtype_named, is_checkpoint, model_folder
    from hawk.pipeline import grid_of, sampling_params
    from hawk.training.drafters.recipe import load_recipe
    from hawk.training.drafters.run import Plan, Trained, train_drafter
    from hawk.training.sprites.texts import SpriteCaptions
    from hawk.training.texts import PromptFile, Texts
    from hawk.training.world import World

    if (prompts is None) == (data is None):
        raise HawkError("give either --prompts FILE (one prompt a line) or --data FOLDER (of `hawk data build`)")
    asked = load_recipe(recipe)
    kinds = {name: asked.kind(name) for name in listed(kind)}
    fits = {
        name: replace(how, fit=_adjusted(how.fit, steps, batch_size, lr, seed, device, dtype, compiled))
        for name, how in kinds.items()
    }
    world = World.join(device)
    for how in fits.values():
        world.own(how.fit.batch_size)
    texts: Texts
    if prompts is not None:
        texts = PromptFile.read(prompts)
        count = images or asked.images or max(MIN_IMAGES, len(texts.lines))
    else:
        assert data is not None
        texts, count = SpriteCaptions.read(data), images or asked.images or 512
    place, folder = device_named(device), model_folder(target)
    if data is not None and is_checkpoint(folder):
        raise HawkError(f"{folder} is a transformers checkpoint, nothing is written into it: give --prompts FILE")
    trained = Trained.load(folder, place, dtype_named(target_dtype, place, large=is_checkpoint(folder)))
    model = trained.bare
    plan = Plan(
        kinds=fits,
        images=count,
        params=sampling_params(model, cfg_scale, temperature, top_k, top_p),
        grid=grid_of(model, height, width),
        sources=None if sources is None else tuple(listed(sources)),
        draw_batch=draw_batch,
        cache_gb=cache_gb,
    )
    said = train_drafter(trained, texts, plan, out, folder / HEADS_FOLDER if data else None, world)
    world.leave()
    if said is not None:
        typer.echo(said)


def listed(names: str) -> list[str]:
    """Names that commas divide."""
    return [name.strip() for name in names.split(",")]
