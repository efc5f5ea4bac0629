"""`hawk train drafter --kind spatial`: fit the spatial drafter together with the left factor, on on-policy grids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from hawk.decoding.grid import Grid
from hawk.decoding.noise import gumbel_rows
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.left import LeftFactor
from hawk.drafters.spatial import SpatialConfig, SpatialDrafter, spatial_mask, window_positions
from hawk.models.protocol import ImageTarget
from hawk.training.drafters.grids import OnPolicy
from hawk.training.drafters.losses import coupled_nats, overlap
from hawk.training.drafters.teacher import Sampling, TeacherLoss, draft_log_q, guided_states, teacher_log_p
from hawk.training.loop import FitConfig, Fitted, fit, weighted_means
from hawk.training.world import World

MOST_HELD_OUT = 800
"""The largest number of held-out windows that an evaluation measures."""


class SpatialLoss(TeacherLoss):
    """Loss of the drafts of whole windows, which start after random roots, against p.

    The loss is the mean of two losses: of the drafts themselves, and of the drafts plus the left factor, which knows
    the token of the left cell. Each of the two is `coupled_nats` plus the mass lost, 1 - `overlap`.
    benchmarks/README.md compares this loss with others.
    """

    def __init__(
        self, drafter: SpatialDrafter, target: ImageTarget, grid: Grid, params: SamplingParams, rank: int = 32
    ) -> None:
        super().__init__(target, params)
        self.drafter, self.grid = drafter, grid
        self._tables = [unit(table) for table in token_tables(target)]
        dim = drafter.config.dim
        self.left, self.here = nn.Linear(dim, rank, bias=False), nn.Linear(dim, rank, bias=False)
        nn.init.zeros_(self.here.weight)

    def forward(
        self,
        tokens: Int[Tensor, "b n"],
        hidden: Float[Tensor, "states b n d"],
        starts: Int[Tensor, " b"],
        noise: Float[Tensor, "b w vocab"],
        params: Sampling | None = None,
    ) -> dict[str, Tensor]:
        """Means over the positions of the windows that follow the first `starts` tokens of each image.

        `hidden[..., i, :]` is the state before token i. `noise` is the Gumbel noise with which the target chooses.
        `params` are the settings of the images, where they differ from those of the module.
        """
        params = params or self.params
        grid, rows = self.grid, torch.arange(len(tokens), device=tokens.device)[:, None]
        _, wanted = window_positions(starts, grid, self.drafter.config)
        inside, coming = wanted < grid.size, wanted.clamp(max=grid.size - 1)
        log_q = self.drafts(tokens, guided_states(hidden, params), starts, params)
        log_p = teacher_log_p(self.target, hidden[:, rows, coming], params)
        has_left = (wanted % grid.width > 0) & (wanted > starts[:, None])
        with_left = log_q + self.left_term(tokens[rows, coming - 1]) * has_left[..., None]
        plain, informed = (self._lost(q, log_p, noise, inside) for q in (log_q, with_left.log_softmax(-1)))
        return {
            "loss": 0.5 * (plain["nats"] + plain["lost"] + informed["nats"] + informed["lost"]),
            **plain,
            **{f"{name}_left": value for name, value in informed.items()},
        }

    def drafts(
        self,
        tokens: Int[Tensor, "b n"],
        states: Float[Tensor, "b n d"],
        starts: Int[Tensor, " b"],
        params: Sampling | None = None,
    ) -> Float[Tensor, "b w vocab"]:
        """log q of the windows, without top-k and top-p; positions past the image's end hold no meaningful values."""
        drafter, grid, config = self.drafter, self.grid, self.drafter.config
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        near, wanted = window_positions(starts, grid, config)
        cells, known = near.clamp(min=0), near < starts[:, None] - 1
        after = states[rows, (cells + 1).clamp(max=grid.size - 1)]
        features = drafter.cells(self.target.embed(tokens[rows, cells]), torch.where(known[..., None], after, 0.0))
        keys, values = drafter.entries(features, drafter.angles(cells, grid))
        newest, mask = states[rows[:, 0], starts - 1], spatial_mask(wanted, near, grid, config)
        drafted = drafter.draft_states(newest, drafter.angles(wanted, grid), keys, values, mask)
        return draft_log_q(self.target, drafted, params or self.params)

    def left_term(self, left: Int[Tensor, "b w"]) -> Float[Tensor, "b w vocab"]:
        """The term that the left factor adds to log q where `left` holds the token of the left cell."""
        before, after = self._tables
        return self.left(before[left]) @ self.here(after).T

    def factor(self) -> LeftFactor:
        """The left factor with its tables, as decoding uses it."""
        before, after = self._tables
        with torch.no_grad():
            tables = self.left(before), self.here(after)
        left, here = (table.detach().float().cpu().contiguous().numpy() for table in tables)
        return LeftFactor(left, here, 1.0)

    def _lost(self, log_q: Tensor, log_p: Tensor, noise: Tensor, inside: Tensor) -> dict[str, Tensor]:
        """Means of `coupled_nats` ("nats") and of the mass lost ("lost") over the positions inside the image."""
        nats, lost = coupled_nats(log_q, log_p, noise), 1 - overlap(log_q, log_p)
        return {"nats": nats[inside].mean(), "lost": lost[inside].mean()}


