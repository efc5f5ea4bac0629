"""`hawk train drafter --kind spatial`: fit the spatial drafter and the left factor, together, on on-policy grids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
from hawk.training.drafters.teacher import draft_log_q, guided_states, teacher_log_p
from hawk.training.loop import FitConfig, Fitted, fit, mean_measured
from hawk.training.world import World

MOST_HELD_OUT = 800
"""Held-out windows that are measured at most."""


class SpatialLoss(nn.Module):
    """Drafts of windows after random roots against the target's guided, filtered distribution.

    The loss is the mean of two: of the drafts as they are, and of the drafts that a left factor has told the token to
    their left. Each is `coupled_nats`, the token that the target's noise chooses, plus the mass lost (measured against
    cross-entropy and others in benchmarks/).
    """

    def __init__(
        self, drafter: SpatialDrafter, target: ImageTarget, grid: Grid, params: SamplingParams, rank: int = 32
    ) -> None:
        super().__init__()
        self.drafter, self.grid, self.params = drafter, grid, params
        self._target = (target,)  # in a tuple: frozen, and none of our parameters
        self._tables = [unit(table) for table in token_tables(target)]
        dim = drafter.config.dim
        self.left, self.here = nn.Linear(dim, rank, bias=False), nn.Linear(dim, rank, bias=False)
        nn.init.zeros_(self.here.weight)

    def forward(
        self,
        tokens: Int[Tensor, "b n"],
        hidden: Float[Tensor, "parts b n d"],
        starts: Int[Tensor, " b"],
        noise: Float[Tensor, "b w vocab"],
    ) -> dict[str, Tensor]:
        """Means over windows after the first `starts` tokens of each image (`hidden[..., i, :]` predicts token i).

        `noise` is by what the target chooses.
        """
        grid, rows = self.grid, torch.arange(len(tokens), device=tokens.device)[:, None]
        _, wanted = window_positions(starts, grid, self.drafter.config)
        inside, coming = wanted < grid.size, wanted.clamp(max=grid.size - 1)
        log_q = self.drafts(tokens, guided_states(hidden, self.params), starts)
        log_p = teacher_log_p(self._target[0], hidden[:, rows, coming], self.params)
        beside = (wanted % grid.width > 0) & (wanted > starts[:, None])
        told = log_q + self.told(tokens[rows, coming - 1]) * beside[..., None]
        plain, informed = (self._lost(q, log_p, noise, inside) for q in (log_q, told.log_softmax(-1)))
        return {
            "loss": 0.5 * (plain["nats"] + plain["lost"] + informed["nats"] + informed["lost"]),
            **plain,
            **{f"{name}_left": value for name, value in informed.items()},
        }

    def drafts(
        self, tokens: Int[Tensor, "b n"], states: Float[Tensor, "b n d"], starts: Int[Tensor, " b"]
    ) -> Float[Tensor, "b w vocab"]:
        """log q of the windows, unfiltered (p's zeros need it); those past the image's end mean nothing."""
        target = self._target[0]
        drafter, grid, config = self.drafter, self.grid, self.drafter.config
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        near, wanted = window_positions(starts, grid, config)
        cells, known = near.clamp(min=0), near < starts[:, None] - 1
        after = states[rows, (cells + 1).clamp(max=grid.size - 1)]
        features = drafter.cells(target.embed(tokens[rows, cells]), torch.where(known[..., None], after, 0.0))
        keys, values = drafter.entries(features, drafter.angles(cells, grid))
        newest, mask = states[rows[:, 0], starts - 1], spatial_mask(wanted, near, grid, config)
        drafted = drafter.draft_states(newest, drafter.angles(wanted, grid), keys, values, mask)
        return draft_log_q(target, drafted, self.params)

    def told(self, left: Int[Tensor, "b w"]) -> Float[Tensor, "b w vocab"]:
        """What the factor adds to log q beside the tokens `left`."""
        before, after = self._tables
        return self.left(before[left]) @ self.here(after).T

    def factor(self) -> LeftFactor:
        """The factor's tables."""
        before, after = self._tables
        with torch.no_grad():
            tables = self.left(before), self.here(after)
        left, here = (table.detach().float().cpu().contiguous().numpy() for table in tables)
        return LeftFactor(left, here, 1.0)

    def _lost(self, log_q: Tensor, log_p: Tensor, noise: Tensor, inside: Tensor) -> dict[str, Tensor]:
        """Nats to the target's choice and the mass lost, over the positions inside the image."""
        nats, lost = coupled_nats(log_q, log_p, noise), 1 - overlap(log_q, log_p)
        return {"nats": nats[inside].mean(), "lost": lost[inside].mean()}


def token_tables(target: ImageTarget) -> tuple[Float[Tensor, "vocab d"], Float[Tensor, "vocab d"]]:
    """Two vectors of each token: its embedding, and its row of the output head (where linear, else the embedding)."""
    with torch.no_grad():
        embeddings = target.embed(torch.arange(target.vocab_size, device=target.device)).float()
        if not target.linear_head:
            return embeddings, embeddings
        units = torch.eye(target.hidden_size, device=target.device, dtype=embeddings.dtype).to(target.dtype)
        return embeddings, (target.draft_head(units) - target.draft_head(torch.zeros_like(units[:1]))).float().T


def unit(table: Float[Tensor, "vocab d"]) -> Float[Tensor, "vocab d"]:
    """A table scaled to a root mean square of 1."""
    return table / table.square().mean().sqrt().clamp_min(1e-6)


@dataclass(frozen=True)
class FittedSpatial:
    """The trained drafter and its left factor."""

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
    """Fit on the grids of a frozen target; the last tenth of the images is held out."""
    torch.manual_seed(config.seed)
    drafter = SpatialDrafter(shape)
    module = SpatialLoss(drafter, target, grid, params)
    world = World.join(config.device)
    own = world.own(config.batch_size)
    surprise = token_entropy(target, data, params, world)

    def roots(images: Int[Tensor, " b"], generator: torch.Generator) -> Int[Tensor, " b"]:
        return torch.multinomial(surprise[images, :-1] + 0.05, 1, generator=generator)[:, 0]

    def windows(images: Int[Tensor, " b"], starts: Int[Tensor, " b"], seeds: Int[Tensor, " b"]) -> tuple[Tensor, ...]:
        noise = window_noise(seeds.tolist(), shape.window, target.vocab_size, config.device)
        return data.tokens[images].to(config.device), data.hidden(images), starts.to(config.device), noise

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
        return mean_measured([runner(*windows(*part)) for part in parts], counts)

    fitted = fit(module, batch_loss, config, out, evaluate)
    module.load_state_dict(fitted.averaged)
    return FittedSpatial(drafter.eval(), module.factor(), fitted)


def window_noise(seeds: list[int], window: int, vocab: int, device: str) -> Float[Tensor, "b w vocab"]:
    """The noise by which the target chooses in a window of each seed."""
    return torch.stack([gumbel_rows(seed, 0, window, vocab, torch.device(device)) for seed in seeds]).float()


def inside_image(starts: Int[Tensor, " b"], grid: Grid, shape: SpatialConfig) -> Int[Tensor, " b"]:
    """Positions of each window; those at the image's end are short."""
    return (grid.size - starts).clamp(max=shape.window)


@torch.no_grad()
def token_entropy(
    target: ImageTarget, data: OnPolicy, params: SamplingParams, world: World | None = None
) -> Float[Tensor, "images n"]:
    """Entropy of p at every token, in nats. Where it is high drafts are rejected: there the next step has its root.

    Process r of W reads the images r, r + W, ...; all of them return all of it.
    """
    world = world or World()
    entropies = torch.zeros(data.tokens.shape, device=target.device)
    mine = range(world.rank, len(entropies), world.size)
    for image in tqdm(mine, desc="entropy", unit="image", disable=not world.first):
        p = teacher_log_p(target, data.hidden(torch.tensor([image])), params).exp()
        entropies[image] = torch.special.entr(p).sum(-1)[0]
    return world.total(entropies).cpu()
