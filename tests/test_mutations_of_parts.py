"""Mutants of the decoder's parts: each part is compared with a definition written out here, in plain Python."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from hawk.decoding import (
    arguments,
    canvas,
    forward,
    generate,
    grid,
    memory,
    noise,
    pacing,
    planning,
    relaxed,
    request,
    sampling,
    stats,
    structure,
    window,
)
from hawk.decoding.sampling import BatchParams, SamplingParams
from hawk.decoding.tree import Window
from hawk.errors import HawkError
from hawk.proofs.losslessness import Check
from hawk.proofs.tiny import RandomDrafter, tiny_prompt, tiny_target
from mutant import Mutant, failed

F64 = torch.float64


def check(name: str, passed: object) -> Check:
    return Check(name, "", "", "", "", bool(passed))


def refuses(call) -> bool:
    """Whether a call ends in a `HawkError`."""
    try:
        call()
    except HawkError:
        return True
    return False


def distribution_of(cond: list[float], uncond: list[float], params: SamplingParams) -> list[float]:
    """The target's distribution from two rows of logits, token by token."""
    logits = [u + params.cfg_scale * (c - u) for c, u in zip(cond, uncond, strict=True)]
    if params.temperature == 0:
        return [float(token == logits.index(max(logits))) for token in range(len(logits))]
    weights = [math.exp(logit / params.temperature) for logit in logits]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    order = order[: params.top_k or None]
    total, kept, reached = sum(weights[token] for token in order), [], 0.0
    for token in order:
        if reached < params.top_p:
            kept.append(token)
        reached += weights[token] / total
    left = sum(weights[token] for token in kept)
    return [weights[token] / left if token in kept else 0.0 for token in range(len(weights))]


def distributions():
    """Guidance, temperature, top-k and top-p in this order give the distribution that is written out above."""
    cond, uncond = torch.randn(2, 9, generator=torch.Generator().manual_seed(3), dtype=F64)
    checks = []
    for params in (
        SamplingParams(temperature=0.7, cfg_scale=3.0),
        SamplingParams(temperature=1.3, top_k=4),
        SamplingParams(top_p=0.6, cfg_scale=1.5),
        SamplingParams(temperature=1.5, top_k=4, top_p=0.7),
        SamplingParams(temperature=0.0, cfg_scale=2.0),
    ):
        p = sampling.log_probs(sampling.guide(cond, uncond, params.cfg_scale), params).exp()
        expected = torch.tensor(distribution_of(cond.tolist(), uncond.tolist(), params), dtype=F64)
        checks.append(check(str(params), torch.allclose(p, expected, rtol=0, atol=1e-12)))
    return checks


def choices():
    """The chosen token is argmax(log p + g)."""
    scores, g = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1), dtype=F64)
    expected = [max(range(5), key=lambda token: float(row[token])) for row in scores + g]
    return [check("chosen", sampling.gumbel_argmax(scores, g).tolist() == expected)]


