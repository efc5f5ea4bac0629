"""How much a trained correction of stale guesses saves: forwards with it and without it, on images that it never saw.

    python benchmarks/correction.py --out corrections                  # the bundled model, about 40 minutes on a core
    python benchmarks/correction.py --model PHOTOS --prompts FILE --out corrections-photos

A stale guess comes from a state that the target computed while some tokens before the position were drafts. Where such
a draft turned out to be another token, the state is out of date. The correction is a small network: it reads the state,
the state of the node before it, and five tokens around the position (left, two to the left, above-right, above,
above-left), as they were and as they are now. It adds a difference to the state, and the target's own output head makes
the new guess of the corrected state. It is fitted to the target's distribution p on traces of `--images` images.

The corrected guesses are drafts like all others, so the images stay the same; the script refuses to go on where one
differs. It prints a table and ends with a line of JSON. Traces and the fitted network lie in `--out`: the same command
goes on from them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from hawk import HawkPipeline
from hawk.decoding.forward import Target, guided_state
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams, gumbel_argmax
from hawk.decoding.tree import Window
from hawk.decoding.window import WindowState, advance, first_window, hold
from hawk.files import claim_folder, save_tensors, write_json
from hawk.machine import machine_facts
from hawk.training.scenes.prompts import SceneCaptions

NEAR = 5
"""Number of tokens around a position that the correction reads."""
TRACED = 4
"""Number of positions past the frontier of which a trace holds what the correction would read."""
HELD_OUT = 5_000_000
"""Number of the first caption, and the first seed, of the images that are drawn with the correction."""


@dataclass(frozen=True)
class Query:
    """What the correction reads at one position of each image, `[b, ...]`; `wanted` where it has something to correct.

    `near` are the positions of the tokens around it; `old` those tokens when the state was computed, `new` the present
    ones. A position before the image's start has the token `vocab`.
    """

    position: Tensor
    stale: Tensor
    before: Tensor
    near: Tensor
    old: Tensor
    new: Tensor
    wanted: Tensor


@dataclass(frozen=True)
class Traces:
    """Rows to fit on, `[n, ...]`: the queries of images, with the tokens that the image has in the end as `new`.

    `true` is the target's state at that position once everything before it was committed.
    """

    stale: Tensor
    before: Tensor
    old: Tensor
    new: Tensor
    true: Tensor

    def rows(self, index: Tensor) -> Traces:
        """Some of the rows."""
        return Traces(**{each.name: getattr(self, each.name)[index] for each in fields(self)})

    @classmethod
    def joined(cls, parts: list[Traces]) -> Traces:
        """The rows of all parts."""
        return cls(**{each.name: torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)})


class Correction(nn.Module):
    """The state of a position, corrected for the tokens around it that have changed since."""

    def __init__(self, embeddings: Tensor, hidden: int = 768) -> None:
        super().__init__()
        vocab, dim = embeddings.shape
        self.embed = nn.Embedding(vocab + 1, dim)
        self.embed.weight.data = torch.cat((embeddings / embeddings.std(), torch.zeros(1, dim)))
        self.norm, self.drop = nn.LayerNorm(dim), nn.Dropout(0.1)
        self.entry = nn.Linear(2 * dim + 2 * NEAR * dim, hidden)
        self.middle, self.last = nn.Linear(hidden, hidden), nn.Linear(hidden, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, stale: Tensor, before: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """States `[n, d]` and tokens `[n, NEAR]` to states `[n, d]`."""
        was, now = self.embed(old), self.embed(new)
        read = torch.cat((self.norm(stale), self.norm(before), was.flatten(1), (now - was).flatten(1)), dim=1)
        x = self.drop(F.silu(self.entry(self.drop(read))))
        x = x + self.drop(F.silu(self.middle(x)))
        return stale + self.last(x) * stale.norm(dim=-1, keepdim=True) / stale.shape[-1] ** 0.5


@dataclass
class WatchedTarget:
    """A target that remembers the nodes of its last forward and their hidden states."""

    target: Target
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def forward_nodes(self, tokens: Tensor, *others: Any) -> Tensor:
        """The target's own forward."""
        self.tokens, self.hidden = tokens, self.target.forward_nodes(tokens, *others)
        return self.hidden

    def step(self, state: WindowState, reach: int) -> tuple[Tensor, Tensor]:
        """One step of the window: the tokens that were scored, and their guided states."""
        advance(self, state, reach)
        return self.tokens[state.params.cond], guided_state(self.hidden, state.params)


