"""`hawk train target`: fit a text-to-image transformer on endless pictures, tokenised while it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hawk.decoding.sampling import SamplingParams
from hawk.errors import HawkError
from hawk.files import read_json
from hawk.models.folder import save_model
from hawk.models.llamagen.target import LlamaGen, LlamaGenConfig
from hawk.models.llamagen.words import StaticTextEncoder
from hawk.models.tokenizers.fsq import FSQTokenizer
from hawk.training.ahead import Ahead
from hawk.training.captioned import CaptionedTokens, Readable, readable, tokenised
from hawk.training.endless.codes import fold_rows, share_rows
from hawk.training.endless.pause import wait_while_exists
from hawk.training.endless.pictures import Pictures
from hawk.training.endless.teacher_forcing import Dropouts, TeacherForced, held_out_loss, training_loss
from hawk.training.loop import BatchLoss, FitConfig, Fitted, fit, keep_settings, load_averaged
from hawk.training.world import World

SHAPE_FILE = "target.json"
"""The target's shape, in its run folder."""
TEXT_FOLDER = "text"
"""The folder of the text encoder, in a target's run folder."""
MODEL_FOLDER = "model"
"""The model folder that a run writes, in its run folder."""
DEFAULTS = SamplingParams(temperature=1.0, cfg_scale=2.0)
"""What a new model samples with where nobody asks for anything else."""
CHECK, CHECKS = 16, 3
"""Pictures to a batch that is measured, and how many batches of each split are."""


@dataclass(frozen=True)
class EndlessTokens:
    """Makes training batches of pictures: their tokens, and features of their captions."""

    pictures: Pictures
    tokenizer: FSQTokenizer
    text: StaticTextEncoder
    device: str = "cpu"

    def batch(self, split: str, places: range, seed: int = 0) -> CaptionedTokens:
        """The pictures at some places of a split's row."""
        return self.tokens_of(self.readable(split, places, seed))

    def readable(self, split: str, places: range, seed: int = 0) -> Readable:
        """The pictures at some places of a split's row as they travel to the device."""
        return readable(self.pictures.batch(split, places, seed), self.text)

    def tokens_of(self, read: Readable) -> CaptionedTokens:
        """A training batch of pictures and their captions."""
        return tokenised(read, self.tokenizer, self.device)


def preset() -> FitConfig:
    """The recipe of the target for two CPU cores."""
    return FitConfig(steps=40_000, batch_size=16, lr=2e-3, warmup=100, ema=0.998, save_every=50, evaluate_every=500)


def fit_target(
    source: EndlessTokens,
    shape: LlamaGenConfig,
    config: FitConfig,
    out: Path,
    dropouts: Dropouts | None = None,
    start: dict[str, Tensor] | None = None,
    shared_rows: bool = True,
    pause: Path | None = None,
    workers: int = 0,
) -> tuple[LlamaGen, Fitted]:
    """Fit a target on endless pictures; state and tensorboard go to `out`.

    Args:
        dropouts: shares of captions dropped and of context hidden.
        start: weights to begin from in place of fresh ones.
        shared_rows: let codes share embedding and output rows by their digits while training (`codes.py`).
        pause: training waits while this file exists.
        workers: processes that draw pictures in advance.

    Raises:
        HawkError: `start` has another shape, or `out` holds a run of another shape or of other settings.
    """
    rates = dropouts or Dropouts()
    torch.manual_seed(config.seed)
    target = LlamaGen(shape, dropout=rates.hidden)
    target.initialize()
    if start is not None:
        try:
            target.load_state_dict(start)
        except RuntimeError as error:
            raise HawkError(
                "the model to start from has another shape: give one with the layers and widths of this target"
            ) from error
    if shared_rows:
        share_rows(target, source.tokenizer, 0.02 if start is None else 0.0)
    keep_settings(out, SHAPE_FILE, shape.to_dict(), World.join(config.device))
    module = TeacherForced(target, target.grid)
    checks = {
        split: [source.batch(split, range(i * CHECK, (i + 1) * CHECK)) for i in range(CHECKS)]
        for split in source.pictures.checks
    }
    evaluate = partial(held_out_nats, checks=checks, config=config, pause=pause)
    fitted = fit(module, _batch_loss(source, config, rates, pause, workers), config, out, evaluate)
    fold_rows(target)
    return target, fitted


def save_run(run: Path, tokenizer: FSQTokenizer, name: str) -> Path:
    """Write the model folder of a run under way (or finished), with the averaged weights so far; return the folder."""
    folder = run / MODEL_FOLDER
    save_model(folder, name, load_averaged_target(run, tokenizer), tokenizer, run / TEXT_FOLDER, DEFAULTS)
    return folder


def load_averaged_target(run: Path, tokenizer: FSQTokenizer) -> LlamaGen:
    """The target with the averaged weights that a run under way (or a finished one) has saved.

    Raises `HawkError` if the folder holds no such run, or one whose target draws other codes than the tokenizer's.
    """
    weights = {name.removeprefix("target."): value for name, value in load_averaged(run / "state.pt").items()}
    shape = LlamaGenConfig(**read_json(run / SHAPE_FILE))
    if shape.vocab_size != tokenizer.codebook_size:
        raise HawkError(
            f"the target in {run} draws {shape.vocab_size} codes, the tokenizer has {tokenizer.codebook_size}: "
            "give the tokenizer that the target was trained with"
        )
    target = LlamaGen(shape)
    if any("parametrizations" in name for name in weights):
        share_rows(target, tokenizer)
    target.load_state_dict(weights)
    fold_rows(target)
    return target.eval()


def _batch_loss(
    source: EndlessTokens, config: FitConfig, rates: Dropouts, pause: Path | None, workers: int
) -> BatchLoss:
    own = World.join(config.device).own(config.batch_size)
    batches = Ahead(partial(_training_pictures, source.readable, config, own), config.steps, workers)

    def batch_loss(runner: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        wait_while_exists(pause)
        batch = source.tokens_of(batches.at(step))
        return {"loss": training_loss(runner, batch, rates, config.batch_size, own, generator)}

    return batch_loss


def _training_pictures(read: Callable[..., Readable], config: FitConfig, own: slice, step: int) -> Readable:
    """This process's part of the pictures of a step."""
    first = step * config.batch_size
    return read("train", range(first + own.start, first + own.stop), config.seed)


def held_out_nats(
    runner: nn.Module,
    step: int,
    checks: dict[str, list[CaptionedTokens]],
    config: FitConfig,
    pause: Path | None = None,
) -> dict[str, float]:
    """Nats a token of each split with the captions, and of the first split with the null caption."""

    def mean(split: str, null: bool) -> float:
        with torch.autocast(config.device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            losses = []
            for batch in checks[split]:
                wait_while_exists(pause)
                losses.append(held_out_loss(runner, batch, null))
        return sum(losses) / len(losses)

    first = next(iter(checks))
    measured = {f"nll {split}": mean(split, null=False) for split in checks}
    return measured | {"nll without captions": mean(first, null=True)}


def target_shape(
    tokenizer: FSQTokenizer, text: StaticTextEncoder, dim: int, layers: int, side: int = 128
) -> LlamaGenConfig:
    """A target for small pictures: heads of 64 channels, captions that keep their keys."""
    cells = side // tokenizer.downsample
    base = LlamaGenConfig(dim=dim, n_layer=layers, n_head=dim // 64, vocab_size=tokenizer.codebook_size)
    prefix = replace(base, caption_keys=True, caption_dim=text.width, caption_tokens=text.tokens)
    return replace(prefix, height=cells, width=cells)
