"""Train a tokenizer and a target on endless pictures, drawn scenes or cut-outs of photographs, and look at them.

    python recipes/endless.py examples OUT.png                   # 40 training pictures with their captions
    python recipes/endless.py captions OUT.txt                  # prompts to train drafters with
    python recipes/endless.py photos FOLDER                      # fetch the photographs from Debian packages
    python recipes/endless.py tokenizer RUN [--levels 8 8 8 4] [--start MODEL_OR_RUN] [--decoder-only] [--pause FILE]
    python recipes/endless.py reconstruct RUN OUT.png
    python recipes/endless.py target RUN --tokenizer RUN [--dim 256] [--layers 6] [--steps N] [--pause FILE]
    python recipes/endless.py model RUN --tokenizer RUN          # writes RUN/model from the averaged weights so far
    python recipes/endless.py sheet MODEL OUT.png [--scale 2]    # prompts never trained on, first seeds, none left out
    python recipes/endless.py score MODEL [--scale 2] [--images 48]

`--blind` and `--hazy` are shares of images whose context is hidden, so that captions are learnt.
With `--photos FOLDER` the pictures are cut-outs of those photographs, else scenes. Training goes on where it was
killed, and waits while the file of `--pause` exists.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hawk.decoding.sampling import SamplingParams
from hawk.errors import HawkError
from hawk.files import read_json, write_bytes, write_json
from hawk.models.folder import load_model, save_model
from hawk.models.llamagen.target import LlamaGenConfig
from hawk.models.llamagen.words import StaticTextEncoder
from hawk.models.tokenizers.fsq import FSQConfig, FSQTokenizer
from hawk.pictures.contact_sheet import contact_sheet
from hawk.pipeline import HawkPipeline, PipelineOutput
from hawk.training.endless.pictures import Pictures
from hawk.training.endless.target import EndlessTokens, endless_shape, fit_endless_target, load_averaged_target
from hawk.training.endless.tokenizer import fit_endless_tokenizer, measure_endless_tokenizer
from hawk.training.endless.words import write_text_encoder
from hawk.training.loop import FitConfig
from hawk.training.photos.data import PhotoPictures
from hawk.training.photos.sources import fetch_photos, find_photos
from hawk.training.scenes.data import ScenePictures
from hawk.training.scenes.scores import judge, mean_of, plain_caption, plain_question
from hawk.training.sprites.target import Dropouts
from hawk.training.sprites.tokenizer import load_tokenizer, to_tensor


def pictures_of(args: argparse.Namespace) -> Pictures:
    if args.photos is None:
        return ScenePictures(side=args.side)
    return replace(PhotoPictures.load(find_photos(args.photos)), side=args.side)


def captions(args: argparse.Namespace) -> None:
    texts = dict.fromkeys(pictures_of(args).batch("train", range(args.count)).captions)
    write_bytes(Path(args.out), "".join(f"{text}\n" for text in texts).encode())


def photos(args: argparse.Namespace) -> None:
    print(len(fetch_photos(args.folder)), "photographs in", args.folder)


def examples(args: argparse.Namespace) -> None:
    batch = pictures_of(args).batch("train", range(40))
    contact_sheet(list(batch.rgb), batch.captions, columns=8).save(args.out)


def tokenizer_run(args: argparse.Namespace) -> None:
    config = FitConfig(
        steps=args.steps, batch_size=args.batch_size, minutes=args.minutes, lr=args.lr, weight_decay=0.01, warmup=10,
        ema=args.ema, dtype=args.dtype, device=args.device, save_every=args.save_every,
        evaluate_every=max(1, args.steps // 4),
    )  # fmt: skip
    start = None if args.start is None else tokenizer_of(Path(args.start))
    shape = FSQConfig(levels=tuple(args.levels))
    _, fitted = fit_endless_tokenizer(
        pictures_of(args), Path(args.run), config, shape, start, args.decoder_only, args.pause, args.workers, args.whole
    )
    print(args.run, fitted.scalars, f"{fitted.seconds:.0f} s")


def tokenizer_of(folder: Path) -> FSQTokenizer:
    """The tokenizer of a model folder or of a tokenizer's run."""
    if not (folder / "config.json").is_file():
        return load_tokenizer(folder)
    tokenizer = load_model(folder, with_heads=False).tokenizer
    if not isinstance(tokenizer, FSQTokenizer):
        raise HawkError(f"the image tokenizer of {folder} is no FSQ tokenizer: give another folder")
    return tokenizer