def query(state: WindowState, step: Step, ahead: int, vocab: int) -> Query:
    """What the correction reads `ahead` positions past the frontier."""
    drafted, states, start = step.drafted, step.states, step.start
    size, width, nodes = state.grid.size, state.grid.width, drafted.shape[1]
    position = state.committed + ahead
    node = position - start  # the node whose state predicts the position
    near = position[:, None] - torch.tensor([1, 2, width - 1, width, width + 1])
    new = state.tokens.gather(1, near.clamp(min=0))
    place = near - start[:, None] + 1
    old = torch.where(place >= 0, drafted.gather(1, place.clamp(0, nodes - 1)), new)
    outside = near < 0
    old, new = old.masked_fill(outside, vocab), new.masked_fill(outside, vocab)
    scored = (position < size) & (node < nodes) & (state.committed > start)
    rows, at = torch.arange(len(node)), node.clamp(1, nodes - 1)
    wanted = scored & (old != new).any(1)
    return Query(position, states[rows, at], states[rows, at - 1], near, old, new, wanted)


@dataclass(frozen=True)
class Step:
    """A step that has just been made: the tokens that it scored, their guided states, and the frontier before it."""

    drafted: Tensor
    states: Tensor
    start: Tensor


def steps_of(target: WatchedTarget, state: WindowState, reach: int) -> Iterator[Step]:
    """Draw the images of a state; after each step its caller may replace drafts."""
    size = state.grid.size
    while int(state.committed.min()) < size:
        hold(state, state.committed.tolist())
        start = state.committed.clone()
        drafted, states = target.step(state, min(reach, size - int(start.min())))
        yield Step(drafted, states, start)


def traced(target: WatchedTarget, request: Request, reach: int) -> Traces:
    """Draw the images of a request and collect their queries."""
    size, vocab = request.grid.size, target.vocab_size
    state = first_window(target, request, Window(reach))
    true = torch.zeros(request.images, size, target.hidden_size, dtype=torch.float16)
    asked: list[Query] = []
    for step in steps_of(target, state, reach):
        for row, (was, now) in enumerate(zip(step.start.tolist(), state.committed.tolist(), strict=True)):
            true[row, was:now] = step.states[row, : now - was].half()
        asked += [query(state, step, ahead, vocab) for ahead in range(TRACED)]
    final = state.tokens[:, :size]
    parts = []
    for each in asked:
        rows = each.wanted.nonzero().flatten()
        near = each.near[rows]
        new = final[rows].gather(1, near.clamp(min=0)).masked_fill(near < 0, vocab)
        stale, before = each.stale[rows].half(), each.before[rows].half()
        parts.append(Traces(stale, before, each.old[rows], new, true[rows, each.position[rows]]))
    return Traces.joined(parts)


@dataclass(frozen=True)
class Drawn:
    """Tokens, mean forwards of an image, and the share of first drafts past the frontier that were right."""

    tokens: Tensor
    forwards: float
    right: float


def drawn(target: WatchedTarget, request: Request, reach: int, correction: Correction, depth: int) -> Drawn:
    """Draw the images; after each step the correction replaces the drafts of the first `depth` positions, in order."""
    size = request.grid.size
    state = first_window(target, request, Window(reach))
    drafts: list[tuple[Tensor, Tensor]] = []
    for step in steps_of(target, state, reach):
        for ahead in range(depth):
            asked = query(state, step, ahead, target.vocab_size)
            corrected = correction(asked.stale.float(), asked.before.float(), asked.old, asked.new)
            noise = state.noise.at(asked.position[:, None])
            guess = gumbel_argmax(target.head(corrected)[:, None], noise)
            at = asked.position[:, None]
            state.tokens.scatter_(1, at, torch.where(asked.wanted[:, None], guess, state.tokens.gather(1, at)))
        frontier = state.committed[:, None]
        drafts.append((state.committed.clone(), state.tokens.gather(1, frontier)[:, 0]))
    final = state.tokens[:, :size].clone()
    right = [final.gather(1, at.clamp(max=size - 1)[:, None])[:, 0].eq(draft)[at < size] for at, draft in drafts]
    return Drawn(final, state.steps.float().mean().item(), torch.cat(right).float().mean().item())


def collected(requests: list[Request], target: WatchedTarget, reach: int, path: Path) -> Traces:
    """The traces of the requests, from the file where they are there."""
    if not path.is_file():
        with torch.inference_mode():
            parts = [traced(target, request, reach) for request in tqdm(requests, desc="traces", mininterval=5)]
            whole = Traces.joined(parts)
        save_tensors(path, {each.name: getattr(whole, each.name) for each in fields(whole)})
    return Traces(**load_file(path))


