"""DeepSeek's own Janus checkpoints become folders that transformers and Hawk load; others are refused in one line."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import JanusConfig, JanusForConditionalGeneration, LlamaConfig
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig
from typer.testing import CliRunner

from hawk import HawkError, HawkPipeline
from hawk.cli.app import app
from hawk.decoding.grid import Grid
from hawk.models.convert import convert_janus
from hawk.models.hf.janus_origins import origins_in

SPECIAL = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<image_placeholder>",
    "<begin_of_image>",
    "<end_of_image>",
    "<|User|>",
    "<|Assistant|>",
]
WIDTH, CODES = 32, 12

# --- a tiny checkpoint in DeepSeek's format, made from a tiny model of transformers


def tiny_janus() -> JanusForConditionalGeneration:
    """A Janus whose image encoder has 16 heads, as published, and whose `lm_head` is not its embeddings."""
    text = LlamaConfig(
        vocab_size=272,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    vision = JanusVisionConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=16,
        image_size=8,
        patch_size=2,
        num_image_tokens=16,
        projection_dim=WIDTH,
    )
    vq = JanusVQVAEConfig(
        num_embeddings=CODES,
        latent_channels=16,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=2,
        projection_dim=WIDTH,
        image_token_embed_dim=WIDTH,
    )
    torch.manual_seed(3)
    model = JanusForConditionalGeneration(
        JanusConfig(text_config=text, vision_config=vision, vq_config=vq, tie_word_embeddings=False)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return model.eval().requires_grad_(False)


RENAMED = [
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.vision_model\.embeddings\.patch_embedding\.", "vision_model.vision_tower.patch_embed.proj."),
    (r"^model\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection_layer\.", r"V.\1.attn.proj."),
    (r"^model\.vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"V.\1.norm\2."),
    (r"^model\.vision_model\.encoder\.layers\.(\d+)\.mlp\.", r"V.\1.mlp."),
    (r"^V\.", "vision_model.vision_tower.blocks."),
    (r"^model\.vision_model\.post_layernorm\.", "vision_model.vision_tower.norm."),
    (r"^model\.aligner\.fc1\.", "aligner.layers.0."),
    (r"^model\.aligner\.hidden_layers\.0\.", "aligner.layers.2."),
    (r"^model\.generation_aligner\.fc1\.", "gen_aligner.layers.0."),
    (r"^model\.generation_aligner\.hidden_layers\.0\.", "gen_aligner.layers.2."),
    (r"^model\.generation_embeddings\.", "gen_embed."),
    (r"^model\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
    (r"^model\.generation_head\.vision_head\.", "gen_head.vision_head."),
    (r"^model\.vqmodel\.(en|de)coder\.mid\.block_1\.", r"gen_vision_model.\1coder.mid.0."),
    (r"^model\.vqmodel\.(en|de)coder\.mid\.attn_1\.", r"gen_vision_model.\1coder.mid.1."),
    (r"^model\.vqmodel\.(en|de)coder\.mid\.block_2\.", r"gen_vision_model.\1coder.mid.2."),
    (r"^model\.vqmodel\.(en|de)coder\.(?:up|down)\.(\d+)\.block\.", r"gen_vision_model.\1coder.conv_blocks.\2.res."),
    (r"^model\.vqmodel\.(en|de)coder\.(?:up|down)\.(\d+)\.", r"gen_vision_model.\1coder.conv_blocks.\2."),
    (r"^model\.vqmodel\.", "gen_vision_model."),
]


def original_weights(model: JanusForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The model's weights under DeepSeek's names, and those that DeepSeek's files have beside them."""
    held = dict(model.state_dict())
    original = {
        "vision_model.vision_tower.pos_embed": held.pop("model.vision_model.embeddings.position_embedding.weight")[
            None
        ],
        "vision_model.vision_tower.attn_pool.latent": torch.zeros(1, 1, WIDTH),
        "vision_model.vision_tower.attn_pool.q.weight": torch.zeros(WIDTH, WIDTH),
        "gen_vision_model.quantize.codebook_used": torch.zeros(65536),
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
    }
    for layer in range(model.config.vision_config.num_hidden_layers):
        for kind in ("weight", "bias"):
            parts = [held.pop(f"model.vision_model.encoder.layers.{layer}.self_attn.{p}_proj.{kind}") for p in "qkv"]
            original[f"vision_model.vision_tower.blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
    for name, tensor in held.items():
        for old, new in RENAMED:
            name = re.sub(old, new, name)
        original[name] = tensor.clone()
    return original


def original_config() -> dict:
    projector = {"depth": 2, "n_embed": WIDTH, "projector_type": "mlp_gelu"}
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": "float32",
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {"image_size": 8, "model_name": "siglip_large_patch16_384", "select_layer": -1},
        },
        "aligner_config": {"cls": "MlpProjector", "model_type": "aligner", "params": {"input_dim": WIDTH, **projector}},
        "gen_vision_config": {
            "cls": "VQ-16",
            "model_type": "gen_vision",
            "params": {"image_token_size": CODES, "n_embed": 8},
        },
        "gen_aligner_config": {
            "cls": "MlpProjector",
            "model_type": "gen_aligner",
            "params": {"input_dim": 8, **projector},
        },
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {"image_token_embed": WIDTH, "image_token_size": CODES, "n_embed": WIDTH},
        },
        "language_config": {
            "model_type": "llama",
            "vocab_size": 272,
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "torch_dtype": "float32",
        },
    }


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer which, as DeepSeek's, leaves the first token of a text to its class."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.add_special_tokens(SPECIAL)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "model_max_length": 16384}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    image = {"image_processor_type": "VLMImageProcessor", "image_size": 8, "min_size": 14, "image_mean": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))