def reconstruct(args: argparse.Namespace) -> None:
    tokenizer = tokenizer_of(Path(args.run))
    pictures = pictures_of(args)
    print(measure_endless_tokenizer(tokenizer, pictures))
    images = to_tensor(torch.from_numpy(pictures.batch("held-out", range(20)).rgb))
    with torch.no_grad():
        restored = tokenizer.decode(tokenizer.encode(images))
    rows = [pixels(part[first : first + 10]) for first in (0, 10) for part in (images, restored)]
    contact_sheet([image for row in rows for image in row], [""] * 40, columns=10).save(args.out)


def target_run(args: argparse.Namespace) -> None:
    run = Path(args.run)
    written = (run / "text" / "text.json").is_file()  # a run that goes on keeps the words that it began with
    pictures = pictures_of(args)
    if not written:
        write_text_encoder(run / "text", pictures.vocabulary, pictures.examples)
    text = StaticTextEncoder.load(run / "text")
    tokenizer = tokenizer_of(Path(args.tokenizer)).to(args.device)
    config = FitConfig(
        steps=args.steps, batch_size=args.batch_size, minutes=args.minutes, lr=args.lr,
        weight_decay=args.weight_decay, warmup=args.warmup, ema=args.ema, muon=args.muon, dtype=args.dtype,
        device=args.device, compile=args.compile, save_every=args.save_every, evaluate_every=args.evaluate_every,
        seed=args.seed,
    )  # fmt: skip
    shape = endless_shape(tokenizer, text, args.dim, args.layers, args.side)
    write_json(run / "target.json", shape.to_dict())
    source = EndlessTokens(pictures, tokenizer, text, args.device)
    dropouts, shared = Dropouts(caption=0.1, blind=args.blind, hazy=args.hazy), not args.own_rows
    start = None if args.start is None else load_model(args.start, with_heads=False).target.state_dict()
    _, fitted = fit_endless_target(source, shape, config, run, dropouts, start, shared, args.pause, args.workers)
    print(run, fitted.scalars, f"{fitted.seconds:.0f} s")


def write_model(args: argparse.Namespace) -> None:
    run = Path(args.run)
    tokenizer = tokenizer_of(Path(args.tokenizer))
    target = load_averaged_target(run, LlamaGenConfig(**read_json(run / "target.json")), tokenizer)
    defaults = SamplingParams(temperature=1.0, cfg_scale=2.0)
    save_model(run / "model", args.name, target, tokenizer, run / "text", defaults)


PROMPTS = [
    "a red apple on a blue background",
    "a happy green star with a crown on a pink background",
    "big orange cat at night",
    "a yellow car on the grass",
    "a purple ghost on a striped orange background",
    "a small white rabbit on the left on a teal background",
    "blue fish and a red ball on a yellow background",
    "a teal robot in the middle on a gray background",
    "sad blue cloud on white",
    "a frog on a meadow",
    "a yellow moon in the night sky",
    "a large pink donut on green dots",
    "brown bear with a party hat on a purple background",
    "a house next to a tree on a meadow",
    "a red rocket in space",
    "a black umbrella in the top left corner on a yellow background",
]


def sheet(args: argparse.Namespace) -> None:
    pipe = HawkPipeline.from_pretrained(args.model)
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    images = drawn(pipe, prompts, args)
    contact_sheet(images, [p if i % 4 == 0 else "" for i, p in enumerate(prompts)], columns=8).save(args.out)


def score(args: argparse.Namespace) -> None:
    pipe = HawkPipeline.from_pretrained(args.model)
    questions = [plain_question(i, pairs="held-out" if i % 2 else "taught") for i in range(args.images)]
    images = drawn(pipe, [plain_caption(q) for q in questions], args)
    scores = [judge(image, question) for image, question in zip(images, questions, strict=True)]
    print("taught pairs  ", mean_of(scores[::2]))
    print("held-out pairs", mean_of(scores[1::2]))
    print("all           ", mean_of(scores))


