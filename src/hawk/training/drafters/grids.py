"""Grids that the target draws itself (on-policy), and its hidden states on them: what drafters learn from.

Both lie in shards under the run folder, each written whole by one process: so a killed run goes on where it was, and
several processes draw side by side (they must see the same folder). A shard's metadata tell what it follows from.
States are kept as far as a disk budget reaches and recomputed beyond; either way they are rounded to bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from hawk.decoding.forward import Target
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.errors import HawkError
from hawk.files import save_tensors
from hawk.models.protocol import ImageTarget
from hawk.training.drafters.teacher import Prompts, forced_hidden, parts_of, teaching
from hawk.training.world import World

Origin = dict[str, str]
"""What a shard follows from, by name, as its metadata tell it."""


@dataclass(frozen=True)
class OnPolicy:
    """Grids the target drew (on the CPU), and the hidden states before their tokens (`teacher.forced_hidden`).

    `hidden(images)` gives those of the images of these numbers, `[parts, b, n, d]`, where drafters are trained.
    """

    tokens: Int[Tensor, "images n"]
    hidden: Callable[[Int[Tensor, " b"]], Float[Tensor, "parts b n d"]]

    @property
    def kept(self) -> int:
        """Images to learn from; the last tenth is held out."""
        return len(self.tokens) * 9 // 10

    def held_out(self, most: int) -> Int[Tensor, " b"]:
        """Numbers of the first of the held-out images."""
        return torch.arange(self.kept, min(self.kept + most, len(self.tokens)))


def origin_of(fingerprint: str, params: SamplingParams, grid: Grid, prompts: str, batch: int) -> Origin:
    """What grids drawn `batch` at a time follow from; `fingerprint` is the target's, `prompts` that of their texts."""
    sampling = {name: str(value) for name, value in asdict(params).items()}
    return {
        "target": fingerprint,
        "prompts": prompts,
        "grid": f"{grid.height}x{grid.width}",
        "batch": str(batch),
        **sampling,
    }


def draw_on_policy(
    target: Target,
    prompts: Prompts,
    grid: Grid,
    params: SamplingParams,
    images: int,
    out: Path,
    batch: int = 32,
    origin: Origin | None = None,
    world: World | None = None,
) -> Int[Tensor, "images n"]:
    """Let the target draw `images` grids, a shard of `batch` at a time; finished shards under `out` are kept.

    Process r of W draws the shards r, r + W, ...; all of them return all grids. Raises `HawkError` where `out` holds
    shards of another origin.
    """
    origin, world = origin or {}, world or World()
    out.mkdir(parents=True, exist_ok=True)
    shards = shards_of(out, "tokens", images, batch)
    for shard in own_shards(shards, "on-policy grids", world):
        if shard.rows(origin) < shard.count:
            seeds = list(range(shard.start, shard.start + shard.count))
            request = Request(prompts(shard.start, shard.count), grid, params, seeds)
            drawn = generate(target, request, Window(0)).tokens
            save_tensors(shard.path, {"tokens": drawn.to("cpu", torch.int32)}, origin)
    world.wait()
    return torch.cat([load_file(shard.path)["tokens"][: shard.count].long() for shard in shards])


@dataclass(frozen=True)
class Shard:
    """A file of the tensor `name` of `count` images, from number `start` on."""

    path: Path
    name: str
    start: int
    count: int

    def rows(self, origin: Origin) -> int:
        """Images that the file holds, 0 where it is not there yet; `HawkError` for another origin."""
        if not self.path.is_file():
            return 0
        try:
            with safe_open(str(self.path), framework="pt") as file:
                written, shape = file.metadata() or {}, file.get_slice(self.name).get_shape()
        except SafetensorError as error:
            raise HawkError(f"{self.path} is damaged: remove it, and it is made again") from error
        for key, value in origin.items():
            if written.get(key) != value:
                raise HawkError(
                    f"{self.path} was made with {key}={written.get(key)}, not {value}: use it or another folder"
                )
        return int(shape[IMAGES[self.name]])


IMAGES = {"tokens": 0, "hidden": 1}
"""Which dimension of a shard's tensor counts images."""


def shards_of(out: Path, name: str, images: int, batch: int) -> list[Shard]:
    """The shards of so many images."""
    starts = range(0, images, batch)
    return [Shard(out / f"{name}-{start:06d}.safetensors", name, start, min(batch, images - start)) for start in starts]


def own_shards(shards: list[Shard], name: str, world: World) -> Iterable[Shard]:
    """A process's shards, under a progress bar."""
    return tqdm(shards[world.rank :: world.size], desc=name, unit="shard", disable=not world.first)


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of drawn grids, read from open shards of `batch` images each, computed where there is none."""

    files: list[Any]
    batch: int
    compute: Callable[[int, int], Tensor]
    device: torch.device

    def __call__(self, images: Int[Tensor, " b"]) -> Float[Tensor, "parts b n d"]:
        """Of the images of these numbers."""
        return torch.cat([self.one(int(image)) for image in images], dim=1).to(self.device).float()

    def one(self, image: int) -> Tensor:
        """Of one image, in bfloat16."""
        shard, row = divmod(image, self.batch)
        if shard < len(self.files):
            return self.files[shard].get_slice("hidden")[:, row : row + 1]
        return self.compute(image, 1)


def hidden_states(
    target: ImageTarget,
    tokens: Int[Tensor, "images n"],
    prompts: Prompts,
    grid: Grid,
    params: SamplingParams,
    out: Path,
    budget: float,
    batch: int = 32,
    origin: Origin | None = None,
    world: World | None = None,
) -> HiddenStates:
    """The target's hidden states on grids it drew: as many shards as `budget` bytes hold are kept under `out`.

    Raises `HawkError` where `out` holds shards of another origin.
    """
    origin, world = origin or {}, world or World()

    def compute(start: int, count: int) -> Tensor:
        forced = tokens[start : start + count].to(target.device)
        with teaching(target):
            return forced_hidden(target, forced, prompts(start, count), grid, params).bfloat16()

    shards = shards_of(out, "hidden", len(tokens), batch)
    shards = shards[: int(budget // disk_needed(target, batch, grid, params))]
    for shard in own_shards(shards, "states", world):
        if shard.rows(origin) < shard.count:
            save_tensors(shard.path, {"hidden": compute(shard.start, shard.count).cpu()}, origin)
    world.wait()
    files = [safe_open(str(shard.path), framework="pt") for shard in shards]
    return HiddenStates(files, batch, compute, target.device)


def disk_needed(target: ImageTarget, images: int, grid: Grid, params: SamplingParams) -> int:
    """Bytes of the hidden states of so many images."""
    return parts_of(target, params) * images * grid.size * target.hidden_size * torch.bfloat16.itemsize
