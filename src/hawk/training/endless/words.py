"""A text encoder for captions of a small closed vocabulary: the bundled `StaticTextEncoder` over it.

Each meaning is a one-hot vector, and synonyms share one. The caption MLP's first layer thus is a trainable table with a
row per meaning and place in the window, and no word means anything that captions did not teach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hawk.errors import HawkError
from hawk.files import save_tensors, write_bytes, write_json
from hawk.models.llamagen.words import StaticTextEncoder
from hawk.training.endless.pictures import Pictures
from hawk.training.world import World

TOKENS = 24
"""Words that fit into a caption; most captions have ten, and no prompt needs filling up (captions keep their keys)."""


def write_text_encoder(folder: Path, words: Mapping[str, str], examples: Sequence[str]) -> StaticTextEncoder:
    """Write `words.txt`, `words.safetensors` and `text.json` to a folder; returns the encoder that they hold.

    Args:
        words: each word, and the word whose meaning it shares.
        examples: words to suggest to people whose prompts hold unknown ones.
    """
    meanings = {meaning: i for i, meaning in enumerate(sorted(set(words.values())))}
    rows = torch.tensor([meanings[meaning] for meaning in words.values()])
    size = len(meanings) ** 0.5  # unit mean square over the channels, as trained word vectors have
    vectors = torch.nn.functional.one_hot(rows, len(meanings)).to(torch.int8) * 127
    folder.mkdir(parents=True, exist_ok=True)
    scales = torch.full((len(rows),), size / 127, dtype=torch.float16)
    save_tensors(folder / "words.safetensors", {"vectors": vectors, "scales": scales})
    write_bytes(folder / "words.txt", "\n".join(words).encode())
    settings: dict[str, Any] = {
        "tokens": TOKENS,
        "context": 2,
        "position_channels": 16,
        "fill": False,
        "longest": TOKENS,
    }
    settings["examples"] = list(examples)
    write_json(folder / "text.json", settings)
    return StaticTextEncoder.load(folder)


def text_encoder_of(folder: Path, pictures: Pictures, world: World) -> StaticTextEncoder:
    """The text encoder in a run's folder, which is written first where there is none. Every process calls this.

    A run that goes on keeps the words that it began with. Raises `HawkError` if captions have words that these are not.
    """
    if world.first and not (folder / "text.json").is_file():
        write_text_encoder(folder, pictures.vocabulary, pictures.examples)
    world.wait()
    encoder = StaticTextEncoder.load(folder)
    new = [word for word in pictures.vocabulary if word not in encoder.index]
    if new:
        raise HawkError(
            f"{folder} lacks words of these pictures ({new[0]!r}): give their own pictures, or another --out"
        )
    return encoder
