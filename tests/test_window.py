"""Window decoding: plain AR's tokens, from steps that a device can repeat without the host."""

import copy
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hawk.decoding import recording
from hawk.decoding.cache import FixedCache
from hawk.decoding.canvas import RECOVERED
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.noise import GumbelNoise
from hawk.decoding.recording import Recording, Recordings, on_device, replay
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.decoding.trees import NoDrafter
from hawk.decoding.window import CHANGING, LAG, SOURCES, WindowState, advance, finish, first_window
from hawk.errors import HawkError
from hawk.proofs.losslessness import EXACT_SETTINGS
from hawk.proofs.tiny import RandomDrafter, tiny_prompt, tiny_target

SEEDS = [1, 2, 3]
GUIDED = SamplingParams(temperature=0.7, top_k=5, top_p=0.9, cfg_scale=2.0)
WINDOWS = [Window(0), Window(1), Window(5), Window(5, above=False), Window(30), Window(3, keeps=False)]
COVER = (*EXACT_SETTINGS[2:5], SamplingParams(temperature=0.0, cfg_scale=3.0))
"""Settings that have every value of every parameter in EXACT_SETTINGS."""
FAR = (Grid(1, 9), Grid(9, 1), Grid(3, 5), Grid(1, 1))


def pairs(windows, others, every: int) -> list:
    """All pairs, of which the fast tests take one in `every`, with every window and every other value among them."""
    return [
        pytest.param(window, other, marks=() if (i + j) % every == 0 else pytest.mark.proofs)
        for i, window in enumerate(windows)
        for j, other in enumerate(others)
    ]


@pytest.fixture(scope="module")
def target():
    return tiny_target(0)


@pytest.fixture(scope="module")
def prompt(target):
    return tiny_prompt(target, len(SEEDS))


@pytest.fixture(scope="module")
def plain_of(target, prompt):
    """Plain AR's tokens of a grid under some settings, drawn once."""
    return cache(lambda grid, params: generate(target, Request(prompt, grid, params, SEEDS), NoDrafter()).tokens)


def begun_of(target, request, window) -> WindowState:
    with torch.inference_mode():
        return first_window(target, request, window)


def begun(target, prompt, window, params=GUIDED, grid=None) -> WindowState:
    return begun_of(target, Request(prompt, grid or target.grid, params, SEEDS), window)


def replayed(target, state: WindowState) -> WindowState:
    """The state after the loop that a GPU runs, each step in place of its recording."""
    with torch.inference_mode():
        fixed = on_device(state)
        replay(fixed, lambda: advance(target, fixed, fixed.window.reach), None)
    return fixed


# --- the tokens


@pytest.mark.parametrize(("window", "grid"), pairs(WINDOWS, FAR, 2))
def test_other_grids_than_the_targets_own(window, grid, target, prompt):
    plain = generate(target, Request(prompt, grid, GUIDED, SEEDS), NoDrafter())
    assert torch.equal(generate(target, Request(prompt, grid, GUIDED, SEEDS), window).tokens, plain.tokens)
    state = replayed(target, begun(target, prompt, window, grid=grid))
    assert torch.equal(state.tokens[:, : grid.size], plain.tokens)


@pytest.mark.parametrize(
    ("settings", "grid"),
    [
        pytest.param(COVER, Grid(3, 4), id="cover"),
        pytest.param(EXACT_SETTINGS, Grid(4, 6), id="full", marks=pytest.mark.proofs),
    ],
)
@pytest.mark.parametrize("window", WINDOWS)
def test_a_host_that_reads_each_step_and_one_that_is_late_draw_plain_ars_tokens(
    window, settings, grid, target, prompt, plain_of
):
    for params in settings:
        plain = plain_of(grid, params)
        state = replayed(target, begun(target, prompt, window, params, grid))
        assert torch.equal(state.tokens[:, : grid.size], plain)
        hosted = generate(target, Request(prompt, grid, params, SEEDS), window)
        assert torch.equal(hosted.tokens, plain)
        assert int(state.steps.max()) == hosted.stats.nfe  # the steps that were under way at the end are nobody's
        assert torch.equal(state.origins[:, : grid.size], hosted.origins)


