"""`hawk convert`: the command line of `hawk.models.convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hawk.cli.options import JsonOption, byte_bar

convert_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Convert published checkpoints into folders that Hawk loads."
)


@convert_app.command("llamagen")
def convert_llamagen_command(
    folder: Annotated[Path, typer.Argument(metavar="IN", help="Folder with the published files.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Model folder to write; it must not exist yet.")],
    stage: Annotated[
        int | None, typer.Option("--stage", help="1 (256 pixels) or 2 (512 pixels), if IN holds both.")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--target", help="The transformer, a .pt or .safetensors file (default: the one in IN)."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="The image tokenizer (default: vq_ds16_t2i.pt in IN).")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", help="T5 folder or hub id (default: t5-ckpt/flan-t5-xl in IN, or google/flan-t5-xl)."),
    ] = None,
    height: Annotated[
        int | None, typer.Option("--height", min=1, help="In pixels (default: what the file's name says).")
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", min=1, help="In pixels (default: what the file's name says).")
    ] = None,
    heads: Annotated[
        int | None, typer.Option("--heads", min=1, help="Number of attention heads, for an unpublished size.")
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="dtype to store: bfloat16, or stored, which keeps that of the file.")
    ] = "bfloat16",
    name: Annotated[str | None, typer.Option("--name", help="Name of the model (default: made from its size).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert LlamaGen's text-to-image checkpoint (t2i_XL_stage1_256.pt or _stage2_512.pt, with vq_ds16_t2i.pt)."""
    from hawk.models.convert import convert_llamagen, find_published

    sources = find_published(folder, stage, target, tokenizer, text, height, width)
    with byte_bar() as bar:
        task = bar.add_task("writing weights", total=None)
        config = convert_llamagen(
            sources, out, dtype, heads, name, lambda done, total: bar.update(task, completed=done, total=total)
        )
    grid = f"{config.target.height}x{config.target.width} tokens"
    typer.echo(f"{out}: {config.name}, {grid}, text from {sources.text}; draw with hawk generate --model {out}")
    if as_json:
        facts = {"out": str(out), "name": config.name, "target": str(sources.target), "text": sources.text}
        typer.echo(
            json.dumps(
                {**facts, "tokenizer": str(sources.tokenizer), "grid": [config.target.height, config.target.width]}
            )
        )


@convert_app.command("janus")
def convert_janus_command(
    folder: Annotated[
        Path, typer.Argument(metavar="IN", help="Folder with DeepSeek's files (model_type multi_modality).")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist yet.")],
    as_json: JsonOption = False,
) -> None:
    """Convert DeepSeek's Janus or Janus-Pro to transformers' format (from safetensors or pytorch_model*.bin)."""
    from hawk.models.convert import convert_janus

    with byte_bar() as bar:
        task = bar.add_task("writing weights", total=None)
        grid = convert_janus(folder, out, lambda done, total: bar.update(task, completed=done, total=total))
    typer.echo(f"{out}: {grid.height}x{grid.width} tokens; draw with hawk generate --model {out}")
    if as_json:
        typer.echo(json.dumps({"out": str(out), "source": str(folder), "grid": [grid.height, grid.width]}))