@pytest.fixture(scope="module")
def model() -> JanusForConditionalGeneration:
    return tiny_janus()


@pytest.fixture
def original(model, tmp_path) -> Path:
    """A tiny checkpoint in DeepSeek's format, with its weights in one safetensors file."""
    folder = tmp_path / "janus"
    folder.mkdir()
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(original_config()))
    save_file(original_weights(model), folder / "model.safetensors")
    return folder


def pickle_in_two(folder: Path) -> None:
    """Put the weights into two pickled files with an index, as Janus-Pro-7B is published."""
    weights = original_weights(tiny_janus())
    names = sorted(weights)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, held in parts.items():
        torch.save({name: weights[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


# --- the same model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pickled", [False, True])
@torch.inference_mode()
def test_the_converted_folder_is_the_same_model_bit_for_bit(pickled, model, original, tmp_path, monkeypatch):
    monkeypatch.setattr("hawk.models.hf.original_janus.SHARD_BYTES", 200_000)
    if pickled:
        pickle_in_two(original)
    assert convert_janus(original, tmp_path / "out") == Grid(4, 4)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    loaded, info = JanusForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.text_config.rms_norm_eps == 1e-5
    ids, codes = torch.arange(16).view(2, 8), torch.arange(32).view(2, 16) % CODES
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    embedded = loaded.prepare_embeddings_for_image_generation(codes)
    assert torch.equal(embedded, model.prepare_embeddings_for_image_generation(codes))
    hidden = model.model.language_model(inputs_embeds=embedded).last_hidden_state
    assert torch.equal(loaded.model.generation_head(hidden), model.model.generation_head(hidden))
    pixels = torch.rand(1, 3, 8, 8)
    seen = [one.model.get_image_features(pixels).pooler_output for one in (loaded, model)]
    assert torch.equal(*seen)
    assert torch.equal(loaded.decode_image_tokens(codes), model.decode_image_tokens(codes))
    assert torch.equal(
        loaded.model.vqmodel.encode(pixels).image_tokens, model.model.vqmodel.encode(pixels).image_tokens
    )


def test_hawk_draws_from_the_converted_folder(original, tmp_path):
    out = tmp_path / "out"
    told = CliRunner().invoke(app, ["convert", "janus", str(original), str(out), "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout.splitlines()[-1]) == {"out": str(out), "source": str(original), "grid": [4, 4]}
    pipe = HawkPipeline.from_pretrained(out, "cpu", "float32")
    tokenizer, generation = pipe.model.family.tokenizer, pipe.model.family.model.generation_config
    prompt = pipe.model.family.prompt(" a cat ", Grid(4, 4))
    start, user, assistant, begin, padding = (tokenizer.convert_tokens_to_ids(SPECIAL[i]) for i in (0, 6, 7, 4, 2))
    letters = {text: tuple(tokenizer(text).input_ids[1:]) for text in (": a cat\n\n", ":")}
    assert prompt == (start, user, *letters[": a cat\n\n"], assistant, *letters[":"], begin), "DeepSeek's own format"
    assert pipe.model.family.unconditional(prompt, Grid(4, 4)) == (start, *[padding] * (len(prompt) - 2), begin)
    assert (generation.pad_token_id, generation.generation_kwargs) == (padding, {"boi_token_id": begin})
    drawn = [pipe("a cat", seed=4, method=method) for method in ("ar", "hawk")]
    assert drawn[0].images[0].size == (8, 8)
    assert drawn[0].images[0].tobytes() == drawn[1].images[0].tobytes()


def test_a_head_that_shares_the_embeddings_stays_shared(original, tmp_path):
    change_config(original, lambda config: config["language_config"].update(tie_word_embeddings=True))
    change_weights(original, lambda weights: weights.pop("language_model.lm_head.weight"))
    convert_janus(original, tmp_path / "out")
    loaded = JanusForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight


def test_the_origins_are_deepseeks_names_and_shapes_for_janus_pro_1b():
    text = LlamaConfig(vocab_size=102400, hidden_size=2048, intermediate_size=5632, num_hidden_layers=24)
    config = JanusConfig(text_config=text, vision_config=JanusVisionConfig(), vq_config=JanusVQVAEConfig())
    found = {origin.name: origin.shape(shape) for origin, shape in origins_in(config).values()}
    official = {
        "aligner.layers.0.weight": (2048, 1024),
        "aligner.layers.2.bias": (2048,),
        "gen_aligner.layers.0.weight": (2048, 8),
        "gen_aligner.layers.2.weight": (2048, 2048),
        "gen_embed.weight": (16384, 8),
        "gen_head.output_mlp_projector.weight": (2048, 2048),
        "gen_head.vision_head.weight": (16384, 2048),
        "gen_vision_model.decoder.conv_blocks.0.attn.2.proj_out.weight": (512, 512, 1, 1),
        "gen_vision_model.decoder.conv_blocks.1.res.0.nin_shortcut.weight": (256, 512, 1, 1),
        "gen_vision_model.decoder.conv_blocks.3.upsample.conv.weight": (128, 128, 3, 3),
        "gen_vision_model.decoder.mid.1.norm.weight": (512,),
        "gen_vision_model.encoder.conv_blocks.0.downsample.conv.bias": (128,),
        "gen_vision_model.encoder.conv_blocks.4.attn.1.q.weight": (512, 512, 1, 1),
        "gen_vision_model.encoder.mid.2.conv2.weight": (512, 512, 3, 3),
        "gen_vision_model.post_quant_conv.weight": (256, 8, 1, 1),
        "gen_vision_model.quantize.embedding.weight": (16384, 8),
        "language_model.model.embed_tokens.weight": (102400, 2048),
        "language_model.model.layers.23.mlp.gate_proj.weight": (5632, 2048),
        "vision_model.vision_tower.blocks.23.attn.proj.weight": (1024, 1024),
        "vision_model.vision_tower.blocks.23.attn.qkv.bias": (3072,),
        "vision_model.vision_tower.blocks.23.mlp.fc2.weight": (1024, 4096),
        "vision_model.vision_tower.blocks.23.norm2.weight": (1024,),
        "vision_model.vision_tower.norm.bias": (1024,),
        "vision_model.vision_tower.patch_embed.proj.weight": (1024, 3, 16, 16),
        "vision_model.vision_tower.pos_embed": (1, 576, 1024),
    }
    assert {name: found.get(name) for name in official} == official


# --- what is refused -----------------------------------------------------------------------------------------


def change_weights(folder: Path, change) -> None:
    weights = original_weights(tiny_janus())
    change(weights)
    save_file(weights, folder / "model.safetensors")


def change_config(folder: Path, change) -> None:
    config = original_config()
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def change_image(folder: Path, name: str, value: object) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))


KEY = "gen_vision_model.decoder.mid.1.q.bias"
DAMAGES = {
    "missing": (lambda at: change_weights(at, lambda w: w.pop(KEY)), rf"lacks 1 of \d+ weights, among them {KEY}"),
    "unknown": (
        lambda at: change_weights(at, lambda w: w.update({"gen_vision_model.foreign": torch.zeros(2)})),
        "holds gen_vision_model.foreign, which this architecture does not have",
    ),
    "misshapen": (
        lambda at: change_weights(at, lambda w: w.update({"gen_embed.weight": torch.zeros(CODES, 9)})),
        r"gen_embed.weight has shape \(12, 9\), config.json and the other weights ask for \(12, 8\)",
    ),
    "a decoder without a weight that tells its shape": (
        lambda at: change_weights(at, lambda w: w.pop("gen_vision_model.post_quant_conv.weight")),
        "lacks gen_vision_model.post_quant_conv.weight: it is no Janus",
    ),
    "an encoder with one axis less": (
        lambda at: change_weights(
            at, lambda w: w.update({"vision_model.vision_tower.patch_embed.proj.weight": torch.zeros(2, 3, 2)})
        ),
        "the weights of vision_model.vision_tower. are of another model",
    ),
    "an encoder of other cells": (
        lambda at: change_weights(
            at, lambda w: w.update({"vision_model.vision_tower.patch_embed.proj.weight": torch.zeros(WIDTH, 3, 4, 4)})
        ),
        "the image encoder has cells of 4 pixels, the pixel decoder of 2",
    ),
    "a head of another width": (
        lambda at: change_config(at, lambda c: c["gen_head_config"]["params"].update(image_token_embed=64)),
        "gen_head is 64 wide and gen_aligner 32: transformers' Janus needs both alike",
    ),
    "too few embeddings": (
        lambda at: change_config(at, lambda c: c["language_config"].update(vocab_size=100)),
        "tokenizer.json has token ids up to 263, the language model only 100 tokens",
    ),
    "transformers' own format": (
        lambda at: change_config(at, lambda c: c.update(model_type="janus")),
        "is in transformers' format already: give it to --model as it is",
    ),
    "another encoder": (
        lambda at: change_weights(at, lambda w: w.pop("vision_model.vision_tower.patch_embed.proj.weight")),
        "lacks vision_model.vision_tower.patch_embed.proj.weight: it is no Janus",
    ),
    "no field": (
        lambda at: change_config(at, lambda c: c.pop("gen_vision_config")),
        "config.json: gen_vision_config: Field required",
    ),
    "another tokenizer of images": (
        lambda at: change_config(at, lambda c: c["gen_vision_config"].update(cls="VQ-8")),
        "config.json: gen_vision_config.cls",
    ),
    "another kind": (
        lambda at: change_config(at, lambda c: c.update(model_type="llava")),
        "model_type is 'llava', DeepSeek's Janus has 'multi_modality'",
    ),
    **{
        f"{name} {value!r}": (
            lambda at, name=name, value=value: change_config(at, lambda c: c["language_config"].update({name: value})),
            message,
        )
        for name, value, message in (
            ("num_attention_heads", 0, "language_config.num_attention_heads is 0, it must be from 1 to"),
            ("rms_norm_eps", -1, "language_config.rms_norm_eps is -1, it must be from 1e-12 to 0.1"),
            ("rms_norm_eps", 0.0, "language_config.rms_norm_eps is 0.0, it must be"),
            ("rope_theta", 0, "language_config.rope_theta is 0, it must be from 1 to"),
            ("rope_theta", -10000.0, "language_config.rope_theta is -10000.0, it must be"),
            ("rope_scaling", {"type": "linear", "factor": -2.0}, "language_config.rope_scaling.factor is -2.0"),
            ("max_position_embeddings", -1, "language_config.max_position_embeddings is -1, it must be from 1"),
            ("max_position_embeddings", 16, "max_position_embeddings is 16, it must be above 16, the tokens of an"),
            ("head_dim", -8, "language_config.head_dim is -8, it must be"),
            ("quantization_config", {"bits": 4}, "language_config.quantization_config says that weights are quantized"),
            ("rope_theta", "q", "config.json describes no Janus that can be built"),
            ("hidden_act", "nope", "config.json describes no Janus that can be built"),
            ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000, but the files hold only"),
            ("rms_norm_eps", float("nan"), "rms_norm_eps is nan, which is no finite number"),
        )
    },
    "quantized weights": (
        lambda at: change_config(at, lambda c: c.update(quantization_config={"quant_method": "awq"})),
        "config.json: quantization_config says that weights are quantized: convert the published weights",
    ),
    "a NaN weight": (
        lambda at: change_weights(at, lambda w: w["gen_embed.weight"][3].fill_(float("nan"))),
        "model.safetensors is damaged: gen_embed.weight holds a NaN or an infinite number; fetch or make it again",
    ),
    "a weight in float8": (
        lambda at: change_weights(at, lambda w: w.update({KEY: w[KEY].to(torch.float8_e4m3fn)})),
        f"{KEY} is torch.float8_e4m3fn, weights must be .* one of bfloat16, float16, float32, float64",
    ),
    "another language model": (
        lambda at: change_config(at, lambda c: c["language_config"].update(model_type="gpt2")),
        "model_type of language_config is 'gpt2', DeepSeek's Janus has 'llama'",
    ),
    **{
        f"{name} {value!r}": (
            lambda at, name=name, value=value: change_image(at, name, value),
            re.escape(f"preprocessor_config.json: {name} must be {message}, not {value!r}"),
        )
        for name, value, message in (
            ("image_mean", [0.5, 0.5], "a list of three finite numbers"),
            ("image_mean", [0.5, float("nan"), 0.5], "a list of three finite numbers"),
            ("image_mean", "0.5", "a list of three finite numbers"),
            ("image_std", [0.5, 0.5, 0], "a list of three finite numbers above 0"),
            ("min_size", 0, "a whole number, 1 or more"),
            ("image_size", "8", "a whole number, 1 or more"),
            ("rescale_factor", float("inf"), "a finite number above 0"),
            ("background_color", [0, 0, 256], "a list of three whole numbers from 0 to 255"),
            ("do_normalize", 1, "true or false"),
        )
    },
    "no weights": (lambda at: (at / "model.safetensors").unlink(), "has no weights: none of model.safetensors"),
    "a pointer": (
        lambda at: (at / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "tokenizer.json is a Git LFS pointer: run git lfs pull",
    ),
    "another tokenizer": (
        lambda at: Tokenizer(models.BPE({"a": 0}, [])).save(str(at / "tokenizer.json")),
        "has no token <｜begin▁of▁sentence｜>: it is no tokenizer of Janus",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_checkpoint_is_refused_in_one_line_and_nothing_is_written(damage, original, tmp_path):
    damaging, message = DAMAGES[damage]
    damaging(original)
    with pytest.raises(HawkError, match=message) as refused:
        convert_janus(original, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_sparse_weight_and_a_folder_that_cannot_be_are_refused(original, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(HawkError, match=r"the model cannot be saved to .*loop .*: name another folder"):
        convert_janus(original, tmp_path / "loop")
    weights = load_file(original / "model.safetensors")
    (original / "model.safetensors").unlink()
    weights["gen_embed.weight"] = weights["gen_embed.weight"].to_sparse()
    torch.save(weights, original / "pytorch_model.bin")
    with pytest.raises(HawkError, match=r"gen_embed.weight is a sparse tensor"):
        convert_janus(original, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pickle_that_holds_code_is_refused(original, tmp_path):
    (original / "model.safetensors").unlink()
    torch.save({"gen_embed.weight": torch.zeros(2, 2), "hook": print}, original / "pytorch_model.bin")
    with pytest.raises(HawkError, match="could run code"):
        convert_janus(original, tmp_path / "out")


def test_drawing_from_the_original_folder_names_the_command(original):
    with pytest.raises(HawkError, match="is in DeepSeek's own format: hawk convert janus"):
        HawkPipeline.from_pretrained(original, "cpu", "float32")