@pytest.mark.parametrize(
    ("window", "grid"), pairs((Window(0), Window(7), Window(7, above=False)), (Grid(8, 9), Grid(15, 16)), 2)
)
def test_the_noise_that_a_late_host_holds_is_wide_enough(window, grid, target, prompt, monkeypatch):
    """A window of noise that lacks a row would be read all the same: every row that is read must be held."""
    read, at = [], GumbelNoise.at

    def checked(noise: GumbelNoise, positions):
        for row, asked in enumerate(positions.clamp(max=noise.positions - 1).tolist()):
            read.append(noise._from[row] <= min(asked) and max(asked) < noise._until[row])
        return at(noise, positions)

    monkeypatch.setattr(GumbelNoise, "at", checked)
    replayed(target, begun(target, prompt, window, SamplingParams(temperature=0.1, cfg_scale=2.0), grid))
    assert read
    assert all(read)


# --- on a device


class NothingOnTheHost(TorchDispatchMode):
    """Notes every operation that touches a tensor of the host; meta tensors refuse to be read by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.touched = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        self.touched += [str(function) for tensor in tensors if tensor.device.type != "meta"]
        return result


def on_meta(state: WindowState) -> dict[str, Any]:
    """The tensors of a state beside its cache and noise, on PyTorch's meta device."""
    params = state.params.with_tensors(lambda tensor: tensor.to("meta"))
    return {name: getattr(state, name).to("meta") for name in (*CHANGING, "chain")} | {"params": params}


def without_numbers(state: WindowState) -> WindowState:
    """The same state on PyTorch's meta device, whose tensors have shapes and no numbers that a host could read."""
    cache = state.cache
    assert isinstance(cache, FixedCache)
    far = FixedCache(cache.keys.to("meta"), cache.values.to("meta"), cache.lengths, None, cache.ends.to("meta"))
    noise = copy.copy(state.noise)
    noise.held = noise.held.to("meta")
    return replace(state, cache=far, noise=noise, **on_meta(state))


@pytest.mark.parametrize("params", EXACT_SETTINGS)
@pytest.mark.parametrize("window", [Window(5), Window(0), Window(5, above=False)])
def test_a_step_reads_nothing_of_the_device(window, params, target, prompt):
    state = without_numbers(on_device(begun(target, prompt, window, params)))
    far = copy.deepcopy(target).to("meta")
    far.angle_tables.clear()
    with torch.no_grad(), NothingOnTheHost() as watch:
        advance(far, state, window.reach)
    assert watch.operations > 50
    assert watch.touched == []


def test_a_step_that_reads_the_device_would_be_noticed(target, prompt):
    state = begun(target, prompt, Window(5))  # its cache asks the host where a row ends
    state = replace(state, **on_meta(state))
    far = copy.deepcopy(target).to("meta")
    with torch.no_grad(), pytest.raises((NotImplementedError, RuntimeError)):
        advance(far, state, 5)


@pytest.mark.slow
def test_a_step_is_one_graph_for_the_compiler():
    """No graph break: what TorchDynamo captures once draws the whole image, as a CUDA graph would.

    In a process of its own: shape checks at every call are not for a compiler.
    """
    script = Path(__file__).parent / "fixtures" / "compiled_window.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr


def test_a_recording_serves_the_next_image_of_its_shape(target, prompt, monkeypatch):
    """`Recordings` of steps that are not recorded: CUDA is not needed to tell whether states are mixed up."""
    recorded = []

    def record(target, state, engine, pool):
        fixed = on_device(state)
        recorded.append(fixed)
        return Recording(target, fixed, lambda: advance(target, fixed, fixed.window.reach))

    monkeypatch.setattr(recording, "record", record)
    recordings = Recordings()
    for seeds, params in (([1, 2, 3], GUIDED), ([7, 8, 9], GUIDED), ([7, 8, 9], SamplingParams()), ([4], GUIDED)):
        rows = prompt.rows(slice(0, len(seeds)))
        request = Request(rows, target.grid, params, seeds)
        plain = generate(target, request, NoDrafter())
        with torch.inference_mode():
            known = recordings.lend(target, partial(first_window, target, request, Window(5)))
            replay(known.state, known.step, None)
            recordings.take_back(known)
        assert torch.equal(known.state.tokens[:, : target.grid.size], plain.tokens)
    assert len(recorded) == len(recordings.kept) == 3  # the second image took the first one's


def recordings_on_cpu(monkeypatch) -> list[WindowState]:
    """Let the engine "graph" repeat a step as it is; returns the list of the states that it records."""
    states, record = [], recording.record

    def noted(*arguments):
        made = record(*arguments)
        states.append(made.state)
        return made

    monkeypatch.setattr(recording, "captured", lambda call, device, pool: call)
    monkeypatch.setattr(recording, "record", noted)
    return states


def test_methods_by_turns_keep_their_recordings(monkeypatch):
    """The recording that was used longest ago goes first, and no other target takes a recording over."""
    states = recordings_on_cpu(monkeypatch)
    monkeypatch.setattr(recording, "MOST_RECORDINGS", 3)
    targets = [tiny_target(seed, grid=Grid(2, 4), dim=16) for seed in (0, 1)]
    recordings = Recordings("graph")
    for target, reach, made in ((0, 0, 1), (0, 3, 2), (0, 0, 2), (1, 0, 3), (0, 0, 3), (1, 3, 4), (0, 0, 4), (0, 3, 5)):
        request = Request(tiny_prompt(targets[target], 1), Grid(2, 4), GUIDED, [5])
        drawn = generate(targets[target], request, Window(reach), recordings=recordings)
        assert torch.equal(drawn.tokens, generate(targets[target], request, NoDrafter()).tokens)
        assert len(states) == made
        assert len(recordings.kept) <= 3
    assert all(key[0] == id(kept.target) for key, kept in recordings.kept.items())


def test_prompts_of_other_lengths_take_the_same_recording(monkeypatch):
    """The image and its window need 60 entries; a prompt adds 1 to 5, and attention reads keys in blocks of 64."""
    states, target = recordings_on_cpu(monkeypatch), tiny_target(0, grid=Grid(5, 10), dim=16)
    prompts, recordings = tiny_prompt(target, 5), Recordings("graph")
    for row in range(5):
        request = Request(prompts.rows(slice(row, row + 1)), target.grid, GUIDED, [row])
        generate(target, request, Window(9), recordings=recordings)
    assert len(states) == 1


def test_an_image_draws_the_same_after_one_that_broke(monkeypatch):
    """A NaN that the cache of a recording still holds must not reach the next image."""
    states, target = recordings_on_cpu(monkeypatch), tiny_target(0, grid=Grid(2, 4), dim=16)
    request, recordings = Request(tiny_prompt(target, 1), Grid(2, 4), GUIDED, [5]), Recordings("graph")
    expected = generate(target, request, Window(3), recordings=recordings).tokens
    with torch.inference_mode():
        states[0].cache.keys[:, :, :, 3:] = torch.nan
        states[0].cache.values[:, :, :, 3:] = torch.nan
    assert torch.equal(generate(target, request, Window(3), recordings=recordings).tokens, expected)
    assert len(states) == 1


def test_the_cache_is_not_held_twice(monkeypatch):
    """The first image's cache becomes that of the recording; later ones are freed before the first step."""
    states, caches = recordings_on_cpu(monkeypatch), []
    target = tiny_target(0, grid=Grid(2, 4), dim=16)
    prefill, advanced = target.prefill, []

    def noted(*arguments):
        prefilled = prefill(*arguments)
        caches.append(weakref.ref(prefilled.cache.keys))
        return prefilled

    def watched(*arguments):
        advanced.append([cache() is not None for cache in caches])
        return advance(*arguments)

    monkeypatch.setattr(target, "prefill", noted)
    monkeypatch.setattr(recording, "advance", watched)
    recordings = Recordings("graph")
    for seed in (1, 2):
        request = Request(tiny_prompt(target, 1), Grid(2, 4), GUIDED, [seed])
        generate(target, request, Window(3), recordings=recordings)
    assert states[0].cache.keys is caches[0]()
    assert advanced[0] == [True]
    assert advanced[-1] == [True, False]


