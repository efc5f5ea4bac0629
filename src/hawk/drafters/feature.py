"""FeatureDrafter: EAGLE (arXiv 2401.15077), one decoder layer that continues the target's own hidden states.

The layer reads the state that predicted a token and the token's embedding, and predicts the state after the token. The
target's frozen output head turns that state into q. Below a draft, the layer continues from its own prediction, path by
path, in one dimension. Drafts are drawn from q, so that residual verification is lossless; with `one_hot` they are the
likeliest tokens of q instead, and each of them carries a one-hot q.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict
from torch import Tensor, nn

from hawk.decoding.canvas import Canvas
from hawk.decoding.noise import Randomness
from hawk.decoding.sampling import BatchParams, SamplingParams, draws
from hawk.decoding.tree import DraftTree, TreeBuilder, batch_trees
from hawk.decoding.verify import Verified
from hawk.drafters.saved import check_heads, load_part, save_part
from hawk.drafters.source import Embeddings, OutputHead, draft_log_probs
from hawk.nn.layers import RMSNorm, SwiGLU, additive_mask, attend, rotary_angles, rotated_heads, swiglu_width
from hawk.nn.stored import Count

NAME = "feature"
"""Name of the drafter's files and of its drafts."""


@dataclass(frozen=True)
class FeatureConfig:
    """One decoder layer for a target of width `dim`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    dim: Count
    heads: Count = 6

    def __post_init__(self) -> None:
        check_heads(self.dim, self.heads, axes=1)


@dataclass
class Entries:
    """Keys and values `[b, heads, n, d]` that later nodes attend to."""

    keys: Tensor
    values: Tensor


class FeatureDrafter(nn.Module):
    """[embedding; state] -> next state; token embeddings and output head belong to the target."""

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        self.join = nn.Linear(2 * config.dim, config.dim, bias=False)
        self.norm, self.ffn_norm, self.out_norm = RMSNorm(config.dim), RMSNorm(config.dim), RMSNorm(config.dim)
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        self.feed_forward = SwiGLU(config.dim, swiglu_width(config.dim, 64))
        self.last = nn.Linear(config.dim, config.dim, bias=False)

    def forward(
        self,
        embedded: Float[Tensor, "b n dim"],
        states: Float[Tensor, "b n dim"],
        positions: Int[Tensor, "#b n"],
        seen: Entries | None,
        mask: Float[Tensor, "#b 1 n m"],
    ) -> tuple[Float[Tensor, "b n dim"], Entries]:
        """The states after the tokens, from the states before them, and the keys and values of these nodes."""
        x = self.join(torch.cat((embedded, states), dim=-1))
        heads = self.config.heads
        angles = rotary_angles(positions[..., None], self.config.dim // heads)
        q, keys, values = rotated_heads(self.qkv(self.norm(x)), heads, heads, angles)
        own = Entries(keys, values)
        if seen is not None:
            keys, values = torch.cat((seen.keys, keys), dim=2), torch.cat((seen.values, values), dim=2)
        x = x + self.out(attend(q.to(keys), keys, values, mask))
        x = x + self.feed_forward(self.ffn_norm(x))
        return self.last(self.out_norm(x)), own

    def save(self, folder: Path, target_fingerprint: str) -> None:
        """Write the weights, their shape, and the fingerprint of the target that they were trained for."""
        save_part(self, self.config, folder, NAME, target_fingerprint)

    @classmethod
    def load(cls, folder: Path, target_fingerprint: str) -> FeatureDrafter | None:
        """Read a drafter from a folder; None where there is none. `HawkError` for a drafter of another target."""
        return load_part(cls, FeatureConfig, (), folder, NAME, target_fingerprint)


def nodes_of(draws: tuple[int, ...]) -> int:
    """Number of nodes of a full tree with `draws[d]` draws below every node of depth d, root included."""
    nodes, level = 1, 1
    for count in draws:
        level *= count
        nodes += level
    return nodes


@dataclass
class FeatureMemory:
    """Entries of each image's committed tokens, and the drafter's state after each root.

    `broken` names the source once its logits gave no distribution (`DraftScores.broken`).
    """

    params: BatchParams
    randomness: Randomness
    entries: list[Entries]
    after_root: list[Tensor]
    broken: set[str] = field(default_factory=set)


@dataclass
class FeatureTree:
    """Drafts a static tree: below every node of depth d, `draws[d]` draws from the drafter's q at that node.

    With `one_hot` the drafts are the likeliest tokens, as in EAGLE-2 (arXiv 2406.16858), each with a one-hot q.
    """

    drafter: FeatureDrafter
    embeddings: Embeddings
    head: OutputHead
    draws: tuple[int, ...] = (2, 1, 1, 1)
    one_hot: bool = False
    lossless_with: tuple[str, ...] = ("residual", "traversal", "coupled")

    @property
    def max_nodes(self) -> int:
        """Nodes of the full tree, root included."""
        return nodes_of(self.draws)

    def start(self, canvas: Canvas, params: SamplingParams, randomness: Randomness) -> FeatureMemory:
        """A memory without entries."""
        config = self.drafter.config
        nothing = canvas.states.new_empty(1, config.heads, 0, config.dim // config.heads)
        entries = [Entries(nothing, nothing) for _ in range(canvas.batch)]
        shared = BatchParams.alike(params, 1, randomness.noise.vocab, randomness.noise.held)
        return FeatureMemory(shared, randomness, entries, [nothing] * canvas.batch)

    def observe(self, memory: FeatureMemory, canvas: Canvas, verified: Verified) -> None:
        """Read the newly committed tokens with the target's true states before them."""
        for row in range(canvas.batch):
            seen, committed = memory.entries[row], canvas.committed[row]
            read = seen.keys.shape[2]
            if not canvas.room(row) or read == committed:
                continue
            fresh = torch.arange(read, committed, device=canvas.tokens.device)
            visible = torch.arange(committed, device=fresh.device) <= fresh[:, None]
            states = canvas.states[row, read:committed][None]
            embedded = self.embeddings(canvas.tokens[row, read:committed])[None]
            after, own = self.drafter(embedded, states, fresh[None], seen, additive_mask(visible[None], states.dtype))
            joined = Entries(torch.cat((seen.keys, own.keys), dim=2), torch.cat((seen.values, own.values), dim=2))
            memory.entries[row], memory.after_root[row] = joined, after[:, -1:]

    def propose(self, memory: FeatureMemory, canvas: Canvas) -> DraftTree:
        """One tree for each image, with every draw's q."""
        builders, q = [], []
        for row in range(canvas.batch):
            builder, rows = self._grow(memory, canvas, row)
            builders.append(builder)
            q.append(rows)
        return batch_trees(builders, (NAME,), q, canvas.tokens.device, memory.broken)

    def _grow(self, memory: FeatureMemory, canvas: Canvas, row: int) -> tuple[TreeBuilder, Float[Tensor, "q vocab"]]:
        builder = TreeBuilder.rooted(int(canvas.tokens[row, canvas.committed[row] - 1]))
        generator, committed = memory.randomness.generators[row], canvas.committed[row]
        rows: list[Tensor] = []
        level, states = [0], memory.after_root[row]
        branch: dict[int, list[int]] = {0: []}  # a node's ancestors among the drafts, as indices of `drafted`
        drafted = Entries(memory.entries[row].keys, memory.entries[row].values)
        depths = min(len(self.draws), canvas.room(row))
        for depth in range(depths):
            below: list[int] = []
            source: list[int] = []
            for i, node in enumerate(level):
                scores = draft_log_probs(self.head, states[0, i : i + 1], memory.params)
                if scores.broken is not None:
                    memory.broken.add(NAME)
                q = scores.log_q[0].exp()
                for token in self._candidates(q, self.draws[depth], generator):
                    child = builder.add(node, token, 0, -1 if self.one_hot else len(rows))
                    if child not in below:
                        below.append(child)
                        source.append(i)
                rows.append(q)
            if depth + 1 == depths:
                break
            first = drafted.keys.shape[2]
            for k, node in enumerate(below):
                branch[node] = [*branch[builder.parents[node]], first + k]
            visible = torch.zeros(len(below), first + len(below), dtype=torch.bool, device=states.device)
            visible[:, :committed] = True
            for k, node in enumerate(below):
                visible[k, branch[node]] = True
            tokens = torch.tensor([builder.tokens[node] for node in below], device=states.device)
            positions = torch.full((1, len(below)), committed + depth, device=states.device)
            mask = additive_mask(visible[None], states.dtype)
            states, own = self.drafter(self.embeddings(tokens)[None], states[:, source], positions, drafted, mask)
            drafted = Entries(torch.cat((drafted.keys, own.keys), 2), torch.cat((drafted.values, own.values), 2))
            level = below
        return builder, torch.stack(rows) if rows else torch.empty(0, memory.randomness.noise.vocab)

    def _candidates(self, q: Float[Tensor, " vocab"], count: int, generator: torch.Generator) -> list[int]:
        """Draws from q, or its likeliest tokens where drafts are one-hot."""
        if self.one_hot:
            return q.topk(min(count, len(q))).indices.tolist()
        return draws(q, count, generator).tolist()
