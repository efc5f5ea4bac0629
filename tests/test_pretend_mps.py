"""An Apple GPU that is played on the CPU: no float64, no complex numbers, nothing of CUDA. No Mac is needed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fixtures.pretend_cuda import moved, pretend_mps
from fixtures.tiny_transformers import PROMPTS, tiny
from hawk import HawkError, HawkPipeline
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.noise import gumbel_rows
from hawk.decoding.recording import Recordings
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.machine import machine_name
from hawk.models.hf.model import family_of
from hawk.models.hf.target import TransformersTarget
from hawk.models.loading import device_named, dtype_named, engine_named
from hawk.proofs.tiny import tiny_drafters, tiny_prompt, tiny_target

MPS = torch.device("mps", 0)
PARAMS = SamplingParams(temperature=0.9, top_k=8, top_p=0.95, cfg_scale=2.0)
SEEDS = [1, 2]


def moved_drafter(drafter) -> None:
    """Move the networks that a drafter or its sources hold."""
    for holder in (drafter, *getattr(drafter, "sources", [])):
        for each in vars(holder).values():
            if isinstance(each, nn.Module):
                moved(each)


SLOWER = ("scd", "sjd-pac", "hawk-paper", "eagle")


@pytest.mark.parametrize(
    "name",
    ["sjd", "hawk-spatial", "hawk", *(pytest.param(name, marks=pytest.mark.proofs) for name in SLOWER)],
)
def test_a_method_draws_on_an_apple_gpu_what_it_draws_on_the_cpu(name):
    target = tiny_target(0, torch.float32, grid=Grid(2, 4), dim=16)
    drafter, verifier = tiny_drafters(target)[name]

    def request() -> Request:
        return Request(tiny_prompt(target, 2), target.grid, PARAMS, SEEDS, verifier)

    expected = generate(target, request(), drafter).tokens
    moved(target)
    moved_drafter(drafter)
    with pretend_mps():
        drawn = generate(target, request(), drafter, recordings=Recordings("eager"))
        assert drawn.tokens.device == MPS
        assert torch.equal(drawn.tokens.cpu(), expected)


def test_traversal_draws_on_an_apple_gpu():
    target = tiny_target(0, torch.float32, grid=Grid(2, 4), dim=16)
    drafter, _ = tiny_drafters(target)["hawk-paper"]
    drafter.own_draws = True
    request = Request(tiny_prompt(target, 2), target.grid, PARAMS, SEEDS, "traversal")
    expected = generate(target, request, drafter).tokens
    moved(target)
    moved_drafter(drafter)
    with pretend_mps():
        request = Request(tiny_prompt(target, 2), target.grid, PARAMS, SEEDS, "traversal")
        assert torch.equal(generate(target, request, drafter).tokens.cpu(), expected)


@pytest.mark.parametrize("name", ["janus", "lumina"])
def test_transformers_models_draw_on_an_apple_gpu(name):
    one = tiny(name)
    request = Request(one.model.condition(PROMPTS[:2], [""] * 2, one.grid), one.grid, PARAMS, SEEDS)
    expected = generate(one.model.target, request, Window(3)).tokens
    with pretend_mps():
        target = TransformersTarget(family_of(moved(one.hf), one.tokenizer))
        assert torch.equal(generate(target, request, Window(3)).tokens.cpu(), expected)


def test_float64_and_complex_numbers_on_the_pretend_device_are_noticed():
    with pretend_mps():
        ones = torch.ones(2, 2, device="mps")
        assert ones.device == MPS
        host = torch.ones(2, dtype=torch.float64)
        for wide in (lambda: ones.double(), lambda: torch.view_as_complex(ones), lambda: host.to("mps")):
            with pytest.raises(TypeError, match="does not support it"):
                wide()


def test_the_host_draws_the_noise_of_an_apple_gpu():
    assert gumbel_rows(3, 5, 2, 7, MPS).device.type == "cpu"
    assert torch.equal(gumbel_rows(3, 5, 2, 7, MPS), gumbel_rows(3, 5, 2, 7))


def test_what_an_apple_gpu_lacks_falls_back_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device = device_named("mps")
    assert device.type == "mps"
    assert [engine_named(engine, device) for engine in ("auto", "eager")] == ["eager"] * 2
    assert capsys.readouterr().err == ""
    assert [engine_named(engine, device) for engine in ("graph", "compiled")] == ["eager"] * 2
    assert [dtype_named("auto", device, large) for large in (False, True)] == ["float32", "bfloat16"]
    with pytest.raises(HawkError, match="mps has no float64: choose"):
        dtype_named("float64", device)
    assert machine_name(device, torch.float32) != machine_name(torch.device("cpu"), torch.float32)


def test_an_operation_that_apple_gpus_lack_is_named_in_one_line(saved_model, monkeypatch):
    pipe = HawkPipeline.from_pretrained(saved_model, "cpu")

    def lacking(*_):
        raise NotImplementedError("The operator 'aten::x' is not\ncurrently implemented for the MPS device.")

    monkeypatch.setattr(type(pipe.model.target), "forward_nodes", lacking)
    for device, error in ((MPS, HawkError), (pipe.device, NotImplementedError)):
        with pytest.raises(error) as caught:
            replace(pipe, device=device)("a cat", seed=1, method="ar")
        assert ("PYTORCH_ENABLE_MPS_FALLBACK=1" in str(caught.value)) == (error is HawkError)
        assert ("\n" in str(caught.value)) == (error is NotImplementedError)