def drawn(pipe: HawkPipeline, prompts: list[str], args: argparse.Namespace) -> list[np.ndarray]:
    seeds = [args.seed + i for i in range(len(prompts))]
    out = pipe(prompts, guidance_scale=args.scale, temperature=args.temperature, seed=seeds, method="ar", batch_size=16)
    assert isinstance(out, PipelineOutput)
    return [np.asarray(image) for image in out.images]


def pixels(images: torch.Tensor) -> list[np.ndarray]:
    return [((i.permute(1, 2, 0).numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8) for i in images]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    shown = commands.add_parser("examples")
    shown.set_defaults(call=examples)
    shown.add_argument("out")
    fetched = commands.add_parser("photos")
    fetched.set_defaults(call=photos)
    fetched.add_argument("folder", type=Path)
    tokenizer = commands.add_parser("tokenizer")
    tokenizer.set_defaults(call=tokenizer_run)
    tokenizer.add_argument("run")
    tokenizer.add_argument("--levels", type=int, nargs="+", default=[8, 8, 8, 4])
    tokenizer.add_argument("--start", help="model folder or tokenizer run to go on from")
    tokenizer.add_argument("--decoder-only", action="store_true", help="codes stay as they are")
    tokenizer.add_argument("--steps", type=int, default=2000)
    tokenizer.add_argument("--batch-size", type=int, default=16)
    tokenizer.add_argument("--lr", type=float, default=4e-4)
    tokenizer.add_argument("--device", default="cpu")
    tokenizer.add_argument("--dtype", default="float32")
    tokenizer.add_argument("--save-every", type=int, default=20)
    tokenizer.add_argument("--ema", type=float, default=0.98)
    tokenizer.add_argument("--whole", action="store_true", help="learn from whole pictures, not from cut-outs")
    tokenizer.add_argument("--pause", type=Path)
    look = commands.add_parser("reconstruct")
    look.set_defaults(call=reconstruct)
    look.add_argument("run")
    look.add_argument("out")
    target = commands.add_parser("target")
    target.set_defaults(call=target_run)
    target.add_argument("run")
    target.add_argument("--tokenizer", required=True)
    for name, value in (("dim", 256), ("layers", 6), ("steps", 40_000), ("batch-size", 16), ("warmup", 100)):
        target.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("save-every", 50), ("evaluate-every", 500)):
        target.add_argument(f"--{name}", type=int, default=value)
    for name, rate in (("lr", 2e-3), ("weight-decay", 0.05), ("ema", 0.998), ("blind", 0.1), ("hazy", 0.1)):
        target.add_argument(f"--{name}", type=float, default=rate)
    target.add_argument("--start", type=Path, help="model folder to go on from")
    target.add_argument("--seed", type=int, default=0, help="another seed draws other pictures")
    target.add_argument("--device", default="cpu")
    target.add_argument("--dtype", default="float32")
    target.add_argument("--compile", action="store_true")
    target.add_argument("--own-rows", action="store_true", help="codes share no embedding and output rows")
    target.add_argument("--muon", action="store_true")
    target.add_argument("--pause", type=Path)
    model = commands.add_parser("model")
    model.set_defaults(call=write_model)
    model.add_argument("run")
    model.add_argument("--tokenizer", required=True)
    model.add_argument("--name", default="hawk-scenes")
    texts = commands.add_parser("captions")
    texts.set_defaults(call=captions)
    texts.add_argument("out")
    texts.add_argument("--count", type=int, default=4000)
    for command in (shown, tokenizer, look, target, texts):
        command.add_argument("--photos", type=Path, help="folder of photographs to cut pictures from")
        command.add_argument("--side", type=int, default=128, help="side of the pictures in pixels")
    for command in (tokenizer, target):
        command.add_argument("--workers", type=int, default=0, help="processes that draw pictures in advance")
        command.add_argument("--minutes", type=float, default=math.inf, help="end after so much time, with its decay")
    for name, call in (("sheet", sheet), ("score", score)):
        command = commands.add_parser(name)
        command.set_defaults(call=call)
        command.add_argument("model")
        if name == "sheet":
            command.add_argument("out")
        command.add_argument("--scale", type=float, default=2.0)
        command.add_argument("--temperature", type=float, default=1.0)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--images", type=int, default=48)
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
