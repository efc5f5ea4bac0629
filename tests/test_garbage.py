"""Nothing is drawn silently wrong: pixels that overflow, control words in prompts, folders that lack a part."""

import warnings

import pytest
import torch

from fixtures.tiny_transformers import CODES, FAMILIES, PROMPTS, tiny
from hawk import HawkError, HawkPipeline
from hawk.decoding.grid import Grid
from hawk.models.folder import load_model
from hawk.models.hf.control import added_tokens, is_text
from hawk.models.hf.families import Lumina
from hawk.models.pixels import finite_pixels


def decoder_of(model):
    """The module whose `decode` gives a transformers model's pixels."""
    return getattr(model.family, "decoder", None) or model.family.model.model.vqmodel


# --- pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_of_a_half_precision_decoder_are_decoded_in_float32(name):
    one = tiny(name)
    first = decoder_of(one.model).decoder.conv_in.weight
    first.mul_(1e6)
    one.hf.half()
    decoder_of(one.model).half()
    first = decoder_of(one.model).decoder.conv_in.weight
    first.clamp_(-6e4, 6e4)  # the weights themselves fit into float16, the activations do not
    codes = torch.arange(one.grid.size).remainder(CODES).view(1, one.grid.height, one.grid.width)
    pixels = finite_pixels(one.model, codes)
    assert pixels.dtype == torch.float32
    assert first.dtype == torch.float16, "the caller's decoder stays as it is"
    decoder = decoder_of(one.model).float()
    torch.testing.assert_close(pixels, decoder.decode(codes.flatten(1) if name == "janus" else codes))
    assert pixels.std() > 0


@pytest.mark.parametrize(("name", "value"), [*((name, float("inf")) for name in FAMILIES), ("janus", float("nan"))])
def test_pixels_that_are_not_finite_are_refused_in_one_line(name, value):
    one = tiny(name)
    decoder_of(one.model).decoder.conv_in.weight[0] = value
    codes = torch.zeros(1, one.grid.height, one.grid.width, dtype=torch.long)
    with pytest.raises(HawkError, match=r"pixels that are not finite.*in float32") as caught:
        finite_pixels(one.model, codes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_pixels_of_our_own_tokenizer_that_are_not_finite_are_refused(saved_model, value):
    model = load_model(saved_model)
    codes = torch.zeros(1, 4, 6, dtype=torch.long)
    assert finite_pixels(model, codes).abs().max() <= 1
    next(p for name, p in model.tokenizer.decoder.named_parameters() if name.endswith("bias")).fill_(value)
    with pytest.raises(HawkError, match="pixels that are not finite"):
        finite_pixels(model, codes)


# --- control words in prompts --------------------------------------------------------------------------------

CONTROL = {
    "janus": ["<begin_of_image>", "<end_of_image>", "<image>", "<s>", "</s>", "<pad>"],
    "emu3": ["<|extra_200|>", "<|extra_201|>", "<|image start|>", "<|visual token 000003|>", "<image>", "<bos>"],
    "chameleon": ["<racm3:break>", "<eoss>", "<reserved08706>", "IMGIMGDZ", "<image>", "<s>"],
    "lumina": ["<racm3:break>", "<reserved08799>", "<reserved08801>", "IMGIMGBAZ"],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_control_words_in_prompts_and_negative_prompts_are_refused_by_name(name, tmp_path):
    one = tiny(name)
    one.tokenizer.save_pretrained(tmp_path)
    # As transformers reads it from a published folder: the added tokens are not among `all_special_tokens`.
    read = one.tokenizer.__class__.from_pretrained(tmp_path)
    one.model.family.tokenizer = read
    for word in CONTROL[name]:
        for prompt, negative in ((f"a {word} cat", ""), ("a cat", f"a{word}cat")):
            with pytest.raises(HawkError, match="special token") as caught:
                one.model.condition([prompt], [negative], one.grid)
            assert f"holds {word}," in str(caught.value)
    assert one.model.condition(PROMPTS, ["", "a mat", "zebra"], one.grid).prompts


def test_letters_that_a_tokenizer_adds_are_text():
    one = tiny("janus")
    one.tokenizer.add_tokens(["ü", "÷", "  ", "Zebra", "<|User|>"])
    added = set(added_tokens(one.tokenizer).values())
    assert "<|User|>" in added
    assert not added & {"ü", "÷", "  ", "Zebra"}
    assert is_text("ü")
    assert not is_text("<|extra_3|>")
    assert one.model.family.control_token_in("a ü cat", one.grid) is None
    assert one.model.family.control_token_in("a <|User|> cat", one.grid) == "<|User|>"


def test_a_control_token_that_the_tokenizer_reads_in_another_spelling_is_refused():
    from tokenizers import normalizers

    one = tiny("janus")
    one.tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    one.tokenizer.add_tokens(["<|User|>"])  # matched after normalisation, as added tokens are
    assert one.model.family.control_token_in("a \uff1c|User|\uff1e cat", one.grid) == "<|User|>"


# --- sizes that Lumina-mGPT was not trained for --------------------------------------------------------------


def test_lumina_warns_once_about_a_size_that_it_was_not_trained_for():
    one = tiny("lumina")
    family = one.model.family
    assert isinstance(family, Lumina)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for height, width in ((48, 48), (32, 72), (72, 32), (24, 96), (46, 50)):
            family.check_grid(Grid(height, width))
    for height, width in ((4, 4), (64, 64), (48, 24), (2, 200), (20, 114)):
        with pytest.warns(UserWarning, match=f"not trained for {2 * height}x{2 * width} pixels") as caught:
            family.check_grid(Grid(height, width))
        assert len(caught) == 1
        assert "\n" not in str(caught[0].message)
    pipe = HawkPipeline(one.model, torch.device("cpu"), "float32")
    with pytest.warns(UserWarning, match="not trained"):
        assert pipe("a cat", seed=1, method="scd", height=8, width=8).images