def numpy_noise(seed: int, position: int, vocab: int) -> np.ndarray:
    """The noise of one position: numpy's Philox with the seed as key and the position's counter."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=position * -(-vocab // 4)))
    return -np.log(-np.log(generator.random(vocab)))


def noises():
    """Noise is the same function of seed, position and token in any order, in any batch and on any device."""
    seeds, vocab, positions = [5, 2**62 + 7], 6, 100
    held = noise.GumbelNoise(seeds, positions, vocab, torch.empty(0, dtype=F64), ring=32)
    checks = []
    for asked in ([0, 1, 2], [15, 16, 17], [40, 41, 55], [3, 4, 5], [98, 99, 99], [70, 72, 71]):
        shifted = [max(position - 1, 0) for position in asked]
        drawn = held.rows(torch.tensor([asked, shifted]))
        for row, wanted in enumerate((asked, shifted)):
            expected = np.stack([numpy_noise(seeds[row], position, vocab) for position in wanted])
            checks.append(check(f"{asked} of image {row}", np.allclose(drawn[row].numpy(), expected)))
        window = held.window(0, asked[0], 1)[0].numpy()
        checks.append(check(f"window at {asked[0]}", np.allclose(window, numpy_noise(seeds[0], asked[0], vocab))))
    on_device = noise.uniform_blocks(seeds, [3, 9], 5, vocab, torch.device("cpu"))
    for row, (seed, first) in enumerate(zip(seeds, (3, 9), strict=True)):
        expected = [np.exp(-np.exp(-numpy_noise(seed, first + i, vocab))) for i in range(5)]
        checks.append(check(f"on a device, image {row}", np.allclose(on_device[row].numpy(), np.stack(expected))))
    held.restart([1, 2])
    again = held.rows(torch.tensor([[70], [70]]))
    checks.append(check("after a restart", np.allclose(again[1, 0].numpy(), numpy_noise(2, 70, vocab))))
    return checks


def cells():
    """Positions count the cells of a grid row by row."""
    shape = grid.Grid(3, 5)
    where = shape.coordinates(torch.arange(15)).tolist()
    expected = [[row, col] for row in range(3) for col in range(5)]
    back = [shape.position(row, col) for row, col in expected]
    return [check("coordinates", where == expected), check("back", back == list(range(15)))]


def commits():
    """A canvas holds what was committed, in order, and nothing past its end."""
    drawn = canvas.Canvas.blank(grid.Grid(2, 3), torch.ones(2, 4))
    drawn.commit(0, [7, 8], [-1, 0])
    drawn.commit(0, [9, 1, 2, 3, 4], [1, -1, 0, 1, 1])
    drawn.commit(1, [5], [-1])
    return [
        check("tokens", drawn.tokens.tolist() == [[7, 8, 9, 1, 2, 3], [5, 0, 0, 0, 0, 0]]),
        check("origins", drawn.origins.tolist() == [[-1, 0, 1, -1, 0, 1], [-1] * 6]),
        check("counts", (drawn.committed, drawn.roots(), drawn.room(1), drawn.done) == ([6, 1], [5, 0], 5, False)),
        check("caption", drawn.states[:, 0].eq(1).all() and drawn.states[:, 1:].eq(0).all()),
    ]


class CountingDrafter(RandomDrafter):
    """Random trees; `proposed` is the number of nodes that it proposed for unfinished images."""

    proposed = 0

    def propose(self, memory, canvas):
        drafts = super().propose(memory, canvas)
        self.proposed += sum(int(drafts.valid[row].sum()) for row in range(canvas.batch) if canvas.room(row))
        return drafts


def counts():
    """What a window and a tree count equals a recount from the frontiers that the host was told of."""
    target = tiny_target(0, grid=grid.Grid(3, 4), dim=16)
    asked = request.Request(tiny_prompt(target, 4), target.grid, SamplingParams(temperature=0.3), [1, 2, 3, 4])
    checks = []
    for name, drafter in (("window", Window(3)), ("tree", CountingDrafter(target.vocab_size))):
        told = []
        drawn = generate.generate(
            target, asked, drafter, lambda drawing, _, told=told: told.append(list(drawing.committed))
        )
        fronts = [[1] * 4, *told]
        kept, size = int((drawn.origins >= 0).sum()), target.grid.size
        left = [size - begun[row] for begun, ended in pairwise(fronts) for row in range(4) if ended[row] > begun[row]]
        checks += [
            check(f"{name}: forwards", drawn.stats.nfe == len(fronts)),
            check(f"{name}: tokens", drawn.stats.committed == 4 * size),
            check(f"{name}: sources", sum(drawn.stats.accepted_by_source.values()) == kept > 0),
            check(f"{name}: depths", sum(drawn.stats.accepted_by_depth) == kept),
            check(f"{name}: lengths", drawn.stats.accept_length == pytest.approx(size / len(fronts))),
            check(f"{name}: rates", all(0 <= rate <= 1 for rate in drawn.stats.acceptance_rate)),
        ]
        if isinstance(drafter, CountingDrafter):
            checks.append(check("nodes", drawn.stats.nodes == 4 + drafter.proposed))
        else:
            tried = [sum(room > depth for room in left) for depth in range(3)]
            checks.append(check("nodes", drawn.stats.nodes == 4 + sum(1 + min(3, room) for room in left)))
            checks.append(check("verified", drawn.stats.verified_by_depth == tried))
    return checks


def structures():
    """The layout of a chain over two rows with two structure tokens behind each, written out entry by entry."""
    rules, shape = structure.Structure((90, 91)), grid.Grid(3, 2)
    positions = torch.tensor([[1, 2, 3, 4], [2, 3, 4, 5]])
    chain = torch.ones(4, 4, dtype=torch.bool).tril().expand(2, -1, -1)
    laid = structure.lay_out(rules, positions, chain, shape)
    entry = torch.ones(8, 8, dtype=torch.bool).tril()
    short = torch.ones(6, 6, dtype=torch.bool).tril()
    padded = torch.eye(8, dtype=torch.bool)
    padded[:6, :6] = short
    return [
        check("owner", laid.owner.tolist() == [[0, 0, 0, 1, 2, 2, 2, 3], [0, 1, 1, 1, 2, 3, -1, -1]]),
        check("offset", laid.offset.tolist() == [[0, 1, 2, 0, 0, 1, 2, 0], [0, 0, 1, 2, 0, 0, 0, 0]]),
        check("before", laid.before.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [4, 5, 6, 7, 8, 9, 0, 0]]),
        check("last", laid.last.tolist() == [[2, 3, 6, 7], [0, 3, 4, 5]]),
        check("seen", torch.equal(laid.ancestors, torch.stack((entry, padded)))),
        check("entries", laid.entries()[0] == [[0, 1, 2], [3], [4, 5, 6], [7]]),
        check("room", (rules.extra(shape, 4), rules.of_chain(4, shape)) == (14, 8)),
    ]


def relaxations():
    """A draft claims its own mass and at most delta of its nearest neighbours' mass, never its own mass twice."""
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [-1.0, 0.0]])
    p = torch.tensor([0.4, 0.05, 0.15, 0.4], dtype=F64)
    claims = {
        delta: [float(relaxed.Relaxation.between(vectors, delta=delta).claim(p, token)) for token in range(4)]
        for delta in (0.0, 0.1, 0.3)
    }
    return [
        check("delta 0", claims[0.0] == pytest.approx(p.tolist())),
        check("delta 0.1", claims[0.1] == pytest.approx([0.45, 0.05, 0.2, 0.4])),
        check("delta 0.3", claims[0.3] == pytest.approx([0.6, 0.05, 0.2, 0.6])),
        check("out of range", refuses(lambda: relaxed.Relaxation(torch.zeros(4, 1, dtype=torch.long), 1.5))),
    ]


