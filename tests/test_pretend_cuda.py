"""Every method on a device that is played on the CPU: tensors on two devices, wrong generators and host reads show."""

import pytest
import torch
from torch import nn

from fixtures.pretend_cuda import DEVICE, moved, pretend_cuda
from hawk.decoding.generate import generate
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.methods import METHODS
from hawk.proofs.tiny import tiny_drafters, tiny_prompt, tiny_target

PARAMS = SamplingParams(temperature=0.9, top_k=8, top_p=0.95, cfg_scale=2.0)
SEEDS = [1, 2, 3]


def modules_of(drafter) -> list[nn.Module]:
    """The networks that a drafter or its sources hold."""
    holders = [drafter, *getattr(drafter, "sources", [])]
    return [each for holder in holders for each in vars(holder).values() if isinstance(each, nn.Module)]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "lantern"])
def test_a_method_draws_on_cuda_what_it_draws_on_the_cpu(name):
    target = tiny_target(0)
    drafter, verifier = tiny_drafters(target)[name]
    prompt = tiny_prompt(target, len(SEEDS))
    expected = generate(target, Request(prompt, target.grid, PARAMS, SEEDS, verifier), drafter).tokens
    moved(target)
    for module in modules_of(drafter):
        moved(module)
    with pretend_cuda():
        drawn = generate(target, Request(tiny_prompt(target, 3), target.grid, PARAMS, SEEDS, verifier), drafter)
        assert drawn.tokens.device == DEVICE
        assert torch.equal(drawn.tokens.cpu(), expected)
