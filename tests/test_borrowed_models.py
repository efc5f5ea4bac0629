"""A transformers model that the caller lends to `accelerate` or `hawk_generate` is read as it is and stays as it is."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import hawk
from fixtures.tiny_transformers import Tiny, save, tiny
from hawk import HawkError, HawkPipeline
from hawk.decoding import recording
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


def lent(one: Tiny, tmp_path: object, **more: object) -> HawkPipeline:
    """A pipeline around the model of the caller."""
    decoder = getattr(one.model.family, "decoder", None)
    vqgan = None if decoder is None else save(one, tmp_path) / "vqgan.safetensors"
    return hawk.accelerate(one.hf, more.get("tokenizer", one.tokenizer), vqgan=vqgan)


def refused(message: str, draw: object) -> None:
    """Check that a call is refused in one line."""
    with pytest.raises(HawkError, match=message) as caught:
        draw()
    assert "\n" not in str(caught.value)


def test_a_changed_output_head_is_used(tmp_path):
    one = tiny("chameleon")
    pipe = lent(one, tmp_path)
    first = pipe("a cat", temperature=0, method="ar").tokens
    with torch.no_grad():
        one.hf.lm_head.weight.mul_(-1)
    changed = pipe("a cat", temperature=0, method="ar").tokens
    assert not torch.equal(changed, first)
    assert torch.equal(changed, lent(one, tmp_path / "again")("a cat", temperature=0, method="ar").tokens)


@pytest.mark.parametrize("name", ["janus", "chameleon"])
def test_a_recording_is_dropped_when_a_weight_is_replaced(name, tmp_path, monkeypatch):
    one, captures = tiny(name), []
    monkeypatch.setattr(recording, "captured", lambda call, device, pool=None: captures.append(call) or call)
    pipe = lent(one, tmp_path)
    pipe.engine = "graph"
    for _ in range(2):
        pipe("a cat", seed=1, method="scd")
    assert len(captures) == 1
    layer = pipe.model.family.backbone.layers[0].mlp.down_proj
    layer.weight = nn.Parameter(layer.weight * 2)  # of the same dtype, on the same device
    for _ in range(2):
        pipe("a cat", seed=1, method="scd")
    assert len(captures) == 2


@pytest.mark.parametrize("name", ["janus", "chameleon"])
def test_a_model_that_was_moved_is_refused(name, tmp_path):
    one = tiny(name)
    pipe = lent(one, tmp_path)
    one.hf.to(torch.float64)
    refused("moved to float64 on cpu after hawk.accelerate: call it again", lambda: pipe("a cat", method="ar"))


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    one, other = tiny("janus"), tiny("emu3")
    message = "the tokenizer has token ids up to 69, the model only 40 tokens"
    refused(message, lambda: hawk.accelerate(one.hf, other.tokenizer))
    other.tokenizer.save_pretrained(save(one, tmp_path))
    refused(message, lambda: HawkPipeline.from_pretrained(tmp_path, device="cpu"))


@pytest.mark.parametrize("name", ["chameleon", "lumina"])
def test_a_tokenizer_without_a_first_token_is_refused(name, tmp_path):
    one = tiny(name)
    one.tokenizer.bos_token = None
    refused("tokenizer_config.json names no bos_token", lambda: lent(one, tmp_path))


@pytest.mark.parametrize("name", ["janus", "emu3", "chameleon"])
def test_a_config_that_asks_for_tuples_changes_nothing(name):
    one = tiny(name)
    pipe = HawkPipeline(one.model, torch.device("cpu"), "float32")
    side = {"height": one.grid.height * one.model.cell, "width": one.grid.width * one.model.cell}
    expected = pipe("a cat", seed=1, method="ar", **side).tokens
    for config in (one.hf.config, one.hf.config.get_text_config(), one.hf.config.vq_config):
        config.return_dict = False
    assert torch.equal(pipe("a cat", seed=1, method="ar", **side).tokens, expected)


def call(one: Tiny, **more: object) -> dict[str, object]:
    """The arguments of a call of `generate` that draws one greedy image by Hawk, without guidance."""
    size = {"height": one.grid.height, "width": one.grid.width, "do_sample": False}
    prompt = torch.tensor(one.model.condition(["a cat"], [""], one.grid).prompts)
    return {"inputs": prompt, "custom_generate": hawk.hawk_generate, "method": "ar", **size, **more}


@pytest.mark.parametrize(
    ("name", "message"), [("chameleon", r"pixels only \(4x4 tokens\)"), ("lumina", r"\(2 tokens\)")]
)
def test_hawk_generate_refuses_a_size_that_the_family_cannot_draw(name, message):
    one = tiny(name)
    prompt = torch.tensor([[1, 5]])
    refused(message, lambda: one.hf.generate(**call(one, inputs=prompt, height=3, width=5)))


def test_hawk_generate_refuses_an_image_that_is_longer_than_the_models_positions():
    one = tiny("chameleon")
    arguments = call(one, max_new_tokens=17)
    one.hf.config.max_position_embeddings = 15 + arguments["inputs"].shape[1]
    refused("are too long", lambda: one.hf.generate(**arguments))
    one.hf.config.max_position_embeddings += 1
    assert one.hf.generate(**arguments).shape[1] == arguments["inputs"].shape[1] + 17


def test_hawk_generate_refuses_a_filled_cache_and_takes_what_changes_nothing():
    one = tiny("emu3")
    arguments = call(one)
    ids = arguments["inputs"]
    drawn = one.hf.generate(**arguments)
    filled = one.hf(input_ids=ids[:, :3], use_cache=True).past_key_values
    refused("leave past_key_values out", lambda: one.hf.generate(**arguments, past_key_values=filled))
    plain = {"position_ids": torch.arange(ids.shape[1])[None], "past_key_values": DynamicCache(), "logits_to_keep": 3}
    assert torch.equal(one.hf.generate(**arguments, **plain), drawn)
