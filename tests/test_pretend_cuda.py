"""Every method on a device that is played on the CPU: tensors on two devices, wrong generators and host reads show."""

import gc
import weakref

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

import hawk
from fixtures.pretend_cuda import DEVICE, moved, on_cuda, pretend_cuda, rehearsed
from fixtures.tiny_transformers import tiny
from hawk.decoding import noise, recording, trees
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.noise import GumbelNoise
from hawk.decoding.recording import Recordings
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.drafters.methods import METHODS
from hawk.proofs.tiny import tiny_drafters, tiny_prompt, tiny_target
from hawk.training.drafters.grids import Drawing, draw_on_policy

PARAMS = SamplingParams(temperature=0.9, top_k=8, top_p=0.95, cfg_scale=2.0)
SEEDS = [1, 2]
GRID = Grid(2, 4)


def modules_of(drafter) -> list[nn.Module]:
    """The networks that a drafter or its sources hold."""
    holders = [drafter, *getattr(drafter, "sources", [])]
    return [each for holder in holders for each in vars(holder).values() if isinstance(each, nn.Module)]


def small_target():
    return tiny_target(0, grid=GRID, dim=16)


def request_of(target, verifier="coupled", seeds=SEEDS) -> Request:
    return Request(tiny_prompt(target, len(seeds)), target.grid, PARAMS, seeds, verifier)


def counted_captures(mode, monkeypatch) -> list[torch.device]:
    """The devices on which steps are captured from now on, one entry for each capture."""
    captures, stand_in = [], rehearsed(mode)

    def captured(call, device, pool=None):
        captures.append(device)
        return stand_in(call, device, pool)

    monkeypatch.setattr(recording, "captured", captured)
    return captures


FAST = ("ar", "medusa", "sjd", "hawk")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.proofs) for name in METHODS if name != "lantern"],
)
def test_a_method_draws_on_cuda_what_it_draws_on_the_cpu(name):
    target = small_target()
    drafter, verifier = tiny_drafters(target)[name]
    expected = generate(target, request_of(target, verifier), drafter).tokens
    moved(target)
    for module in modules_of(drafter):
        moved(module)
    with pretend_cuda():
        drawn = generate(target, request_of(target, verifier), drafter)
        assert drawn.tokens.device == DEVICE
        assert torch.equal(drawn.tokens.cpu(), expected)


@pytest.mark.parametrize(
    ("window", "engine"),
    [(Window(0), "graph"), (Window(3), "graph"), (Window(3), "compiled"), (Window(3, above=False), "graph")],
)
def test_a_recorded_step_reads_nothing_of_the_device(window, engine, monkeypatch):
    target, others = small_target(), [7, 8]
    expected = [generate(target, request_of(target, seeds=seeds), window).tokens for seeds in (SEEDS, others)]
    moved(target)
    with pretend_cuda() as mode:
        monkeypatch.setattr(recording, "compiled", lambda call: call)
        monkeypatch.setattr(recording, "captured", rehearsed(mode))
        recordings = Recordings(engine)
        for seeds, tokens in zip((SEEDS, others), expected, strict=True):
            drawn = generate(target, request_of(target, seeds=seeds), window, recordings=recordings)
            assert torch.equal(drawn.tokens.cpu(), tokens)
        assert len(recordings.kept) == 1


def test_a_recorded_step_that_reads_the_device_is_noticed(monkeypatch):
    target = moved(small_target())
    forward = target.forward_nodes

    def reading(tokens, *rest):
        assert int(tokens.max()) < target.vocab_size
        return forward(tokens, *rest)

    monkeypatch.setattr(target, "forward_nodes", reading)
    with pretend_cuda() as mode:
        monkeypatch.setattr(recording, "captured", rehearsed(mode))
        with pytest.raises(RuntimeError, match="the host reads a value of the device while a step is recorded"):
            generate(target, request_of(target), Window(3), recordings=Recordings("graph"))


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_grids_for_training_are_drawn_by_windows_with_one_recording(engine, monkeypatch, tmp_path):
    """Three batches of grids, and a drafter learns from the same tokens as on the CPU."""

    def drawing(target):
        return Drawing(lambda start, count: tiny_prompt(target, count), target.grid, PARAMS, batch=2)

    target = small_target()
    expected = draw_on_policy(target, drawing(target), 6, tmp_path / "cpu")
    moved(target)
    with pretend_cuda() as mode:
        captures = counted_captures(mode, monkeypatch)
        monkeypatch.setattr(trees, "draw", None)
        drawn = draw_on_policy(target, drawing(target), 6, tmp_path / "cuda", Recordings(engine))
    assert torch.equal(drawn, expected)
    assert len(captures) == (engine == "graph")


def generated(model, ids, grid, **more) -> list[list[int]]:
    """The ids that `model.generate(ids, custom_generate=hawk_generate)` returns."""
    settings = GenerationConfig(do_sample=True, max_length=99)
    size = {"height": grid.height, "width": grid.width, "seed": 3, "method": "scd"}
    return hawk.hawk_generate(model, ids, [], [], settings, **{**size, **more}).tolist()


@pytest.mark.proofs
def test_a_second_generate_call_captures_nothing_until_the_weights_move(monkeypatch):
    one, ids = tiny("emu3"), torch.tensor([[1, 5, 6]])
    expected = generated(one.hf, ids, one.grid)
    grid, model = one.grid, moved(one.hf)
    del one
    with pretend_cuda() as mode:
        captures, ids = counted_captures(mode, monkeypatch), on_cuda(ids)
        assert [generated(model, ids, grid) for _ in range(2)] == [expected] * 2
        assert len(captures) == 1
        for method in ("ar", "scd", "ar"):
            generated(model, ids, grid, method=method)
        assert len(captures) == 2
        head = model.lm_head._parameters
        head["weight"] = on_cuda(head["weight"].clone())  # as a move to another device and back
        assert generated(model, ids, grid) == expected
        assert len(captures) == 3
    gone = weakref.ref(model)
    del model, head
    gc.collect()
    assert gone() is None


def test_one_call_draws_the_noise_of_all_rows(monkeypatch):
    """The same numbers as on a CPU, for rows whose frontiers differ, in a few calls for the whole image."""
    seeds, positions, vocab = [3, 9, 2**62], 200, 7
    whole = GumbelNoise(seeds, positions, vocab, torch.zeros(0)).rows(torch.arange(positions).expand(3, positions))
    calls, blocks = [], noise.uniform_blocks

    def counted(seeds, *rest):
        calls.append(len(seeds))
        return blocks(seeds, *rest)

    monkeypatch.setattr(noise, "uniform_blocks", counted)
    with pretend_cuda():
        held = GumbelNoise(seeds, positions, vocab, torch.zeros(0, device="cuda"), ring=96)
        for start in range(0, positions - 30, 5):
            asked = torch.tensor([[start, start + 9], [start + 17, start + 20], [start // 2, start // 2 + 4]])
            drawn = held.rows(asked.to("cuda")).cpu()
            torch.testing.assert_close(
                drawn, torch.stack([whole[row, asked[row]] for row in range(3)]), rtol=1e-6, atol=0
            )
    assert len(calls) <= 3 * positions / (4 * 16) + 1
    assert sum(calls) <= 3 * (positions // 16 + 1) + 3 * 3