# --- what a device may refuse


def failing(error: Exception):
    def captured(call, device, pool=None):
        raise error

    return captured


FAILURES = [
    ("graph", RuntimeError("operation not permitted when stream is capturing")),
    ("compiled", torch._dynamo.exc.FailOnRecompileLimitHit("recompile_limit reached")),
    ("compiled", torch._dynamo.exc.Unsupported("graph break")),
    ("compiled", ValueError("no such kernel")),
]


@pytest.mark.parametrize(("engine", "error"), FAILURES, ids=lambda given: type(given).__name__)
def test_what_cannot_be_recorded_is_one_line(engine, error, monkeypatch):
    monkeypatch.setattr(recording, "captured", failing(error))
    target = tiny_target(0, grid=Grid(1, 2), dim=16)
    request = Request(tiny_prompt(target, 1), target.grid, GUIDED, [5])
    with pytest.raises(HawkError, match="choose --engine eager"):
        generate(target, request, Window(1), recordings=Recordings(engine))


def test_many_shapes_may_be_compiled(monkeypatch):
    """Pricing compiles a step at 13 widths; torch's own limit is 8 for one function."""

    def called_twice(call, device, pool):
        call()
        call()
        return call

    monkeypatch.setattr(recording, "captured", called_twice)
    counted, monkeypatch_compile = [], torch.compile

    def compiled(call, **arguments):
        return monkeypatch_compile(call, backend=lambda graph, inputs: counted.append(1) or graph, **arguments)

    monkeypatch.setattr(torch, "compile", compiled)

    def step(width: int) -> Tensor:
        return torch.zeros(width) + width

    for width in range(2, 15):
        recording.recorded(partial(step, width), "compiled", torch.device("cpu"))
    assert len(counted) == 13


def test_a_full_gpu_drops_other_recordings_and_then_says_what_to_lower(monkeypatch):
    states, target = recordings_on_cpu(monkeypatch), tiny_target(0, grid=Grid(2, 4), dim=16)
    request, recordings = Request(tiny_prompt(target, 1), target.grid, GUIDED, [5]), Recordings("graph")
    expected = generate(target, request, Window(3), recordings=recordings).tokens
    prefill = target.prefill

    def full(*arguments):
        if recordings.kept:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return prefill(*arguments)

    monkeypatch.setattr(target, "prefill", full)
    assert torch.equal(generate(target, request, Window(1), recordings=recordings).tokens, expected)
    assert len(states) == 2
    monkeypatch.setattr(target, "prefill", failing(torch.OutOfMemoryError("Tried to allocate 2 GiB")))
    for each, drafter in ((recordings, Window(1)), (None, Window(1)), (None, NoDrafter())):
        with pytest.raises(HawkError, match="draw smaller images, fewer of them at once"):
            generate(target, request, drafter, recordings=each)


# --- logits that are not finite


def damaged(dtype: torch.dtype, scale: float):
    """A tiny target one of whose weights is `scale` times as large, or NaN."""
    target = tiny_target(0, dtype, grid=Grid(2, 4), dim=16)
    target.layers[0].feed_forward.w2.weight *= scale
    return target