def fitted(traces: Traces, head: Tensor, embeddings: Tensor, steps: int, batch: int, path: Path) -> Correction:
    """A correction fitted by cross-entropy against p; from the file where it is there."""
    torch.manual_seed(0)
    correction = Correction(embeddings)
    if path.is_file():
        correction.load_state_dict(load_file(path))
        return correction.eval()
    correction.embed.weight.requires_grad_(False)
    learnt = [each for each in correction.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, steps, pct_start=0.05)
    bar = tqdm(range(steps), desc="fit", mininterval=5)
    for _ in bar:
        rows = traces.rows(torch.randint(len(traces.old), (batch,)))
        p = (rows.true.float() @ head).softmax(-1)
        corrected = correction(rows.stale.float(), rows.before.float(), rows.old, rows.new)
        loss = -(p * (corrected @ head).log_softmax(-1)).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        bar.set_postfix(nats=f"{loss.detach():.3f}", refresh=False)
    save_tensors(path, {name: value.contiguous() for name, value in correction.state_dict().items()})
    return correction.eval()


def main() -> None:
    """Trace, fit, draw, print the table, and end with a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="bundled")
    add("--prompts", type=Path, help="a file with a prompt a line (default: captions of drawn scenes)")
    add("--out", type=Path, required=True, help="folder of the traces and of the fitted network")
    add("--images", type=int, default=3200, help="images to fit on")
    add("--held-out", type=int, default=32, help="images to draw with the correction")
    add("--reach", type=int, default=31, help="reach of the window while the traces are drawn")
    add("--steps", type=int, default=3000)
    add("--batch-size", type=int, default=512, help="positions in a step of the fit")
    add("--json-out", type=Path)
    asked = parser.parse_args()
    pipe = HawkPipeline.from_pretrained(asked.model, device="cpu")
    model, target, grid, together = pipe.model, WatchedTarget(pipe.model.target), pipe.model.grid, 8
    lines = [] if asked.prompts is None else [line for line in asked.prompts.read_text().splitlines() if line.strip()]

    def request(first: int, count: int) -> Request:
        numbers = range(first, first + count)
        texts = [lines[i % len(lines)] for i in numbers] if lines else SceneCaptions().drawn(first, count)
        return Request(model.condition(texts, [""] * count, grid), grid, model.defaults, list(numbers))

    if replace(model.defaults, cfg_scale=1.0) != SamplingParams() or not target.linear_head:
        raise SystemExit(f"{model.name}: only a model with a linear head that draws at temperature 1 without filters")
    job = {name: str(value) for name, value in vars(asked).items() if name not in ("out", "json_out", "held_out")}
    claim_folder(asked.out, {**job, "fingerprint": model.fingerprint}, "corrections")
    with torch.no_grad():
        head = target.head(torch.eye(target.hidden_size))  # [d, vocab]: the head is linear
        embeddings = target.embed(torch.arange(target.vocab_size)).float()
    requests = [request(first, together) for first in range(0, asked.images, together)]
    traces = collected(requests, target, asked.reach, asked.out / "traces.safetensors")
    started = time.perf_counter()
    network = asked.out / "correction.safetensors"
    correction = fitted(traces, head, embeddings, asked.steps, asked.batch_size, network)
    minutes = (time.perf_counter() - started) / 60
    rows = []
    print("| reach | positions corrected | forwards an image | fewer | first draft right |\n|---|---|---|---|---|")
    with torch.inference_mode():
        unseen = request(HELD_OUT, asked.held_out)
        for reach in (15, 31, 63):
            plain = drawn(target, unseen, reach, correction, 0)
            for depth in (0, 1, 2, 4):
                found = drawn(target, unseen, reach, correction, depth) if depth else plain
                if not torch.equal(found.tokens, plain.tokens):
                    raise SystemExit(f"reach {reach}, {depth} corrected: another image was drawn")
                row = {"reach": reach, "corrected": depth, "forwards": found.forwards, "right": found.right}
                rows.append(row)
                fewer = plain.forwards / found.forwards
                print(f"| {reach} | {depth} | {found.forwards:.1f} | {fewer:.2f}x | {found.right:.3f} |", flush=True)
    document = {
        "rows": rows,
        "model": model.name,
        "images": asked.images,
        "positions": len(traces.old),
        "steps": asked.steps,
        "fit_minutes": round(minutes, 1),
        "held_out": asked.held_out,
        "parameters": sum(each.numel() for each in correction.parameters()) - correction.embed.weight.numel(),
        "cfg_scale": model.defaults.cfg_scale,
        "temperature": model.defaults.temperature,
        "machine": machine_facts(pipe.device, pipe.dtype),
    }
    if asked.json_out:
        write_json(asked.json_out, document)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
