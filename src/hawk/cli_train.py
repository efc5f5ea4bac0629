"""`hawk train tokenizer | target | drafter`: thin commands over `hawk.training`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hawk.training.loop import FitConfig

train_app = typer.Typer(no_args_is_help=True, help="Train a tokenizer, a target or a drafter; a killed run goes on.")

Data = Annotated[Path, typer.Option("--data", help="Folder that `hawk data build` wrote.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Run folder: state, tensorboard, log; resumed if it holds one.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps (default: the bundled recipe's).")]
Batch = Annotated[int | None, typer.Option("--batch-size", min=1, help="Images a step and process.")]
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
    from hawk.training.tokenizer import preset, train_tokenizer

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
    from hawk.bundle import load_model, save_model
    from hawk.errors import HawkError
    from hawk.targets.text import StaticTextEncoder
    from hawk.targets.vq import FSQTokenizer
    from hawk.training.target import Dropouts, bundled_shape, preset, train_target
    from hawk.training.tokenizer import load_tokenizer

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
    model: Annotated[Path, typer.Option("--model", help="Model folder whose drafter is wanted.")],
    data: Data,
    out: Out,
    kind: Annotated[
        str,
        typer.Option("--kind", help="heads (horizontal and vertical), spatial, feature (added to heads); with commas."),
    ] = "heads",
    sources: Annotated[
        str | None, typer.Option("--sources", help="Sources of hawk's pool, with commas (default: all trained).")
    ] = None,
    images: Annotated[int, typer.Option("--images", min=64, help="Grids that the target draws to learn from.")] = 512,
    steps: Steps = None,
    batch_size: Batch = None,
    lr: Rate = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "bfloat16",
    compiled: Compile = False,
) -> None:
    """Fit a drafter on grids the target draws itself, fit the pool, and write both into the model folder."""
    from hawk.errors import HawkError
    from hawk.training import drafter, feature, spatial
    from hawk.training.bundled import ALL_SOURCES, KINDS, train_bundled_drafter

    kinds = [name.strip() for name in kind.split(",")]
    for name in kinds:
        if name not in KINDS:
            raise HawkError(f"unknown drafter kind {name!r}: choose from {', '.join(KINDS)}")
    named = None if sources is None else tuple(name.strip() for name in sources.split(","))
    unknown = [name for name in named or () if name not in ALL_SOURCES]
    if unknown:
        raise HawkError(f"unknown source {unknown[0]!r}: choose from {', '.join(ALL_SOURCES)}")
    recipes = {"heads": drafter, "spatial": spatial, "feature": feature}
    configs = {
        name: _adjusted(recipes[name].preset(), steps, batch_size, lr, seed, device, dtype, compiled) for name in kinds
    }
    typer.echo(train_bundled_drafter(model, data, out, images, configs, named))
