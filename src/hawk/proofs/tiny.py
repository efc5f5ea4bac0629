"""Tiny random targets and drafters, on which a proof of losslessness takes seconds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hawk.decoding.canvas import Canvas
from hawk.decoding.grid import Grid
from hawk.decoding.noise import Randomness
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import DraftTree, TreeBuilder, Window, batch_trees
from hawk.decoding.trees import Drafter
from hawk.decoding.verify import LOSSLESS, Verified
from hawk.drafters.feature import FeatureConfig, FeatureDrafter
from hawk.drafters.heads import DraftHeads, HeadsConfig
from hawk.drafters.left import LeftFactor
from hawk.drafters.methods import METHODS, build_drafter
from hawk.drafters.parts import DraftParts
from hawk.drafters.settings import FusedSettings
from hawk.drafters.spatial import SpatialConfig, SpatialDrafter
from hawk.models.llamagen.target import CaptionPrompt, LlamaGen, LlamaGenConfig
from hawk.models.protocol import ImageTarget


def tiny_target(
    seed: int, dtype: torch.dtype = torch.float64, vocab: int = 12, grid: Grid | None = None, dim: int = 32
) -> LlamaGen:
    """A LlamaGen with random weights, whose distributions are far from uniform and depend on all earlier tokens.

    The dtype is float64 by default: its rounding does not flip an argmax, so that tokens can be required to be equal.
    """
    grid = grid or Grid(4, 6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaGenConfig(
            dim=dim,
            n_layer=2,
            n_head=2,
            vocab_size=vocab,
            caption_dim=10,
            caption_tokens=5,
            height=grid.height,
            width=grid.width,
            multiple_of=16,
        )
        target = LlamaGen(config).to(dtype)
        target.initialize(0.3)
        nn.init.normal_(target.output.weight, std=0.3)
    return target.eval().requires_grad_(False)


def tiny_prompt(target: LlamaGen, images: int, seed: int = 0, alike: bool = False) -> CaptionPrompt:
    """Random left-padded captions of different lengths; with `alike`, all images have the same caption."""
    config = target.config
    generator = torch.Generator().manual_seed(seed)
    shape = (images, config.caption_tokens, config.caption_dim)
    like = target.tok_embeddings.weight
    features = torch.randn(shape, generator=generator, dtype=torch.float64).to(like)
    lengths = 1 + (torch.arange(images) * 2 + config.caption_tokens // 2) % config.caption_tokens
    if alike:
        features, lengths = features[:1].expand(shape), lengths[:1].expand(images)
    mask = torch.arange(config.caption_tokens) >= config.caption_tokens - lengths[:, None]
    return CaptionPrompt(features * mask[..., None].to(like), mask.to(like.device))


@dataclass
class RandomDrafter:
    """Proposes random trees of random tokens.

    The drafts are one-hot; with `carries_q`, most of them are drawn from a random q and carry it. The same token may be
    drawn twice below a node: residual verification tries each draw. The number of draws never depends on their tokens,
    so residual verification of such a tree is lossless.
    """

    vocab: int
    carries_q: bool = False
    max_nodes: int = 12
    depth: int = 4
    lossless_with: tuple[str, ...] = LOSSLESS

    def start(self, canvas: Canvas, params: SamplingParams, randomness: Randomness) -> list[torch.Generator]:
        """A generator for each image, so that the trees of an image do not depend on the other images of the batch."""
        return randomness.generators

    def propose(self, memory: list[torch.Generator], canvas: Canvas) -> DraftTree:
        """A random tree for each image, which never reaches past the end of the image."""
        grown = [self._grow(generator, canvas, row) for row, generator in enumerate(memory)]
        return batch_trees([builder for builder, _ in grown], ("random",), [q for _, q in grown])

    def observe(self, memory: list[torch.Generator], canvas: Canvas, verified: Verified) -> None:
        """Do nothing: the trees do not depend on what the target said."""

    def _grow(self, generator: torch.Generator, canvas: Canvas, row: int) -> tuple[TreeBuilder, Tensor]:
        builder = TreeBuilder.rooted(int(canvas.tokens[row, canvas.committed[row] - 1]))
        shape, depth = (self.max_nodes, self.vocab), min(self.depth, canvas.room(row))
        qs = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(-1)
        draws = torch.multinomial(qs, 1, generator=generator).flatten().tolist()
        one_hot = (torch.rand(self.max_nodes, generator=generator) < (0.3 if self.carries_q else 1.0)).tolist()
        counts = torch.randint(0, 4, (self.max_nodes,), generator=generator).tolist()
        used = 0
        for node, count in enumerate(counts):
            if node >= len(builder.tokens) or builder.depths[node] == depth:
                break
            for _ in range(min(count, self.max_nodes - 1 - used)):
                builder.add(node, draws[used], 0, -1 if one_hot[used] else used)
                used += 1
        return builder, qs


def tiny_drafters(
    target: ImageTarget, seed: int = 0, verifier: str | None = None
) -> dict[str, tuple[Drafter | Window, str]]:
    """All drafters by name, each with the verifier of its method.

    The drafters are made for `verifier` where it is given, else for their own. Their weights are random and large, so
    that the q of each source is far from p and from the q of every other source, and confusing two of them shows.
    """
    dtype, dim, vocab = target.dtype, target.hidden_size, target.vocab_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = DraftHeads(HeadsConfig(dim, horizontal=3, vertical=2)).to(dtype)
        for parameter in heads.parameters():
            nn.init.normal_(parameter, std=2.5 * dim**-0.5)
        left = LeftFactor(torch.randn(vocab, 3).numpy(), torch.randn(vocab, 3).numpy(), base=0.7)
        spatial = SpatialDrafter(SpatialConfig(dim, width=16, heads=2, window=6, columns=2, left=3)).to(dtype)
        nn.init.normal_(spatial.out.weight, std=2.0)
        feature = FeatureDrafter(FeatureConfig(dim, heads=2)).to(dtype)
        nn.init.normal_(feature.last.weight, std=0.3)
    sources = ("horizontal", "vertical-1", "vertical-2", "spatial", "stale")
    parts = DraftParts(FusedSettings.unfitted(sources), heads.eval(), spatial.eval(), left, feature.eval())
    for module in parts.modules:
        module.requires_grad_(False)
    drafters: dict[str, tuple[Drafter | Window, str]] = {
        "ar": (Window(0), "coupled"),
        "hawk, untrained": (Window(5), "coupled"),
        "random": (RandomDrafter(vocab), "coupled"),
        "random-q": (RandomDrafter(vocab, carries_q=True), "residual"),
    }
    for name, method in METHODS.items():
        if name != "ar":
            drafters[name] = (build_drafter(method, parts, target, verifier=verifier), method.verifier)
    return drafters
