"""Every kind of figure that a scene may hold: its name, how it is drawn, its usual colours, its face and its hat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hawk.training.scenes import creatures, shapes, things
from hawk.training.scenes.colours import COLOURS, Shades
from hawk.training.scenes.pen import Pen, Real


@dataclass(frozen=True)
class Spot:
    """Where a face or a hat belongs on a figure, and its size, in units of the figure's radius."""

    x: Real
    y: Real
    size: Real


@dataclass(frozen=True)
class Kind:
    """One kind of figure. `names` are what people call it, the commonest first; `usual` are its everyday colours."""

    names: tuple[str, ...]
    draw: Callable[[Pen, Shades], None]
    usual: tuple[str, ...] = ()
    face: Spot | None = None
    hat: Spot | None = None

    @property
    def name(self) -> str:
        """The name that stands for it in a scene."""
        return self.names[0]


_FACE = Spot(0, 0, 0.56)

_ALL = (
    Kind(("circle", "disc"), shapes.circle, (), _FACE, Spot(0, -0.8, 0.46)),
    Kind(("square",), shapes.square, (), _FACE, Spot(0, -0.78, 0.5)),
    Kind(("triangle",), shapes.triangle, (), Spot(0, 0.22, 0.48), Spot(0, -0.72, 0.34)),
    Kind(("hexagon",), shapes.hexagon, (), _FACE, Spot(0, -0.78, 0.46)),
    Kind(("diamond",), shapes.diamond, (), Spot(0, 0, 0.46), Spot(0, -0.72, 0.34)),
    Kind(("star",), shapes.star, ("yellow",), Spot(0, 0.1, 0.42), Spot(0, -0.74, 0.34)),
    Kind(("heart",), shapes.heart, ("red", "pink"), Spot(0, -0.06, 0.54), Spot(0, -0.5, 0.4)),
    Kind(("drop", "raindrop"), shapes.drop, ("blue",), Spot(0, 0.24, 0.48), Spot(0, -0.66, 0.34)),
    Kind(("cloud",), shapes.cloud, ("white", "gray"), Spot(0, 0.12, 0.44), Spot(-0.1, -0.58, 0.38)),
    Kind(("moon", "crescent"), shapes.moon, ("yellow",)),
    Kind(("flower", "blossom"), shapes.flower, ("pink", "purple"), Spot(0, 0, 0.42)),
    Kind(("cat", "kitten"), creatures.cat, ("orange", "gray", "black"), None, Spot(0, -0.52, 0.34)),
    Kind(("bear", "teddy"), creatures.bear, ("brown",), None, Spot(0, -0.7, 0.36)),
    Kind(("rabbit", "bunny"), creatures.rabbit, ("white", "gray")),
    Kind(("frog",), creatures.frog, ("green",), None, Spot(0, -0.5, 0.32)),
    Kind(("owl",), creatures.owl, ("brown",), None, Spot(0, -0.78, 0.34)),
    Kind(("penguin",), creatures.penguin, ("black", "blue"), None, Spot(0, -0.84, 0.34)),
    Kind(("bird",), creatures.bird, ("blue", "red")),
    Kind(("fish",), creatures.fish, ("orange", "blue")),
    Kind(("butterfly",), creatures.butterfly, ("purple", "orange")),
    Kind(("ladybug", "beetle"), creatures.ladybug, ("red",)),
    Kind(("snail",), creatures.snail, ("brown",)),
    Kind(("octopus",), creatures.octopus, ("purple", "pink"), None, Spot(0, -0.84, 0.36)),
    Kind(("snowman",), creatures.snowman, ("white",)),
    Kind(("ghost",), creatures.ghost, ("white",), None, Spot(0, -0.84, 0.36)),
    Kind(("robot",), creatures.robot, ("gray", "teal")),
    Kind(("apple",), things.apple, ("red", "green"), Spot(0, 0.14, 0.5)),
    Kind(("pear",), things.pear, ("green", "yellow"), Spot(0, 0.36, 0.42)),
    Kind(("cherries",), things.cherries, ("red",)),
    Kind(("cupcake", "muffin"), things.cupcake, ("pink", "white")),
    Kind(("donut", "doughnut"), things.donut, ("pink", "brown")),
    Kind(("ice cream",), things.ice_cream, ("pink", "white")),
    Kind(("lollipop", "candy"), things.lollipop, ("red", "pink")),
    Kind(("cup", "mug"), things.cup, ("white", "blue")),
    Kind(("tree",), things.tree, ("green",)),
    Kind(("pine", "fir"), things.pine, ("green",)),
    Kind(("cactus",), things.cactus, ("green",)),
    Kind(("mushroom", "toadstool"), things.mushroom, ("red", "brown")),
    Kind(("leaf",), things.leaf, ("green", "orange")),
    Kind(("tulip",), things.tulip, ("red", "yellow")),
    Kind(("sun",), things.sun, ("yellow", "orange")),
    Kind(("planet",), things.planet, ("purple", "teal")),
    Kind(("house", "home"), things.house, ("white", "yellow")),
    Kind(("car",), things.car, ("red", "blue")),
    Kind(("bus",), things.bus, ("yellow", "red")),
    Kind(("boat", "sailboat"), things.boat, ("brown", "red")),
    Kind(("rocket", "spaceship"), things.rocket, ("white", "red")),
    Kind(("balloon",), things.balloon, ("red", "blue"), Spot(0, -0.3, 0.4)),
    Kind(("umbrella", "parasol"), things.umbrella, ("purple", "red")),
    Kind(("ball", "beachball"), things.ball, ("red", "blue")),
    Kind(("gift", "present"), things.gift, ("red", "green")),
    Kind(("bell",), things.bell, ("yellow",)),
    Kind(("book",), things.book, ("blue", "brown")),
    Kind(("lamp",), things.lamp, ("yellow", "teal")),
    Kind(("candle",), things.candle, ("white", "red")),
    Kind(("key",), things.key, ("yellow", "gray")),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}

assert all(colour in COLOURS for kind in _ALL for colour in kind.usual)
