"""Proof for images that join and leave a lane at random steps: each has the tokens that it has when drawn alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from hawk.decoding.generate import generate
from hawk.decoding.pacing import Rung
from hawk.decoding.recording import Recordings
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.stats import Generation
from hawk.decoding.tree import Window
from hawk.decoding.trees import NoDrafter
from hawk.engine import DrawingEngine, Ended
from hawk.models.llamagen.target import CaptionPrompt, LlamaGen
from hawk.proofs.losslessness import Check
from hawk.proofs.tiny import tiny_prompt, tiny_target

SETTINGS = (
    SamplingParams(),
    SamplingParams(cfg_scale=3.0),
    SamplingParams(temperature=0.7, top_k=5, top_p=0.9, cfg_scale=2.0),
    SamplingParams(temperature=0.0, cfg_scale=2.0),
    SamplingParams(temperature=1.4, top_k=3),
    SamplingParams(temperature=0.0),
    SamplingParams(top_p=0.6, cfg_scale=1.5),
    SamplingParams(temperature=0.6, cfg_scale=1.5),
)
"""Sampling parameters that the images of one lane have side by side."""

PROMPTS, SEEDS = 4, 3
"""Numbers of the prompts and seeds from which a schedule chooses."""

LADDER = (Rung(0, 1.0, 1.0), Rung(2, 1.4, 1.8), Rung(5, 1.9, 2.4))
WINDOWS = (Window(5), Window(5, ladder=LADDER), Window(0), Window(30))
"""The windows of schedules, in turns."""

JOINING, LEAVING = 0.4, 0.03
"""Chances per step that an image that waits joins, and that an image leaves before it is finished."""


@dataclass(frozen=True)
class Scheduled:
    """An image of a schedule: its number, one of the prompts, one of the settings, and a seed."""

    number: int
    prompt: int
    setting: int
    seed: int


@dataclass(frozen=True)
class Album:
    """What schedules draw: a target and its prompts."""

    target: LlamaGen
    prompts: CaptionPrompt

    @classmethod
    def tiny(cls, device: str = "cpu") -> Album:
        """A tiny random target with prompts of different lengths."""
        target = tiny_target(0).to(device)
        return cls(target, tiny_prompt(target, PROMPTS))

    def request(self, image: Scheduled) -> Request:
        """The request for an image alone."""
        prompt = self.prompts.rows(slice(image.prompt, image.prompt + 1))
        return Request(prompt, self.target.grid, SETTINGS[image.setting], [image.seed])

    def plain(self, image: Scheduled) -> list[int]:
        """The tokens of plain AR, drawn alone."""
        tokens: list[int] = generate(self.target, self.request(image), NoDrafter()).tokens[0].tolist()
        return tokens


def scheduled(
    album: Album, window: Window, places: int, images: int, seed: int, recordings: Recordings | None = None
) -> Iterator[Ended[Scheduled]]:
    """Draw random images, which join and leave lanes at random steps; yields those that are finished.

    With `recordings` the lanes are those of a GPU, whose steps are replayed.
    """
    chance = random.Random(seed)
    waiting = [
        Scheduled(number, chance.randrange(PROMPTS), chance.randrange(len(SETTINGS)), chance.randrange(SEEDS))
        for number in range(images)
    ]
    engine: DrawingEngine[Scheduled] = DrawingEngine(album.target, places, recordings)
    while waiting or engine.busy:
        while waiting and engine.live < places and (not engine.busy or chance.random() < JOINING):
            image = waiting.pop()
            engine.submit([image], album.request(image), window)
            yield from engine.step()
        there = [image for shared in engine.lanes.values() for image in shared.lane.keys]
        if there and chance.random() < LEAVING:
            engine.cancel(chance.choice(there))
        if engine.busy:
            yield from engine.step()


def check_schedules(
    first: int = 0, schedules: int = 40, recordings: Recordings | None = None, device: str = "cpu"
) -> list[Check]:
    """Images of random schedules have the tokens of plain AR drawn alone, whatever is drawn beside them."""
    album, images, wrong = Album.tiny(device), 0, []
    plain = cache(lambda image: album.plain(image))
    for seed in range(first, first + schedules):
        window, places = WINDOWS[seed % len(WINDOWS)], 1 + seed % 5
        for left in scheduled(album, window, places, 8, seed, recordings):
            images += 1
            alone = plain(Scheduled(0, left.key.prompt, left.key.setting, left.key.seed))
            if not isinstance(left.outcome, Generation) or left.outcome.tokens[0].tolist() != alone:
                wrong.append(left.key)
    return [
        Check(
            "images that join and leave between steps, same tokens as alone",
            "hawk",
            "coupled",
            f"{schedules} random schedules of {len(SETTINGS)} settings, 1 to 5 images at once",
            f"{images - len(wrong)} of {images} images identical",
            not wrong and images > 0,
        )
    ]
