"""`hawk train drafter --kind heads`: fit draft heads on grids that the target drew itself (on-policy).

No images are needed: the heads learn the target's guided distribution p on its own grids.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.heads import DraftHeads, HeadsConfig
from hawk.models.protocol import ImageTarget
from hawk.training.drafters.grids import OnPolicy
from hawk.training.drafters.teacher import Sampling, TeacherLoss, draft_log_q, guided_states, teacher_log_p
from hawk.training.loop import FitConfig, Fitted, fit, weighted_means
from hawk.training.world import World


class HeadsLoss(TeacherLoss):
    """Cross-entropy of every head against p at the position that the head predicts."""

    def __init__(self, heads: DraftHeads, target: ImageTarget, grid: Grid, params: SamplingParams) -> None:
        super().__init__(target, params)
        self.heads, self.grid = heads, grid

    def forward(self, hidden: Float[Tensor, "states b n d"], params: Sampling | None = None) -> dict[str, Tensor]:
        """The mean cross-entropy of each head in nats, and the mean of all heads as `loss`.

        `params` are the settings of the images, where they differ from those of the module.
        """
        params = params or self.params
        states = guided_states(hidden, params)
        p = teacher_log_p(self.target, hidden, params).exp()
        losses = {}
        for name, block, sources, positions in head_pairs(self.heads, self.grid):
            log_q = draft_log_q(self.target, self.heads.draft_state(block, states[:, sources]), params)
            losses[name] = -(p[:, positions] * log_q).sum(-1).mean()
        return {"loss": torch.stack(list(losses.values())).mean(), **losses}


def head_pairs(heads: DraftHeads, grid: Grid) -> list[tuple[str, nn.Module, slice, slice]]:
    """(name, block, states that it reads, positions that it predicts) of every head, over a whole grid.

    State i is the hidden state before token i.
    """
    pairs = []
    for n, block in enumerate(heads.horizontal, start=1):
        pairs.append((f"horizontal-{n}", block, slice(0, grid.size - n), slice(n, grid.size)))
    for d, block in enumerate(heads.vertical, start=1):
        reach = d * grid.width
        pairs.append((f"vertical-{d}", block, slice(1, grid.size - reach + 1), slice(reach, grid.size)))
    return pairs


def train_heads(
    target: ImageTarget,
    data: OnPolicy,
    grid: Grid,
    params: SamplingParams,
    shape: HeadsConfig,
    config: FitConfig,
    out: Path,
) -> tuple[DraftHeads, Fitted]:
    """Fit draft heads on the hidden states of a frozen target; the last tenth of the images is held out."""
    torch.manual_seed(config.seed)
    heads = DraftHeads(shape)
    module = HeadsLoss(heads, target, grid, params)
    own = World.join(config.device).own(config.batch_size)

    def loss_on(runner: nn.Module, images: Int[Tensor, " b"]) -> dict[str, Tensor]:
        return runner(data.hidden(images), data.sampling(images))

    def batch_loss(runner: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        return loss_on(runner, torch.randint(data.kept, (config.batch_size,), generator=generator)[own])

    def evaluate(runner: nn.Module, step: int) -> dict[str, float]:
        parts = data.held_out(16).split(config.batch_size)
        return weighted_means([loss_on(runner, part) for part in parts], [len(part) for part in parts])

    return heads, fit(module, batch_loss, config, out, evaluate)


@torch.no_grad()
def copy_baselines(
    target: ImageTarget, data: OnPolicy, grid: Grid, params: SamplingParams, images: int = 32
) -> dict[str, float]:
    """The mean probability, on held-out images, of the tokens of the left cell and of the cell above under p.

    These are the acceptance rates of a drafter that copies its neighbour.
    """
    left, above = [], []
    for image in data.held_out(images)[:, None]:
        hidden = data.hidden(image)
        tokens = data.tokens[image].to(hidden.device)
        p = teacher_log_p(target, hidden, data.sampling(image) or params).exp()
        left.append(p[:, 1:].gather(-1, tokens[:, :-1, None]).mean())
        above.append(p[:, grid.width :].gather(-1, tokens[:, : -grid.width, None]).mean())
    return {"left": float(torch.stack(left).mean()), "above": float(torch.stack(above).mean())}
