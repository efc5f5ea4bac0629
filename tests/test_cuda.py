"""Every method on a real GPU, with every engine and dtype, compared with plain AR at the level that is promised.

Skipped without a GPU. Run the engine "compiled" with HAWK_NO_TYPECHECK=1: checked signatures are not for a compiler.
"""

import os

import pytest
import torch

from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.noise import gumbel_rows
from hawk.decoding.recording import Recordings
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.tree import Window
from hawk.drafters.methods import METHODS
from hawk.errors import HawkError
from hawk.proofs.lanes import check_schedules
from hawk.proofs.tiny import tiny_drafters, tiny_prompt, tiny_target

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

PARAMS = SamplingParams(temperature=0.9, top_k=8, top_p=0.95, cfg_scale=2.0)
SEEDS = [1, 2, 3]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
checked = not os.environ.get("HAWK_NO_TYPECHECK")
ENGINES = [
    "eager",
    "graph",
    pytest.param("compiled", marks=pytest.mark.skipif(checked, reason="set HAWK_NO_TYPECHECK=1")),
]


def on_gpu(name: str, dtype: torch.dtype):
    """A tiny target on the GPU, and the drafter and verifier of a method."""
    target = tiny_target(0, dtype)
    drafter, verifier = tiny_drafters(target)[name]
    for holder in (drafter, *getattr(drafter, "sources", [])):
        for each in vars(holder).values():
            if isinstance(each, torch.nn.Module):
                each.cuda()
    return target.cuda(), drafter, verifier


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [name for name in METHODS if name != "lantern"])
def test_a_method_keeps_its_promise(name, engine, dtype):
    """Same tokens as plain AR at the window's shape for windows, as plain AR for coupled trees in float32.

    For the other verifiers and coupled trees in 16 bits, whose promise is the distribution: tokens of the vocabulary,
    and the same ones again from the same seeds.
    """
    target, drafter, verifier = on_gpu(name, DTYPES[dtype])
    recordings = Recordings(engine)

    def drawn(with_drafter, method_verifier="coupled"):
        prompt = tiny_prompt(target, len(SEEDS))
        request = Request(prompt, target.grid, PARAMS, SEEDS, method_verifier)
        return generate(target, request, with_drafter, recordings=recordings).tokens

    first = drawn(drafter, verifier)
    assert first.is_cuda
    assert first.min() >= 0
    assert first.max() < target.vocab_size
    if isinstance(drafter, Window):
        plain = drawn(Window(drafter.reach, above=drafter.above, keeps=False))
        # The host shortens the windows at the end of the image where no recording fixes their shape.
        same = target.grid.size - (drafter.reach if engine == "eager" else 0)
        assert torch.equal(first[:, :same], plain[:, :same])
    elif verifier == "coupled" and dtype == "float32":
        assert torch.equal(first, drawn(Window(0)))
    assert torch.equal(drawn(drafter, verifier), first)


@pytest.mark.parametrize("engine", ENGINES)
def test_recordings_of_several_shapes_do_not_disturb_each_other(engine):
    target, recordings = tiny_target(0, torch.float32).cuda(), Recordings(engine)
    requests = [
        Request(tiny_prompt(target, images), grid, PARAMS, SEEDS[:images])
        for images, grid in ((1, Grid(2, 4)), (3, Grid(2, 4)), (1, Grid(3, 5)))
    ]
    alone = [generate(target, each, Window(5), recordings=Recordings(engine)).tokens for each in requests]
    for _ in range(3):
        for request, tokens in zip(requests, alone, strict=True):
            assert torch.equal(generate(target, request, Window(5), recordings=recordings).tokens, tokens)
    assert len(recordings.kept) == (0 if engine == "eager" else 3)


def test_images_that_join_and_leave_replayed_steps_have_the_tokens_that_they_have_alone():
    """In float64, where no rounding of a GPU's products can flip an argmax of so few tokens."""
    (check,) = check_schedules(0, 12, Recordings("graph"), "cuda")
    assert check.passed, check.measured


@pytest.mark.parametrize("engine", ENGINES)
def test_float16_overflow_is_one_line(engine):
    target = tiny_target(0, torch.float16).cuda()
    target.layers[0].feed_forward.w2.weight *= 1e5
    request = Request(tiny_prompt(target, 1), target.grid, PARAMS, [1])
    with pytest.raises(HawkError, match="not finite in float16"):
        generate(target, request, Window(5), recordings=Recordings(engine))


def test_the_noise_of_a_gpu_is_that_of_the_cpu():
    on_cpu = gumbel_rows(7, 3, 40, 2048)
    torch.testing.assert_close(gumbel_rows(7, 3, 40, 2048, torch.device("cuda")).cpu(), on_cpu, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("engine", ENGINES)
def test_the_second_gpu_draws_what_the_first_draws(engine):
    drawn = []
    for device in ("cuda:0", "cuda:1"):
        target = tiny_target(0, torch.float32).to(device)
        request = Request(tiny_prompt(target, 1), target.grid, PARAMS, [1])
        drawn.append(generate(target, request, Window(5), recordings=Recordings(engine)).tokens.cpu())
    assert torch.equal(drawn[0], drawn[1])
