"""Counts of decoding, and the finished tokens that it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Int
from torch import Tensor

from hawk.decoding.canvas import RECOVERED, Canvas
from hawk.decoding.tree import DraftTree
from hawk.decoding.verify import Verdict


@dataclass
class Stats:
    """Counts of one batch; the lists by depth begin with depth 1.

    `skill` is what the images taught about the drafts of a window with a ladder (`pacing.Pace`).
    `broken_sources` are the sources whose drafts had no distribution somewhere (`DraftTree.broken`).
    """

    images: int = 0
    nfe: int = 0
    committed: int = 0
    nodes: int = 0
    verified_by_depth: list[int] = field(default_factory=list)
    accepted_by_depth: list[int] = field(default_factory=list)
    accepted_by_source: dict[str, int] = field(default_factory=dict)
    broken_sources: frozenset[str] = frozenset()
    skill: float | None = None

    def copied(self) -> Stats:
        """The same counts, in lists and a dictionary of their own."""
        return replace(
            self,
            verified_by_depth=list(self.verified_by_depth),
            accepted_by_depth=list(self.accepted_by_depth),
            accepted_by_source=dict(self.accepted_by_source),
        )

    @property
    def accept_length(self) -> float:
        """Tokens committed per target forward and image, the recovered or bonus token included."""
        return self.committed / (self.nfe * self.images) if self.nfe else 0.0

    @property
    def acceptance_rate(self) -> list[float]:
        """accepted / verified at each depth: the share of the steps with a draft at that depth that accepted one."""
        pairs = zip(self.accepted_by_depth, self.verified_by_depth, strict=True)
        return [kept / tried if tried else 0.0 for kept, tried in pairs]

    def record(self, tree: DraftTree, depths: list[list[int]], verdicts: list[Verdict], live: list[bool]) -> None:
        """Add one step; `depths` are those of the valid nodes of each tree, `live` tells the unfinished images."""
        self.nfe += 1
        self.broken_sources |= tree.broken
        for row, verdict in enumerate(verdicts):
            if not live[row]:
                continue
            deepest, kept = max(depths[row]), len(verdict.path) - 1
            self.nodes += len(depths[row])
            missing = [0] * (deepest - len(self.verified_by_depth))
            self.verified_by_depth += missing
            self.accepted_by_depth += missing
            for depth in range(deepest):
                self.verified_by_depth[depth] += 1
                self.accepted_by_depth[depth] += depth < kept
            for node in verdict.path[1:]:
                name = tree.source_names[int(tree.sources[row, node])]
                self.accepted_by_source[name] = self.accepted_by_source.get(name, 0) + 1


def together(stats: Sequence[Stats]) -> Stats:
    """The counts of images that were drawn together, from those of each image; a forward serves all of them.

    The images of a group share one object, whose counts are those of the group already.
    """
    first, most = stats[0], max(len(each.verified_by_depth) for each in stats)
    if first.images == len(stats):
        return first
    whole = Stats(len(stats), max(each.nfe for each in stats))
    whole.verified_by_depth, whole.accepted_by_depth = [0] * most, [0] * most
    for each in stats:
        whole.committed += each.committed
        whole.nodes += each.nodes
        whole.broken_sources |= each.broken_sources
        for depth, (verified, accepted) in enumerate(zip(each.verified_by_depth, each.accepted_by_depth, strict=True)):
            whole.verified_by_depth[depth] += verified
            whole.accepted_by_depth[depth] += accepted
        for source, count in each.accepted_by_source.items():
            whole.accepted_by_source[source] = whole.accepted_by_source.get(source, 0) + count
    return whole


@dataclass(frozen=True)
class Generation:
    """Finished tokens `[batch, grid.size]`, the origin of each (see `Canvas`), and the counts.

    `forwards` has the number of tokens that were committed after each forward, prefill first, for an image of a lane.
    """

    tokens: Int[Tensor, "b n"]
    origins: Int[Tensor, "b n"]
    source_names: tuple[str, ...]
    stats: Stats
    forwards: tuple[int, ...] = ()


OnStep = Callable[[Canvas, Stats], None]
"""Called after each step with the canvas and the counts so far; a window counts only images, forwards and tokens."""


def window_stats(
    history: list[list[int]], origins: list[list[int]], reaches: list[int], source_names: tuple[str, ...]
) -> Stats:
    """The counts of window decoding, from the tokens that each step committed, `history[step][image]`, prefill first.

    `reaches` are those of the steps after the prefill, and `origins` those of each image's cells. The last token of a
    step is recovered, unless the image ends with an accepted draft.
    """
    images, size = len(origins), len(origins[0])
    stats = Stats(images=images, nfe=len(history), committed=sum(map(sum, history)))
    stats.nodes = images  # the prefill's
    most = max(reaches, default=0)
    stats.verified_by_depth, stats.accepted_by_depth = [0] * most, [0] * most
    drawn = list(history[0])
    for counts, reach in zip(history[1:], reaches, strict=True):
        for row, count in enumerate(counts):
            if not count:
                continue
            deepest, end = min(reach, size - drawn[row]), drawn[row] + count
            kept = count - (origins[row][end - 1] == RECOVERED)
            stats.nodes += 1 + deepest
            for depth in range(deepest):
                stats.verified_by_depth[depth] += 1
                stats.accepted_by_depth[depth] += depth < kept
            drawn[row] = end
    for row in range(images):
        for origin in origins[row][: drawn[row]]:
            if origin != RECOVERED:
                name = source_names[origin]
                stats.accepted_by_source[name] = stats.accepted_by_source.get(name, 0) + 1
    return stats
