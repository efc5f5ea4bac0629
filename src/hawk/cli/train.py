"""`hawk train tokenizer | target | model | drafter`: the commands that call `hawk.training`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hawk.cli.fit_options import FitOptions, PictureOptions, check_finite, with_fit_options
from hawk.cli.options import CfgScaleOption, EngineOption, TemperatureOption, TopKOption, TopPOption
from hawk.errors import HawkError

train_app = typer.Typer(
    no_args_is_help=True,
    help="Train a drafter for any target, or a tokenizer and a target of your own. The same command again resumes a "
    "killed run.",
)

CELL = 8
"""Side of a token of a fresh tokenizer, in pixels."""
MOST_CODES = 65_536
"""The largest codebook of a tokenizer."""
CAPTIONS = 512
"""The number of grids that a drafter is trained on where the prompts are captions of scenes."""
MIN_IMAGES = 64
"""The smallest number of grids that a drafter is trained on."""
MOST_IMAGES = 10_000_000
"""The largest number of grids that a drafter is trained on."""

Out = Annotated[
    Path, typer.Option("--out", "-o", help="Run folder for the state, tensorboard and log; a run in it is resumed.")
]
Tokenizer = Annotated[
    Path, typer.Option("--tokenizer", help="Run folder of `hawk train tokenizer`, or a model folder.")
]


@train_app.command("tokenizer")
@with_fit_options
def train_tokenizer_command(
    out: Out,
    options: PictureOptions,
    levels: Annotated[
        str | None,
        typer.Option(
            "--levels",
            help="Levels of each channel, with commas; their product is the number of codes (default: 8,8,8,8, or "
            "those of --start).",
        ),
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--start", help="Model folder or tokenizer run whose weights training starts from.")
    ] = None,
    decoder_only: Annotated[
        bool,
        typer.Option("--decoder-only", help="Leave the encoder of --start as it is: its codes keep their meaning."),
    ] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="Learn from whole pictures, not from cut-outs of 64x64 pixels.")
    ] = False,
) -> None:
    """Fit the FSQ tokenizer (pixels <-> tokens) on endless pictures: drawn scenes, or cut-outs of photographs.

    OUT/reconstructions.png shows held-out pictures, each above what the tokenizer makes of it. Runs under torchrun too.
    """
    from hawk.models.tokenizers.fsq import FSQConfig
    from hawk.training.endless.tokenizer import fit_tokenizer, load_tokenizer, preset, save_reconstructions
    from hawk.training.world import World

    config = options.applied_to(preset())
    given = None if levels is None else levels_named(levels)
    if decoder_only and (start is None or given is not None):
        raise HawkError("--decoder-only keeps the codes of --start: give --start FOLDER, and leave --levels out")
    source = None if start is None else load_tokenizer(start)
    shape = FSQConfig((8, 8, 8, 8)) if source is None else source.config
    shape = shape if given is None else replace(shape, levels=given)
    options.check_side(CELL if source is None else source.downsample)
    world = World.join(config.device)
    world.check_shared(out, config.device)
    pictures = options.pictures(world)
    tokenizer, fitted = fit_tokenizer(
        pictures, out, config, shape, source, decoder_only, options.pause, options.workers, whole
    )
    if world.first:
        save_reconstructions(tokenizer, pictures, out / "reconstructions.png", config.device)
        psnr, used = (fitted.scalars[name] for name in ("psnr", "codes_used"))
        minutes = fitted.seconds / 60
        typer.echo(
            f"{out}: PSNR {psnr:.2f} dB, {used:.0%} of {tokenizer.codebook_size} codes used, {minutes:.1f} minutes"
        )
    world.leave()


@train_app.command("target")
@with_fit_options
def train_target_command(
    out: Out,
    tokenizer: Tokenizer,
    options: PictureOptions,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the model in the model folder (default: hawk-scenes or hawk-photos)."),
    ] = None,
    dim: Annotated[
        int, typer.Option("--dim", min=64, max=8192, help="Width of the transformer, a multiple of 64.")
    ] = 384,
    layers: Annotated[int, typer.Option("--layers", min=1, max=256, help="Layers of the transformer.")] = 8,
    start: Annotated[
        Path | None, typer.Option("--start", help="Model folder whose weights training starts from.")
    ] = None,
    blind: Annotated[
        float, typer.Option("--blind", min=0, max=1, help="Share of images whose context tokens are all hidden.")
    ] = 0.05,
    hazy: Annotated[
        float, typer.Option("--hazy", min=0, max=1, help="Share of images whose context tokens are partly hidden.")
    ] = 0.05,
    own_rows: Annotated[
        bool, typer.Option("--own-rows", help="Codes share no embedding and output rows while training.")
    ] = False,
    muon: Annotated[bool, typer.Option("--muon/--adamw", help="Optimiser of the transformer's matrices.")] = False,
) -> None:
    """Fit the text-to-image transformer on endless pictures, and write a model folder to OUT/model.

    The pictures are drawn scenes, or cut-outs of photographs. Runs under torchrun too. `hawk train model` writes the
    model folder of a run that is not finished.
    """
    from hawk.decoding.arguments import texts_of
    from hawk.models.folder import load_model
    from hawk.training.endless.target import TEXT_FOLDER, EndlessTokens, fit_target, preset, save_run, target_shape
    from hawk.training.endless.teacher_forcing import Dropouts
    from hawk.training.endless.tokenizer import load_tokenizer
    from hawk.training.endless.words import text_encoder_of
    from hawk.training.world import World

    name = name or ("hawk-scenes" if options.photos is None else "hawk-photos")
    texts_of(name)  # refuses a name that no file takes
    config = replace(options.applied_to(preset()), muon=muon)
    if dim % 64:
        raise HawkError(f"--dim must be a multiple of 64, the width of an attention head, not {dim}")
    codes = load_tokenizer(tokenizer)
    options.check_side(codes.downsample)
    begun = None if start is None else load_model(start, with_heads=False).target.state_dict()
    world = World.join(config.device)
    world.own(config.batch_size)  # raises HawkError early for a batch that does not split among the processes
    world.check_shared(out, config.device)
    pictures = options.pictures(world)
    text = text_encoder_of(out / TEXT_FOLDER, pictures, world)
    shape = target_shape(codes, text, dim, layers, options.side)
    source = EndlessTokens(pictures, codes.to(config.device), text, config.device)
    dropouts = Dropouts(blind=blind, hazy=hazy)
    _, fitted = fit_target(source, shape, config, out, dropouts, begun, not own_rows, options.pause, options.workers)
    if world.first:
        nats = fitted.scalars[f"nll {pictures.checks[0]}"]
        typer.echo(f"{save_run(out, codes, name)}: held-out loss {nats:.3f} nats, {fitted.seconds / 60:.1f} minutes")
    world.leave()


@train_app.command("model")
def train_model_command(
    run: Annotated[Path, typer.Option("--run", help="Run folder of `hawk train target`.")],
    tokenizer: Tokenizer,
    name: Annotated[str, typer.Option("--name", help="Name of the model in the model folder.")] = "hawk-scenes",
) -> None:
    """Write a model folder to RUN/model from the averaged weights that a target's run has saved so far."""
    from hawk.decoding.arguments import texts_of
    from hawk.training.endless.target import save_run
    from hawk.training.endless.tokenizer import load_tokenizer

    texts_of(name)  # refuses a name that no file takes
    typer.echo(save_run(run, load_tokenizer(tokenizer), name))


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
        typer.Option(
            "--prompts",
            help="File with one prompt a line (default, for the bundled model and others of scenes: their captions).",
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
            help="Grids to draw (default: the recipe's number, else one per prompt; without --prompts 512).",
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
    shard_target: Annotated[
        bool,
        typer.Option(
            "--shard-target",
            help="Spread the target's layers over the processes of torchrun (FSDP), where one GPU cannot hold them.",
        ),
    ] = False,
) -> None:
    """Fit a drafter and the pool on grids that the target draws itself, and write the drafter folder OUT/drafter.

    Runs under torchrun as well.
    """
    from hawk.models.arguments import OPTIONS
    from hawk.models.loading import device_named, dtype_named, is_large, model_folder
    from hawk.pipeline import grid_of, sampling_params
    from hawk.training.drafters.recipe import load_recipe
    from hawk.training.drafters.run import FrozenModel, Plan, train_drafter
    from hawk.training.scenes.prompts import SceneCaptions, knows_scenes
    from hawk.training.texts import PromptFile, Texts
    from hawk.training.world import World

    check_finite("--cache-gb", cache_gb)
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
    world.check_shared(out, options.on)
    texts: Texts | None = None if prompts is None else PromptFile.read(prompts)
    here = target == "bundled" or Path(target).is_dir()  # a hub id is not fetched to look into it
    if texts is None and not (here and knows_scenes(model_folder(target))):
        raise HawkError(
            f"give --prompts FILE (one prompt a line): only captions of drawn scenes are known, not {target}'s"
        )
    device, folder = device_named(options.on), model_folder(target)
    texts = texts or SceneCaptions()
    few = max(MIN_IMAGES, len(texts.lines)) if isinstance(texts, PromptFile) else CAPTIONS
    count = images or chosen.images or few
    named = dtype_named(target_dtype, device, large=is_large(folder))
    if shard_target:
        frozen = FrozenModel.load_spread(folder, device, named, engine, world)
    else:
        frozen = FrozenModel.load(folder, device, named, engine)
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
    summary = train_drafter(frozen, texts, plan, out, world)
    world.leave()
    if summary is not None:
        typer.echo(summary)


def listed(names: str) -> list[str]:
    """The names in a text that separates them by commas."""
    return [name.strip() for name in names.split(",")]


def levels_named(text: str) -> tuple[int, ...]:
    """The levels of a tokenizer's channels; raises `HawkError` for anything but a few numbers from 2 on."""
    words = listed(text)
    levels = tuple(int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 6)
    if len(levels) < len(words) or min(levels) < 2 or math.prod(levels) > MOST_CODES:
        raise HawkError(
            f"--levels must be whole numbers from 2 on with commas, as 8,8,8,8, whose product is at most {MOST_CODES}, "
            f"not {text!r}"
        )
    return levels