def token_tables(target: ImageTarget) -> tuple[Float[Tensor, "vocab d"], Float[Tensor, "vocab d"]]:
    """Two vectors of each token: its embedding, and its row of the output head (a linear one; else its embedding)."""
    with torch.no_grad():
        embeddings = target.embed(torch.arange(target.vocab_size, device=target.device)).float()
        if not target.linear_head:
            return embeddings, embeddings
        units = torch.eye(target.hidden_size, device=target.device, dtype=embeddings.dtype).to(target.dtype)
        return embeddings, (target.draft_head(units) - target.draft_head(torch.zeros_like(units[:1]))).float().T


def unit(table: Float[Tensor, "vocab d"]) -> Float[Tensor, "vocab d"]:
    """The table, scaled to a root mean square of 1."""
    return table / table.square().mean().sqrt().clamp_min(1e-6)


@dataclass(frozen=True)
class FittedSpatial:
    """The trained spatial drafter, its left factor, and how the fit went."""

    drafter: SpatialDrafter
    left: LeftFactor
    fitted: Fitted


def train_spatial(
    target: ImageTarget,
    data: OnPolicy,
    grid: Grid,
    params: SamplingParams,
    shape: SpatialConfig,
    config: FitConfig,
    out: Path,
) -> FittedSpatial:
    """Fit a spatial drafter on the grids of a frozen target; the last tenth of the images is held out."""
    torch.manual_seed(config.seed)
    drafter = SpatialDrafter(shape)
    module = SpatialLoss(drafter, target, grid, params)
    world = World.join(config.device)
    own = world.own(config.batch_size)
    entropy = token_entropy(target, data, params, world)

    def roots(images: Int[Tensor, " b"], generator: torch.Generator) -> Int[Tensor, " b"]:
        return torch.multinomial(entropy[images, :-1] + 0.05, 1, generator=generator)[:, 0]

    def windows(images: Int[Tensor, " b"], starts: Int[Tensor, " b"], seeds: Int[Tensor, " b"]) -> tuple[Any, ...]:
        noise = window_noise(seeds.tolist(), shape.window, target.vocab_size, config.device)
        tokens, hidden = data.tokens[images].to(config.device), data.hidden(images)
        return tokens, hidden, starts.to(config.device), noise, data.sampling(images)

    def batch_loss(runner: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        images = torch.randint(data.kept, (config.batch_size,), generator=generator)
        starts = roots(images, generator) + 1
        seeds = torch.randint(1 << 62, (config.batch_size,), generator=generator)
        inside = inside_image(starts, grid, shape)
        share = float(inside[own].sum() * world.size / inside.sum())
        return {name: value * share for name, value in runner(*windows(images[own], starts[own], seeds[own])).items()}

    def evaluate(runner: nn.Module, step: int) -> dict[str, float]:
        images = torch.arange(data.kept, len(data.tokens)).repeat(4)[:MOST_HELD_OUT]
        starts = roots(images, torch.Generator().manual_seed(0)) + 1
        together = (images, starts, torch.arange(len(images)))
        parts = list(zip(*(each.split(config.batch_size) for each in together), strict=True))
        counts = [int(inside_image(part, grid, shape).sum()) for _, part, _ in parts]
        return weighted_means([runner(*windows(*part)) for part in parts], counts)

    fitted = fit(module, batch_loss, config, out, evaluate)
    return FittedSpatial(drafter, module.factor(), fitted)


def window_noise(seeds: list[int], window: int, vocab: int, device: str) -> Float[Tensor, "b w vocab"]:
    """The Gumbel noise with which the target chooses the tokens of a window, one window per seed."""
    return torch.stack([gumbel_rows(seed, 0, window, vocab, torch.device(device)) for seed in seeds]).float()


def inside_image(starts: Int[Tensor, " b"], grid: Grid, shape: SpatialConfig) -> Int[Tensor, " b"]:
    """How many positions of each window lie inside the image."""
    return (grid.size - starts).clamp(max=shape.window)


@torch.no_grad()
def token_entropy(
    target: ImageTarget, data: OnPolicy, params: SamplingParams, world: World | None = None
) -> Float[Tensor, "images n"]:
    """Entropy of p at every token, in nats.

    Training windows start where it is high: there drafts are rejected, so there a decoding step starts its window.
    Process r of W computes the images r, r + W, ...; every process returns the entropies of all images.
    """
    world = world or World()
    entropies = torch.zeros(data.tokens.shape, device=target.device)
    mine = range(world.rank, len(entropies), world.size)
    for image in tqdm(mine, desc="entropy", unit="image", disable=not world.first):
        this = torch.tensor([image])
        p = teacher_log_p(target, data.hidden(this), data.sampling(this) or params).exp()
        entropies[image] = torch.special.entr(p).sum(-1)[0]
    return world.total(entropies).cpu()
