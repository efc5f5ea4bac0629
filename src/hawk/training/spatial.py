"""`hawk train drafter --kind spatial`: fit the spatial drafter and the left factor, together, on on-policy grids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hawk.drafters.left import LeftFactor
from hawk.drafters.spatial import SpatialConfig, SpatialDrafter, spatial_mask, window_positions
from hawk.grid import Grid
from hawk.sampling import SamplingParams, log_probs
from hawk.targets.llamagen import LlamaGen
from hawk.training.drafter import OnPolicy
from hawk.training.loop import FitConfig, Fitted, fit
from hawk.training.pool import overlap


class SpatialLoss(nn.Module):
    """Drafts of windows after random roots against the target's guided, filtered distribution.

    The loss is the mean of two: of the drafts as they are, and of the drafts that a left factor has told the token to
    their left. Each is cross-entropy plus the mass lost (total variation, which is what rejects drafts).
    """

    def __init__(
        self, drafter: SpatialDrafter, target: LlamaGen, grid: Grid, params: SamplingParams, rank: int = 32
    ) -> None:
        super().__init__()
        self.drafter, self.grid, self.params = drafter, grid, params
        self._frozen = (target.tok_embeddings, target.output)  # in a tuple: none of our parameters
        dim = drafter.config.dim
        self.left, self.here = nn.Linear(dim, rank, bias=False), nn.Linear(dim, rank, bias=False)
        nn.init.zeros_(self.here.weight)

    def forward(
        self, tokens: Int[Tensor, "b n"], states: Float[Tensor, "b n d"], starts: Int[Tensor, " b"]
    ) -> dict[str, Tensor]:
        """Means over windows after the first `starts` tokens of each image (`states[:, i]` predicts token i)."""
        _, output = self._frozen
        grid, rows = self.grid, torch.arange(len(tokens), device=tokens.device)[:, None]
        _, wanted = window_positions(starts, grid, self.drafter.config)
        inside, coming = wanted < grid.size, wanted.clamp(max=grid.size - 1)
        log_q = self.drafts(tokens, states, starts)
        log_p = log_probs(output(states[rows, coming]), self.params)
        beside = (wanted % grid.width > 0) & (wanted > starts[:, None])
        told = log_q + self.told(tokens[rows, coming - 1]) * beside[..., None]
        plain, informed = (self._lost(q, log_p, inside) for q in (log_q, told.log_softmax(-1)))
        return {
            "loss": 0.5 * (plain["nats"] + plain["lost"] + informed["nats"] + informed["lost"]),
            **plain,
            **{f"{name}_left": value for name, value in informed.items()},
        }

    def drafts(
        self, tokens: Int[Tensor, "b n"], states: Float[Tensor, "b n d"], starts: Int[Tensor, " b"]
    ) -> Float[Tensor, "b w vocab"]:
        """log q of the windows, unfiltered (p's zeros need it); those past the image's end mean nothing."""
        embeddings, output = self._frozen
        drafter, grid, config = self.drafter, self.grid, self.drafter.config
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        near, wanted = window_positions(starts, grid, config)
        cells, known = near.clamp(min=0), near < starts[:, None] - 1
        after = states[rows, (cells + 1).clamp(max=grid.size - 1)]
        features = drafter.cells(embeddings(tokens[rows, cells]), torch.where(known[..., None], after, 0.0))
        keys, values = drafter.entries(features, drafter.angles(cells, grid))
        newest, mask = states[rows[:, 0], starts - 1], spatial_mask(wanted, near, grid, config)
        drafted = drafter.draft_states(newest, drafter.angles(wanted, grid), keys, values, mask)
        return log_probs(output(drafted), SamplingParams(self.params.temperature))

    def told(self, left: Int[Tensor, "b w"]) -> Float[Tensor, "b w vocab"]:
        """What the factor adds to log q beside the tokens `left`."""
        embeddings, output = self._frozen
        return self.left(unit(embeddings.weight)[left]) @ self.here(unit(output.weight)).T

    def factor(self) -> LeftFactor:
        """The factor's tables."""
        embeddings, output = self._frozen
        with torch.no_grad():
            tables = self.left(unit(embeddings.weight)), self.here(unit(output.weight))
        left, here = (table.detach().float().cpu().contiguous().numpy() for table in tables)
        return LeftFactor(left, here, 1.0)

    def _lost(self, log_q: Tensor, log_p: Tensor, inside: Tensor) -> dict[str, Tensor]:
        """Nats of cross-entropy and the mass lost, over the positions inside the image."""
        nats = -(log_p.exp() * log_q).sum(-1)
        return {"nats": nats[inside].mean(), "lost": 1 - overlap(log_q, log_p)[inside].mean()}


def unit(table: Float[Tensor, "vocab d"]) -> Float[Tensor, "vocab d"]:
    """A frozen table scaled to a root mean square of 1."""
    return table.detach() / table.detach().square().mean().sqrt().clamp_min(1e-6)


@dataclass(frozen=True)
class FittedSpatial:
    """The trained drafter and its left factor."""

    drafter: SpatialDrafter
    left: LeftFactor
    fitted: Fitted


def train_spatial(
    target: LlamaGen,
    data: OnPolicy,
    grid: Grid,
    params: SamplingParams,
    shape: SpatialConfig,
    config: FitConfig,
    out: Path,
) -> FittedSpatial:
    """Fit on on-policy grids; the last tenth of the images is held out."""
    torch.manual_seed(config.seed)
    drafter = SpatialDrafter(shape)
    target.tok_embeddings.requires_grad_(False)
    target.output.requires_grad_(False)
    module = SpatialLoss(drafter, target, grid, params)
    kept = data.kept
    surprise = token_entropy(target, data, params)

    def sampled(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        roots = torch.multinomial(surprise[images, :-1] + 0.05, 1, generator=generator)[:, 0]
        starts = roots + 1
        device = config.device
        return data.tokens[images].to(device), data.states[images].to(device), starts.to(device)

    def batch_loss(runner: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        return runner(*sampled(torch.randint(kept, (config.batch_size,), generator=generator), generator))

    def evaluate(runner: nn.Module, step: int) -> dict[str, float]:
        images = torch.arange(kept, len(data.tokens)).repeat(4)
        return {name: float(v) for name, v in runner(*sampled(images, torch.Generator().manual_seed(0))).items()}

    fitted = fit(module, batch_loss, config, out, evaluate)
    module.load_state_dict(fitted.averaged)
    return FittedSpatial(drafter.eval(), module.factor(), fitted)


@torch.no_grad()
def token_entropy(target: LlamaGen, data: OnPolicy, params: SamplingParams) -> Float[Tensor, "images n"]:
    """Entropy of p at every token, in nats. Where it is high drafts are rejected: there the next step has its root."""
    entropies = []
    for states in data.states:
        p = log_probs(target.head(states), params).exp()
        entropies.append(torch.special.entr(p).sum(-1))
    return torch.stack(entropies)


def preset() -> FitConfig:
    """The bundled recipe."""
    return FitConfig(
        steps=4000, batch_size=48, lr=1.5e-3, weight_decay=0.05, warmup=100, ema=0.995, evaluate_every=500, muon=True
    )
