"""The plainest scenes: one bare figure on a plain background, and prompts that ask for all of it."""

from __future__ import annotations

from dataclasses import replace

from hawk.training.scenes.backgrounds import Background
from hawk.training.scenes.captions import PLACES
from hawk.training.scenes.colours import COLOURS
from hawk.training.scenes.scene import Figure, Pairs, Scene, held_out_number, sample_scene


def plain_question(index: int, seed: int = 0, pairs: Pairs = "taught") -> Scene:
    """A held-out scene reduced to one bare figure on a plain background."""
    scene = sample_scene(seed, held_out_number(index), pairs)
    colours = [name for name in COLOURS if name != scene.figures[0].colour]
    colour = scene.background.colour
    colour = colours[index % len(colours)] if colour in (None, scene.figures[0].colour) else colour
    assert colour is not None
    background = Background("plain", colour, COLOURS[colour], COLOURS[colour], "vertical", 0.2, (0.0, 0.0))
    return Scene(background, scene.layout, (_bare(scene.figures[0]),))


def plain_caption(scene: Scene) -> str:
    """What is asked for, in full."""
    figure = scene.figures[0]
    size = {"small": "small ", "medium": "", "large": "large "}[figure.size]
    place = PLACES[figure.across, figure.along][0]
    return f"a {size}{figure.colour} {figure.kind} {place} on a {scene.background.colour} background"


def _bare(figure: Figure) -> Figure:
    return replace(figure, face=None, hat=None, turn=0.0, rgb=COLOURS[figure.colour])