def memories():
    """What means that memory ended, and what does not."""
    ends = [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
    others = [RuntimeError("shapes differ"), ValueError("out of memory")]

    def reported() -> None:
        with memory.refused_where_memory_ends("lower"):
            raise ends[-1]

    return [
        check("ends", all(map(memory.is_out_of_memory, ends))),
        check("others", not any(map(memory.is_out_of_memory, others))),
        check("reported", refuses(reported)),
    ]


def numbers():
    """What is a number, and what is none."""
    good = arguments.whole_number("n", 5.0), arguments.whole_number("n", np.int64(3)), arguments.real_number("x", 2)
    bad = [
        lambda: arguments.whole_number("n", True),
        lambda: arguments.whole_number("n", 1.5),
        lambda: arguments.whole_number("n", 0, least=1),
        lambda: arguments.real_number("x", math.nan),
        lambda: arguments.real_number("x", 1e39),
        lambda: arguments.real_number("x", "3"),
        lambda: arguments.texts_of(["a \udcff cat"]),
    ]
    return [check("good", good == (5, 3, 2.0)), *(check(str(i), refuses(call)) for i, call in enumerate(bad))]


def requests():
    """A request refuses seeds that it cannot use, and its rows keep their own seeds."""
    prompt = tiny_prompt(tiny_target(0, dim=16), 3)
    asked = request.Request(prompt, grid.Grid(2, 2), SamplingParams(), [4, 5, 6])
    part = asked.rows(slice(1, 3))
    return [
        check("rows", part.seeds == [5, 6] and torch.equal(part.conditions.features, prompt.features[1:])),
        check("too large", refuses(lambda: request.check_seeds([2**63]))),
        check("too small", refuses(lambda: request.check_seeds([3, -1]))),
        check("too few", refuses(lambda: request.Request(prompt, grid.Grid(2, 2), SamplingParams(), [4]))),
        check("verifier", refuses(lambda: request.Request(prompt, grid.Grid(2, 2), SamplingParams(), [1, 2, 3], "?"))),
    ]


def verifiers():
    """Drafts are refused where they do not carry what the verifier needs."""
    target = tiny_target(0, grid=grid.Grid(1, 2), dim=16)
    asked = request.Request(tiny_prompt(target, 1), target.grid, SamplingParams(), [1], "residual")
    return [check("window", refuses(lambda: generate.generate(target, asked, Window(1))))]


def guided_forwards():
    """The guided forward equals two plain forwards whose logits are guided; the states are guided."""
    target = tiny_target(0, grid=grid.Grid(2, 3), dim=16)
    prompt, params = tiny_prompt(target, 2), SamplingParams(cfg_scale=3.0)
    hidden = torch.randn(4, 3, 16, dtype=F64)
    batch, unguided = (BatchParams.alike(each, 2, target.vocab_size, hidden) for each in (params, SamplingParams()))
    scores = forward.scores_of(target, hidden, batch)
    cond, uncond = (target.head(rows) for rows in (hidden[:2], hidden[2:]))
    broken = forward.scores_of(target, hidden.index_fill(0, torch.tensor([1]), math.nan), batch)
    mended = broken.mended().logits
    doubled, alone = batch.rows_of(torch.arange(2)).tolist(), unguided.rows_of(torch.arange(2)).tolist()
    nodes = forward.Nodes(
        torch.zeros(2, 2, dtype=torch.long),
        torch.tensor([[5, 6], [5, 6]]),
        torch.ones(2, 2, 2, dtype=torch.bool).tril(),
    )
    prefilled = target.prefill(prompt, True, 8)
    past_end = forward.forward(target, nodes, prefilled.padding, prefilled.cache, target.grid, batch)
    return [
        check("logits", torch.allclose(scores.log_p, (uncond + 3 * (cond - uncond)).log_softmax(-1))),
        check("states", torch.allclose(scores.states, hidden[2:] + 3 * (hidden[:2] - hidden[2:]))),
        check("rows", (doubled, alone) == ([0, 1, 0, 1], [0, 1])),
        check("broken", broken.broken.tolist() == [[False] * 3, [True] * 3] and not scores.broken.any()),
        check("mended", mended[1].eq(0).all() and torch.equal(mended[0], broken.logits[0])),
        check("past the end", past_end.isfinite().all()),
    ]


def costs():
    """The least time of each width counts, a kept time is used until it is measured anew."""
    calls = []

    def measured(seconds: float):
        def measure() -> dict[int, float]:
            calls.append(seconds)
            return {1: seconds, 2: seconds}

        return measure

    def known(seconds: float, widths=(1, 2), anew: bool = False) -> float:
        return planning.known_seconds("a model of the mutants", list(widths), measured(seconds), anew)[1]

    got = [known(1.0, anew=True), known(2.0), known(3.0, (1, 2, 4)), known(4.0, anew=True), known(5.0)]
    target, clock = tiny_target(0, grid=grid.Grid(1, 2), dim=16), iter([0.1, 0.1, 5.0, 1.0, 2.0, 8.0, 4.0, 6.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning.MidImage, "seconds", lambda self, call: next(clock))
        least = planning.step_seconds(target, [1, 2], 3)
    return [check("known", got == [1.0, 1.0, 3.0, 4.0, 4.0]), check("least", least == {1: 2.0, 2: 1.0})]


def paces():
    """The reach falls to plain AR where drafts fail, is tried again there, and rises where drafts are right."""
    rungs = tuple(pacing.Rung(reach, 1 + 0.1 * reach, 1 + 0.5 * reach) for reach in (0, 1, 3, 7))

    def reaches(skill: float, right: bool, costly: float = 1.0) -> list[int]:
        ladder = tuple(replace(rung, seconds=rung.seconds**costly) for rung in rungs)
        pace, seen = pacing.Pace(7, 12, ladder, skill), []
        for _ in range(60):
            seen.append(pace.reach)
            pace.learn(pace.reach, [pace.reach + 1 if right else 1])
        return seen

    failing, rising = reaches(0.0, False), reaches(-9.0, True)
    return [
        check("falls", failing[0] == 7 and failing[20:].count(0) > 30),
        check("probes", any(failing[30:])),
        check("rises", rising[0] == 0 and rising[-1] == 7),
        check("costs", reaches(0.0, True, costly=9.0)[-1] < 7),
        check("fixed", pacing.Pace(5, 12).reach == 5),
    ]


def batches():
    """A step of two images costs what as many nodes cost, within and beyond the numbers that were timed."""
    rungs = [pacing.Rung(reach, 0.9 + 0.1 * (reach + 1), 1.0) for reach in (0, 1, 3, 7)]
    together = [rung.seconds for rung in pacing.in_batch(rungs, 2)]
    return [
        check(f"{2 * nodes} nodes", abs(got - 0.9 - 0.2 * nodes) < 1e-9)
        for got, nodes in zip(together, (1, 2, 4, 8), strict=True)
    ]


PROOFS = (
    batches,
    distributions,
    choices,
    noises,
    cells,
    commits,
    counts,
    structures,
    relaxations,
    memories,
    numbers,
    requests,
    verifiers,
    guided_forwards,
    costs,
    paces,
)


@pytest.mark.parametrize("proof", PROOFS)
def test_parts_equal_their_definitions(proof):
    assert failed(proof) == []


MUTANTS = {
    # sampling
    "guides away from the prompt": Mutant(
        sampling,
        "guide",
        "in_dtype(scale * (cond - uncond)",
        "in_dtype(scale * (uncond - cond)",
        (distributions,),
    ),
    "guides from the conditional row": Mutant(sampling, "guide", "return uncond +", "return cond +", (distributions,)),
    "multiplies by the temperature": Mutant(sampling, "filtered", "/ params.temp", "* params.temp", (distributions,)),
    "keeps one token fewer of the top k": Mutant(
        sampling, "filtered", "kept < threshold", "kept <= threshold", (distributions,)
    ),
    "forgets top-k": Mutant(sampling, "filtered", "if params.most_k:", "if False:", (distributions,)),
    "forgets top-p": Mutant(sampling, "filtered", "if params.nucleus:", "if False:", (distributions,)),
    "drops the token that reaches top-p": Mutant(
        sampling, "_nucleus", "probs.cumsum(-1) - probs", "probs.cumsum(-1)", (distributions,)
    ),
    "leaves the nucleus in sorted order": Mutant(
        sampling, "_nucleus", "torch.empty_like(logits).scatter_(-1, index, ordered)", "ordered", (distributions,)
    ),
    "is greedy for the smallest logit": Mutant(
        sampling, "_largest", "logits.argmax(-1, keepdim=True)", "logits.argmin(-1, keepdim=True)", (distributions,)
    ),
    "subtracts the noise": Mutant(
        sampling, "gumbel_argmax", "return (scores + noise)", "return (scores - noise)", (choices,)
    ),
    "ignores the noise": Mutant(sampling, "gumbel_argmax", "return (scores + noise)", "return scores", (choices,)),
    # noise
    "reads the ring one slot late": Mutant(noise.GumbelNoise, "at", "% self.ring]", "% self.ring - 1]", (noises,)),
    "reads past the end of the image": Mutant(
        noise.GumbelNoise, "at", "positions.clamp(max=self.positions - 1)", "positions.clamp(max=5)", (noises,)
    ),
    "gives every image the noise of the first": Mutant(
        noise.GumbelNoise, "_draw", "gumbel_rows(self.seeds[row],", "gumbel_rows(self.seeds[0],", (noises,)
    ),
    "never draws dropped positions again": Mutant(
        noise.GumbelNoise, "hold_rows", "not self._from[row] <= start", "not 0 <= start", (noises,)
    ),
    "does not note which positions the ring dropped": Mutant(
        noise.GumbelNoise, "hold_rows", "max(self._from[row], drawn - self.ring)", "self._from[row]", (noises,)
    ),
    "keeps the noise of the last seeds": Mutant(
        noise.GumbelNoise, "restart", "[0] * len(seeds), [0] * len(seeds)", "self._from, self._until", (noises,)
    ),
    "counts positions, not the numbers of each": Mutant(
        noise, "gumbel_rows", "counter=first * blocks", "counter=first", (noises,)
    ),
    "loses a carry": Mutant(noise, "wide_product", "+ high(middle)", "", (noises,)),
    "shifts with the sign": Mutant(noise, "high", "& LOW", "", (noises,)),
    "starts the counter at 0 on a device": Mutant(
        noise, "uniform_blocks", "arange(1, count * blocks + 1,", "arange(count * blocks,", (noises,)
    ),
    "gives two images one key on a device": Mutant(
        noise, "uniform_blocks", "[given[0], torch", "[given[0][:1], torch", (noises,)
    ),
    "takes one logarithm": Mutant(noise, "gumbel", ".log_().neg_().log_().neg_()", ".log_().neg_()", (noises,)),
    # grid and canvas
    "counts by columns": Mutant(
        grid.Grid, "coordinates", "positions // self.width", "positions // self.height", (cells,)
    ),
    "swaps row and column": Mutant(grid.Grid, "position", "row * self.width + col", "col * self.width + row", (cells,)),
    "commits past the end": Mutant(
        canvas.Canvas,
        "commit",
        "min(start + len(tokens), self.grid.size)",
        "min(start + 1, self.grid.size)",
        (commits,),
    ),
    "forgets where tokens came from": Mutant(
        canvas.Canvas, "commit", "torch.tensor(origins[: end - start])", "RECOVERED", (commits,)
    ),
    "loses the caption's state": Mutant(canvas.Canvas, "blank", "states[:, 0] = caption_state", "pass", (commits,)),
    "is done when one image is": Mutant(canvas.Canvas, "done", "all(count", "any(count", (commits,)),
    # counts
    "does not count the prefill": Mutant(window, "window_stats", "nfe=len(history)", "nfe=len(history) - 1", (counts,)),
    "counts the recovered token as accepted": Mutant(
        window, "window_stats", "count - (origins[row][end - 1] == RECOVERED)", "count", (counts,)
    ),
    "counts nodes past the image": Mutant(window, "window_stats", "min(reach, size - drawn[row])", "reach", (counts,)),
    "counts finished images": Mutant(stats.Stats, "record", "if not live[row]:", "if False:", (counts,)),
    "counts a rejected depth as accepted": Mutant(stats.Stats, "record", "depth < kept", "depth <= kept", (counts,)),
    "divides by forwards alone": Mutant(
        stats.Stats,
        "accept_length",
        "self.committed / (self.nfe * self.images)",
        "self.committed / self.nfe",
        (counts,),
    ),
    # structure
    "puts structure tokens behind the last row": Mutant(
        structure, "lay_out", "& (positions < grid.size - 1)", "", (structures,)
    ),
    "shows an entry the structure tokens after it": Mutant(
        structure, "lay_out", "offset[:, None, :] <= offset[:, :, None]", "offset[:, None, :] >= 0", (structures,)
    ),
    "takes the state of a node's own token": Mutant(
        structure, "lay_out", "last=stop - 1", "last=stop - count", (structures,)
    ),
    "forgets the structure tokens of earlier rows": Mutant(
        structure.Structure,
        "before",
        "len(self.end_of_row) * (positions // grid.width)",
        "0 * positions",
        (structures,),
    ),
    "shows padding to the nodes": Mutant(
        structure, "lay_out", "seen &= ~filling[:, :, None] & ~filling[:, None, :]", "pass", (structures,)
    ),
    "counts room for full rows only": Mutant(
        structure.Structure, "of_chain", "-(-nodes // grid.width)", "(nodes // grid.width - 1)", (structures,)
    ),
    # the lossy verifier
    "claims more than delta": Mutant(relaxed.Relaxation, "claim", "(mass <= self.delta)", "(mass < 9)", (relaxations,)),
    "claims a token's mass twice": Mutant(
        relaxed.Relaxation, "between", "alike.diagonal(first).fill_(-torch.inf)", "pass", (relaxations,)
    ),
    # errors and bounds
    "takes every RuntimeError for the end of memory": Mutant(
        memory, "is_out_of_memory", "any(sign in str(error) for sign in SIGNS)", "True", (memories,)
    ),
    "takes True for 1": Mutant(arguments, "_plain", "and not isinstance(value, bool)", "", (numbers,)),
    "cuts fractions off": Mutant(arguments, "whole_number", "and number.is_integer()", "", (numbers,)),
    "takes NaN": Mutant(arguments, "real_number", "not math.isfinite(real)", "math.isinf(real)", (numbers,)),
    "takes half a surrogate pair": Mutant(arguments, "texts_of", "text.encode()", "pass", (numbers,)),
    "takes any seed": Mutant(request, "check_seeds", "0 <= seed <= MAX_SEED", "seed < 2**70", (requests,)),
    "gives a part of a batch the first seeds": Mutant(
        request.Request, "rows", "self.seeds[rows]", "self.seeds[: len(self.seeds[rows])]", (requests,)
    ),
    "verifies drafts without their q": Mutant(
        request.Request, "check_drafts", "self.drafts_for not in lossless_with", "False", (verifiers,)
    ),
    "does not ask what drafts carry": Mutant(
        generate, "generate", "request.check_drafts(drafter.lossless_with)", "pass", (verifiers,)
    ),
    # the guided forward
    "guides with the rows swapped": Mutant(
        forward, "guided_state", "params.uncond)", "params.cond)", (guided_forwards,)
    ),
    "puts the rows of an image side by side": Mutant(
        sampling.Rows, "of", "len(params) + place", "image + 1 + place", (guided_forwards,)
    ),
    "asks for positions past the image": Mutant(
        forward, "forward", "nodes.positions.clamp(max=grid.size - 1)", "nodes.positions", (guided_forwards,)
    ),
    "calls broken logits sound": Mutant(
        forward,
        "without_distribution",
        "return ~kept.amax(-1).isfinite()",
        "return torch.zeros_like(logits[..., 0], dtype=torch.bool)",
        (guided_forwards,),
    ),
    # costs
    "keeps the longest time": Mutant(planning, "_least_seconds", "min(runs)", "max(runs)", (costs,)),
    "times the warm-up": Mutant(planning, "_least_seconds", "if turn:", "if True:", (costs,)),
    "never measures anew": Mutant(planning, "known_seconds", "and not anew", "", (costs,)),
    # pace
    "never probes": Mutant(pacing.Pace, "turn", "if self.rest <= 0:", "if False:", (paces,)),
    "does not count rejected drafts": Mutant(
        pacing.Estimate, "update", "self.weight + accepted + rejected", "self.weight + accepted", (paces,)
    ),
    "does not look at what a step costs": Mutant(pacing.Pace, "speed", "/ rung.seconds", "", (paces,)),
    "learns nothing": Mutant(pacing.Pace, "learn", "estimate.update(seen, accepted, rejected)", "pass", (paces,)),
    "lets a batch cost what one image costs": Mutant(
        pacing, "in_batch", "at(images * (rung.reach + 1))", "at(rung.reach + 1)", (batches,)
    ),
    "lets nodes beyond those that were timed cost nothing": Mutant(
        pacing, "in_batch", "+ slope * max(count - nodes[-1], 0)", "", (batches,)
    ),
    "takes times that lack a width": Mutant(planning.StepCosts, "at", ">= set(widths)", ">= {widths[0]}", (costs,)),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_part_differs_from_its_definition_for_a_mutant(name, monkeypatch):
    mutant = MUTANTS[name]
    mutant.install(monkeypatch)
    for proof in mutant.proofs:
        try:
            broken = failed(proof)
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            broken = [error]
        assert broken, f"{proof.__name__} passed in spite of: {name}"
