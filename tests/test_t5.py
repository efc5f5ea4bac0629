"""T5 text features: cleaned, left-padded and masked as the public LlamaGen code makes them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5Config, T5EncoderModel, T5ForConditionalGeneration

from hawk import HawkError
from hawk.models.llamagen.cleaning import clean_caption
from hawk.models.llamagen.t5 import T5TextEncoder
from hawk.models.llamagen.words import TextEncoder

CLEANED = json.loads((Path(__file__).parent / "fixtures" / "cleaned_captions.json").read_text(encoding="utf-8"))[
    "cleaned"
]
PROMPTS = ["A RED apple", "a blue cat, on a bright-red dog!", "dog"]


@pytest.fixture
def encoder(tiny_t5) -> T5TextEncoder:
    return T5TextEncoder(str(tiny_t5), width=12, tokens=24, dtype=torch.float32)


@pytest.mark.parametrize("caption", CLEANED)
def test_captions_are_cleaned_as_by_the_public_code(caption):
    assert clean_caption(caption) == CLEANED[caption]


def padded_then_moved(folder: Path, prompts: list[str], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The official features: T5 reads captions padded on the right, then each row is rolled to the right end."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), T5EncoderModel.from_pretrained(folder).eval()
    batch = tokenizer(
        [clean_caption(prompt) for prompt in prompts], padding="max_length", max_length=tokens, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    lengths = batch.attention_mask.sum(1)
    moved = torch.stack([row.roll(-int(n), dims=0) for row, n in zip(states, lengths, strict=True)])
    mask = batch.attention_mask.flip(-1).bool()
    return moved * mask[..., None], mask


def test_features_equal_the_official_way(encoder, tiny_t5):
    encoded = encoder.encode(PROMPTS)
    features, mask = padded_then_moved(tiny_t5, PROMPTS, encoder.tokens)
    assert torch.equal(encoded.mask, mask)
    torch.testing.assert_close(encoded.features, features, atol=1e-5, rtol=0)
    assert len(set(mask.sum(1).tolist())) == 3


def test_features_do_not_depend_on_the_batch_and_case_does_not_matter(encoder, tiny_t5):
    together = encoder.encode(PROMPTS).features
    again = T5TextEncoder(str(tiny_t5), width=12, tokens=24, dtype=torch.float32)
    assert torch.equal(again.encode(["a red APPLE "]).features[0], together[0])


def test_nothing_is_read_before_the_first_prompt_and_remembered_prompts_need_no_weights(tiny_t5, tmp_path):
    folder = shutil.copytree(tiny_t5, tmp_path / "t5")
    encoder = T5TextEncoder(str(folder), width=12, tokens=24, device=torch.device("cpu"))
    assert isinstance(encoder, TextEncoder)
    assert "loaded" not in vars(encoder)
    first = encoder.encode(["a red apple"])
    assert encoder.loaded.encoder.dtype == torch.bfloat16
    encoder.unload()
    shutil.rmtree(folder)
    assert torch.equal(encoder.encode(["a red apple"]).features, first.features)
    with pytest.raises(HawkError, match="no T5 text encoder could be read"):
        encoder.encode(["a blue apple"])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("", "no word in it"), ("  日本 ", "no word in it"), ("cat " * 24, "the prompt has 25 tokens, at most 24 fit")],
)
def test_empty_and_over_long_prompts_are_refused(encoder, prompt, message):
    with pytest.raises(HawkError, match=message):
        encoder.encode(["a cat", prompt])


def test_a_prompt_of_just_the_length_fits(encoder):
    assert encoder.encode(["cat " * 23]).mask.all()


@pytest.mark.parametrize("form", ["shards", "bin"])
def test_the_whole_model_as_it_is_published_gives_its_encoder_quietly(tiny_t5, tmp_path, capfd, form):
    """Folders on the hub hold the whole T5: in shards with an index, or (older ones) as a pickle of tensors."""
    folder = shutil.copytree(tiny_t5, tmp_path / "t5")
    (folder / "model.safetensors").unlink()
    torch.manual_seed(3)
    whole = T5ForConditionalGeneration(T5Config.from_pretrained(folder)).eval()
    if form == "shards":
        whole.save_pretrained(folder, max_shard_size="2KB")
        assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    else:
        torch.save(whole.state_dict(), folder / "pytorch_model.bin")
    capfd.readouterr()
    encoder = T5TextEncoder(str(folder), width=12, tokens=24, dtype=torch.float32)
    features = encoder.encode(["a red apple"]).features[0]
    ids = AutoTokenizer.from_pretrained(folder)("a red apple", return_tensors="pt").input_ids
    with torch.no_grad():
        states = whole.encoder(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(features[-len(states) :], states, atol=1e-6, rtol=0)
    assert capfd.readouterr() == ("", "")


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])


def without(name: str, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no T5 text encoder could be read"),
        (cut_short, "no T5 text encoder could be read"),
        (
            lambda f: without("encoder.block.1.layer.0.SelfAttention.q.weight", f),
            "lacks 1 weights, among them .*block.1",
        ),
        (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "no T5 text encoder could be read|lacks"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(tiny_t5, tmp_path, damage, message):
    folder = shutil.copytree(tiny_t5, tmp_path / "t5")
    damage(folder)
    with pytest.raises(HawkError, match=message) as caught:
        T5TextEncoder(str(folder), width=12, tokens=24).encode(["a cat"])
    assert "\n" not in str(caught.value)


def test_an_encoder_of_another_width_is_refused(tiny_t5):
    with pytest.raises(HawkError, match="is 12 wide, not 2048"):
        T5TextEncoder(str(tiny_t5)).encode(["a cat"])


def test_a_t5_whose_config_holds_a_number_without_meaning_is_refused(tiny_t5, tmp_path):
    folder = Path(shutil.copytree(tiny_t5, tmp_path / "t5"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": -1.0}))
    with pytest.raises(HawkError, match=r"config.json: layer_norm_epsilon is -1\.0, it must be from 1e-12 to 0\.1"):
        T5TextEncoder(str(folder)).encode(["a cat"])
