"""On-policy training data of drafters: grids that the target draws itself, and its hidden states on them.

Both are stored in shards under the run folder. One process writes a whole shard atomically, so a killed run resumes
where it stopped, and several processes that see the same folder draw side by side. The metadata of a shard hold the
settings that it was made with. Hidden states are stored up to a disk budget, and the others are recomputed when they
are needed; both are rounded to bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.recording import Recordings
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.errors import HawkError
from hawk.files import save_tensors
from hawk.models.protocol import ImageTarget
from hawk.training.drafters.teacher import Prompts, forced_hidden, states_per_token, teacher_autocast
from hawk.training.spread import Spread
from hawk.training.stopping import given_up, saved_first, stop_asked
from hawk.training.world import World

Origin = dict[str, str]
"""The settings that a shard was made with, by name, as its metadata hold them."""


@dataclass(frozen=True)
class OnPolicy:
    """Grids that the target drew (on the CPU), and the hidden states before their tokens (`teacher.forced_hidden`).

    `hidden(images)` returns the states of the images with these numbers, on the device that trains drafters.
    `settings` holds the sampling parameters of each image, None if all images were drawn with the same ones.
    """

    tokens: Int[Tensor, "images n"]
    hidden: Callable[[Int[Tensor, " b"]], Float[Tensor, "states b n d"]]
    settings: Sequence[SamplingParams] | None = None

    def sampling(self, images: Int[Tensor, " b"]) -> list[SamplingParams] | None:
        """The sampling parameters of each of the images with these numbers; None if all images have the same ones."""
        return None if self.settings is None else [self.settings[int(image)] for image in images]

    @property
    def kept(self) -> int:
        """How many images drafters learn from: all but the last tenth, which is held out."""
        return len(self.tokens) * 9 // 10

    def held_out(self, most: int) -> Int[Tensor, " b"]:
        """The numbers of the first held-out images, `most` at most."""
        return torch.arange(self.kept, min(self.kept + most, len(self.tokens)))


@dataclass(frozen=True)
class SamplingRanges:
    """Ranges (low, high) of temperatures and guidance scales from which the setting of grids is drawn uniformly.

    None leaves a parameter as it is.
    """

    temperatures: tuple[float, float] | None = None
    cfg_scales: tuple[float, float] | None = None

    def setting(self, params: SamplingParams, start: int) -> SamplingParams:
        """The setting of the grids that are drawn together from number `start` on; it follows from `start` alone."""
        generator = torch.Generator().manual_seed(start)
        shares = torch.rand(2, dtype=torch.float64, generator=generator).tolist()
        ranges = {"temperature": self.temperatures, "cfg_scale": self.cfg_scales}
        drawn = {
            name: span[0] + share * (span[1] - span[0])
            for (name, span), share in zip(ranges.items(), shares, strict=True)
            if span is not None
        }
        return replace(params, **drawn)

    @property
    def origin(self) -> Origin:
        """The ranges by name, as shards store them."""
        return {name: f"{span[0]} to {span[1]}" for name, span in asdict(self).items() if span is not None}


@dataclass(frozen=True)
class Drawing:
    """How grids are drawn: the prompts, the grid, the sampling, `batch` images in a shard, and the processes that draw.

    `origin` holds the settings that every shard stores and that a shard found on disk must have. With `ranges` every
    shard has a setting of its own, which it stores as well. `spread` is what holds the target's layers, if they are
    spread over the processes.
    """

    prompts: Prompts
    grid: Grid
    params: SamplingParams
    batch: int = 32
    origin: Origin = field(default_factory=dict)
    world: World = field(default_factory=World)
    ranges: SamplingRanges | None = None
    spread: Spread | None = None

    def setting(self, image: int) -> SamplingParams:
        """The sampling parameters of the image with this number: those of its shard."""
        return self.params if self.ranges is None else self.ranges.setting(self.params, image - image % self.batch)

    def settings(self, images: int) -> list[SamplingParams] | None:
        """The sampling parameters of each of the first `images` images; None if all of them have the same ones."""
        return None if self.ranges is None else [self.setting(image) for image in range(images)]

    def origin_of_shard(self, start: int) -> Origin:
        """What the shard that begins at image `start` stores."""
        if self.ranges is None:
            return self.origin
        own = {name: str(value) for name, value in asdict(self.setting(start)).items()}
        return self.ranges.origin | self.origin | own


def origin_of(fingerprint: str, params: SamplingParams, grid: Grid, prompts: str, batch: int) -> Origin:
    """The settings that drawn grids depend on; `fingerprint` identifies the target, `prompts` the texts."""
    sampling = {name: str(value) for name, value in asdict(params).items()}
    return {
        "target": fingerprint,
        "prompts": prompts,
        "grid": f"{grid.height}x{grid.width}",
        "batch": str(batch),
        **sampling,
    }


def draw_on_policy(
    target: ImageTarget, drawing: Drawing, images: int, out: Path, recordings: Recordings | None = None
) -> Int[Tensor, "images n"]:
    """Let the target draw `images` grids, shard by shard; finished shards under `out` are kept.

    Every process returns all grids. All shards of a process use the same `recordings`, so that a GPU records a step
    once for each number of images. Raises as `write_missing` does.

    A step scores one token of each image and no drafts (`Window(0)`): a batch of images already fills a processor's
    matrix units, so that each draft would cost about as much time as it saves.
    """
    out.mkdir(parents=True, exist_ok=True)
    shards = shards_of(out, "tokens", images, drawing.batch)

    def draw(shard: Shard) -> Tensor:
        seeds = list(range(shard.start, shard.start + shard.count))
        prompts, params = drawing.prompts(shard.start, shard.count), drawing.setting(shard.start)
        request = Request(prompts, drawing.grid, params, seeds)
        return generate(target, request, Window(0), recordings=recordings).tokens.to("cpu", torch.int32)

    write_missing(shards, "on-policy grids", drawing, target.device, draw)
    return torch.cat([load_file(shard.path)["tokens"][: shard.count].long() for shard in shards])


@dataclass(frozen=True)
class Shard:
    """A file that holds the tensor `name` for `count` images, numbered from `start` on."""

    path: Path
    name: str
    start: int
    count: int

    def images(self, origin: Origin) -> int:
        """How many images the file holds, 0 if it does not exist.

        Raises `HawkError` if the file is damaged or has another origin.
        """
        if not self.path.is_file():
            return 0
        try:
            with safe_open(str(self.path), framework="pt") as file:
                stored, shape = file.metadata() or {}, file.get_slice(self.name).get_shape()
        except SafetensorError as error:
            raise HawkError(f"{self.path} is damaged: remove it, and the next run makes it again") from error
        for key, value in origin.items():
            if stored.get(key) != value:
                raise HawkError(
                    f"{self.path} was made with {key}={stored.get(key)}, not {value}: use it or another folder"
                )
        return int(shape[IMAGE_DIMENSIONS[self.name]])


IMAGE_DIMENSIONS = {"tokens": 0, "hidden": 1}
"""The dimension of each tensor that counts images."""


def shards_of(out: Path, name: str, images: int, batch: int) -> list[Shard]:
    """The shards of `images` images, with `batch` of them in each shard but the last."""
    starts = range(0, images, batch)
    return [Shard(out / f"{name}-{start:06d}.safetensors", name, start, min(batch, images - start)) for start in starts]


@saved_first()
def write_missing(
    shards: list[Shard], name: str, drawing: Drawing, device: torch.device, make: Callable[[Shard], Tensor]
) -> None:
    """Write the shards that are not there, in turns: W processes write the first W of them, then the next W, and so on.

    Which process makes a shard does not change it. All processes return when all shards are there.

    Raises:
        HawkError: a shard is damaged or has another origin.
        TerminatedError: SIGTERM came to one of the processes. The shards under way in the processes that it came to are
            given up unless the target is spread, all others are kept.
    """
    world = drawing.world
    lacking = torch.tensor([shard.images(drawing.origin_of_shard(shard.start)) < shard.count for shard in shards])
    # agreed on, since one process may begin to write before another one has looked
    missing = world.total(lacking.int().to(device)).nonzero().flatten().tolist() if shards else []
    bar = tqdm(desc=name, unit="shard", initial=len(shards) - len(missing), total=len(shards), disable=not world.first)
    for turn in range(0, len(missing), world.size):
        own = missing[turn : turn + world.size][world.rank : world.rank + 1]
        with given_up() if drawing.spread is None else nullcontext():  # the others wait for every forward
            for shard in (shards[place] for place in own):
                save_tensors(shard.path, {shard.name: make(shard)}, drawing.origin_of_shard(shard.start))
        if drawing.spread is not None:
            drawing.spread.rest()
        world.stop_together(stop_asked(), device)
        bar.update(min(world.size, len(missing) - turn))
    bar.close()


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of drawn grids: read from shards of `batch` images each, or computed where there is no shard."""

    files: list[Any]
    batch: int
    compute: Callable[[int, int], Tensor]
    device: torch.device

    def __call__(self, images: Int[Tensor, " b"]) -> Float[Tensor, "states b n d"]:
        """The states of the images with these numbers, in float32 on `device`."""
        return torch.cat([self.one(int(image)) for image in images], dim=1).to(self.device).float()

    def one(self, image: int) -> Tensor:
        """The states of one image, in bfloat16: [states, 1, n, d]."""
        shard, row = divmod(image, self.batch)
        if shard < len(self.files):
            return self.files[shard].get_slice("hidden")[:, row : row + 1]
        return self.compute(image, 1)


