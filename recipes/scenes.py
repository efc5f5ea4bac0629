"""Train a tokenizer on endless drawn scenes, and look at what it keeps of them.

    python recipes/scenes.py tokenizer RUN [--levels 8 8 8 4] [--start MODEL_FOLDER] [--steps N] [--pause FILE]
    python recipes/scenes.py kinds OUT.png
    python recipes/scenes.py reconstruct RUN OUT.png

Training goes on where it was killed, and waits while the file of `--pause` exists.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from hawk.models.folder import load_model
from hawk.models.tokenizers.fsq import FSQConfig, FSQTokenizer
from hawk.pictures.contact_sheet import contact_sheet
from hawk.training.loop import FitConfig
from hawk.training.scenes.tokenizer import fit_scene_tokenizer, measure_scene_tokenizer, scene_images
from hawk.training.sprites.tokenizer import load_tokenizer


def tokenizer_run(args: argparse.Namespace) -> None:
    config = FitConfig(
        steps=args.steps, batch_size=args.batch_size, lr=args.lr, weight_decay=0.01, warmup=10, ema=0.98,
        dtype=args.dtype, device=args.device, save_every=20, evaluate_every=max(1, args.steps // 4),
    )  # fmt: skip
    start = None if args.start is None else load_model(Path(args.start), with_heads=False).tokenizer
    assert start is None or isinstance(start, FSQTokenizer)
    shape = FSQConfig(levels=tuple(args.levels))
    _, fitted = fit_scene_tokenizer(Path(args.run), config, shape, start, args.pause)
    print(args.run, fitted.scalars, f"{fitted.seconds:.0f} s")


def reconstruct(args: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(Path(args.run))
    print(measure_scene_tokenizer(tokenizer))
    images = scene_images("held-out", range(20))
    with torch.no_grad():
        restored = tokenizer.decode(tokenizer.encode(images))
    rows = [pixels(part[first : first + 10]) for first in (0, 10) for part in (images, restored)]
    contact_sheet([image for row in rows for image in row], [""] * 40, columns=10).save(args.out)


def pixels(images: torch.Tensor) -> list[np.ndarray]:
    return [((i.permute(1, 2, 0).numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8) for i in images]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    tokenizer = commands.add_parser("tokenizer")
    tokenizer.set_defaults(call=tokenizer_run)
    tokenizer.add_argument("run")
    tokenizer.add_argument("--levels", type=int, nargs="+", default=[8, 8, 8, 4])
    tokenizer.add_argument("--start")
    tokenizer.add_argument("--steps", type=int, default=2000)
    tokenizer.add_argument("--batch-size", type=int, default=16)
    tokenizer.add_argument("--lr", type=float, default=4e-4)
    tokenizer.add_argument("--device", default="cpu")
    tokenizer.add_argument("--dtype", default="float32")
    tokenizer.add_argument("--pause", type=Path)
    look = commands.add_parser("reconstruct")
    look.set_defaults(call=reconstruct)
    look.add_argument("run")
    look.add_argument("out")
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
