"""A transformers model that the caller lends to `accelerate` or `hawk_generate` is read as it is and stays as it is."""

import threading

import pytest
import torch

import hawk
from fixtures.tiny_transformers import Tiny, save, tiny
from hawk import HawkError, HawkPipeline
from hawk.models.moving import evaluation_mode
from hawk.models.pixels import decoded_wide


def test_training_mode_comes_back_after_the_last_of_two_calls():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2))
    module[1].eval()
    first, second = evaluation_mode(module), evaluation_mode(module)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not module[0].training, "the second call still runs"
    second.__exit__(None, None, None)
    assert (module.training, module[0].training, module[1].training) == (True, True, False)


def test_a_decoder_is_not_changed_while_it_decodes():
    one = tiny("janus", torch.bfloat16)
    decoder, codes = one.hf.model.vqmodel, torch.arange(16)[None] % 12
    seen, expected = [], decoded_wide(decoder, codes)
    convolution = decoder.decoder.conv_in
    convolution.register_forward_hook(
        lambda module, *_: seen.append((convolution.weight.dtype, module.weight.dtype, module is convolution))
    )
    assert torch.equal(decoded_wide(decoder, codes), expected)
    assert seen == [(torch.bfloat16, torch.float32, False)]
    assert expected.dtype == torch.float32