def hidden_states(
    target: ImageTarget, tokens: Int[Tensor, "images n"], drawing: Drawing, out: Path, budget: float
) -> HiddenStates:
    """The target's hidden states on grids that it drew; as many shards as fit into `budget` bytes are stored in `out`.

    Raises as `write_missing` does, and `HawkError` if the target is spread and the states do not fit: no process could
    compute them alone.
    """
    grid, batch = drawing.grid, drawing.batch

    def compute(start: int, count: int) -> Tensor:
        forced, params = tokens[start : start + count].to(target.device), drawing.setting(start)
        with teacher_autocast(target):
            return forced_hidden(target, forced, drawing.prompts(start, count), grid, params).bfloat16()

    shards = shards_of(out, "hidden", len(tokens), batch)
    each = disk_needed(target, batch, grid, drawing.setting(0))
    fitting = shards[: int(budget // each)]
    if drawing.spread is not None and len(fitting) < len(shards):
        raise HawkError(
            f"the states of {len(tokens)} grids take {len(shards) * each / 1e9:.3g} GB, and with --shard-target all of "
            "them must be on disk: give --cache-gb as much, or fewer --images"
        )
    shards = fitting
    write_missing(shards, "states", drawing, target.device, lambda shard: compute(shard.start, shard.count).cpu())
    files = [safe_open(str(shard.path), framework="pt") for shard in shards]
    return HiddenStates(files, batch, compute, target.device)


def disk_needed(target: ImageTarget, images: int, grid: Grid, params: SamplingParams) -> int:
    """How many bytes the hidden states of `images` images take on disk."""
    return states_per_token(target, params) * images * grid.size * target.hidden_size * torch.bfloat16.itemsize