DAMAGES = {
    "a NaN weight": (torch.float32, torch.nan, "not finite in float32: its weights or its config.json are damaged"),
    "float16 overflow": (torch.float16, 1e5, "not finite in float16, which overflows: use dtype bfloat16 or float32"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("way", ["window", "replayed", "coupled", "residual", "traversal"])
def test_logits_that_are_not_finite_are_one_line(way, damage):
    dtype, scale, line = DAMAGES[damage]
    target = damaged(dtype, scale)
    drafter = Window(3) if way in ("window", "replayed") else NoDrafter()
    verifier = "coupled" if isinstance(drafter, Window) else way
    request = Request(tiny_prompt(target, 2), target.grid, GUIDED, [1, 2], verifier)
    with pytest.raises(HawkError, match=line):
        drawn_in(way, target, request, drafter)


def drawn_in(way, target, request, drafter):
    if way == "replayed":
        return finish(replayed(target, begun_of(target, request, drafter)))
    return generate(target, request, drafter)


class LateNaN:
    """A target whose logits are NaN at one position of the grid, as if its state had overflowed there."""

    def __init__(self, target, position: int) -> None:
        self.target, self.position = target, position

    def __getattr__(self, name):
        return getattr(self.target, name)

    def forward_nodes(self, tokens, positions, ancestors, padding, cache, grid):
        hidden = self.target.forward_nodes(tokens, positions, ancestors, padding, cache, grid)
        return hidden.masked_fill((positions == self.position)[..., None], torch.nan)


@pytest.mark.parametrize("drafter", [Window(3), RandomDrafter(12, carries_q=True)])
@pytest.mark.parametrize("position", [4, 7])
def test_a_nan_in_the_middle_counts_where_the_image_commits_its_node(drafter, position):
    """The state of the last token, at position 7, is scored as a draft at most: nothing is drawn from it."""
    target = tiny_target(0, grid=Grid(2, 4), dim=16)
    verifier = drafter.lossless_with[-1]
    request = Request(tiny_prompt(target, 2), target.grid, GUIDED, [1, 2], verifier)
    late = LateNaN(target, position)
    if position < target.grid.size - 1:
        with pytest.raises(HawkError, match="not finite in float64"):
            generate(late, request, drafter)
    else:
        assert torch.equal(generate(late, request, drafter).tokens, generate(target, request, drafter).tokens)


@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize("position", [-1, 4])
def test_nobody_is_told_of_a_token_that_had_no_distribution(engine, position, monkeypatch):
    """Also where the host is `LAG` steps late: the tokens told before the error are those of the undamaged target."""
    monkeypatch.setattr(recording, "captured", lambda call, device, pool=None: call)
    target = tiny_target(0, grid=Grid(2, 4), dim=16)
    request = Request(tiny_prompt(target, 1), target.grid, GUIDED, [1])
    expected, told, late = generate(target, request, Window(2)).tokens, [], LateNaN(target, position)
    if position < 0:  # the token after the prompt has no distribution
        monkeypatch.setattr(target, "prefill", partial(nan_after_the_prompt, target.prefill))

    def on_step(canvas, stats):
        told.append(canvas.committed)
        assert torch.equal(canvas.tokens[:, : canvas.committed[0]], expected[:, : canvas.committed[0]])

    with pytest.raises(HawkError, match="not finite in float64"):
        generate(late, request, Window(2), on_step, Recordings(engine))
    # The node at position 4 says what comes at position 5, so five tokens have a distribution.
    assert bool(told) == (position >= 0)
    assert all(committed <= [5] for committed in told)


def nan_after_the_prompt(prefill, *arguments):
    prefilled = prefill(*arguments)
    return replace(prefilled, hidden=torch.full_like(prefilled.hidden, torch.nan))


# --- what is counted


def test_the_counts_are_those_of_the_image(target, prompt):
    drawn = generate(target, Request(prompt, target.grid, GUIDED, SEEDS), Window(5))
    stats, cells = drawn.stats, len(SEEDS) * target.grid.size
    assert drawn.source_names == SOURCES
    assert stats.images == len(SEEDS)
    assert stats.committed == cells
    kept = int((drawn.origins != RECOVERED).sum())
    assert sum(stats.accepted_by_source.values()) == kept > 0
    assert sum(stats.accepted_by_depth) == kept
    assert stats.accepted_by_depth == sorted(stats.accepted_by_depth, reverse=True)
    assert stats.verified_by_depth[0] <= (stats.nfe - 1) * len(SEEDS)
    assert len(stats.verified_by_depth) == 5
    assert stats.nodes > stats.nfe


def test_plain_ar_counts_a_forward_a_token(target, prompt):
    stats = generate(target, Request(prompt, target.grid, GUIDED, SEEDS), Window(0)).stats
    assert (stats.nfe, stats.nodes, stats.accept_length) == (target.grid.size, 3 * target.grid.size, 1.0)
    assert stats.accepted_by_source == {}
    same = generate(target, Request(prompt, target.grid, GUIDED, SEEDS), NoDrafter()).stats
    assert (same.nfe, same.nodes, same.committed) == (stats.nfe, stats.nodes, stats.committed)


def test_a_window_that_keeps_nothing_costs_a_forward_a_token(target, prompt):
    stats = generate(target, Request(prompt, target.grid, GUIDED, SEEDS), Window(3, keeps=False)).stats
    assert stats.nfe == target.grid.size
    assert stats.accepted_by_source == {}


def test_progress_is_told_step_by_step(target, prompt):
    told = []
    drawn = generate(
        target,
        Request(prompt, target.grid, GUIDED, SEEDS),
        Window(5),
        on_step=lambda c, s: told.append((s.nfe, c.committed[:])),
    )
    assert [nfe for nfe, _ in told] == list(range(2, drawn.stats.nfe + 1))
    assert told[-1][1] == [target.grid.size] * len(SEEDS)


def test_a_draft_repeats_the_cell_above_where_nothing_was_said(target, prompt):
    state = begun(target, prompt, Window(9))  # a row is six cells
    first = state.tokens[:, :1]
    assert torch.equal(state.tokens[:, 1:10], first.expand(-1, 9))
    with torch.inference_mode():
        state.tokens[:, :10] = torch.arange(10)
        state.committed[:] = torch.tensor([4, 5, 10])
        from hawk.decoding.window import enter

        enter(state, torch.full((3, 1), 9), 9)
    # position 10 and 11 repeat 4 and 5; 12 .. 15 what is above: 6 .. 9; 16, 17 are 10's and 11's
    assert state.tokens[2, 10:19].tolist() == [4, 5, 6, 7, 8, 9, 4, 5, 6]
    assert state.tokens[0, 4:13].tolist() == [4, 5, 6, 7, 8, 9, 4, 5, 6]
    assert (state.origins[2, 10:19] == SOURCES.index("above")).all()


def test_a_window_takes_no_other_verifier(target, prompt):
    with pytest.raises(HawkError, match="need the verifier coupled"):
        generate(target, Request(prompt, target.grid, GUIDED, SEEDS, "residual"), Window(5))


def test_a_fixed_cache_holds_what_the_other_holds(target, prompt):
    """Entry by entry, after windows of which only a part was kept."""
    state = begun(target, prompt, Window(4))
    fixed = on_device(state)
    with torch.inference_mode():
        for _ in range(3):
            for each in (state, fixed):
                each.noise.hold(0, 0, 24), each.noise.hold(1, 0, 24), each.noise.hold(2, 0, 24)
                advance(target, each, 4)
    ends: Float[Tensor, "6"] = fixed.cache.committed()
    assert ends.tolist() == state.cache.lengths
    for row, end in enumerate(ends.tolist()):
        assert torch.equal(fixed.cache.keys[:, row, :, :end], state.cache.keys[:, row, :, :end])
        assert torch.equal(fixed.cache.values[:, row, :, :end], state.cache.values[:, row, :, :end])


def test_the_host_is_no_later_than_it_says():
    from hawk.decoding.recording import Sent

    numbers = torch.zeros(2, dtype=torch.long)
    sent, heard = Sent(), []
    for turn in range(6):
        numbers += 1
        sent.send(numbers)
        heard.append(sent.receive(LAG))
        assert heard[-1] == ([turn + 1 - LAG] * 2 if turn >= LAG else None)
