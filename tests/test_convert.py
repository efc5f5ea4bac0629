"""LlamaGen's published files are converted to model folders that draw; all others are refused with one clear line."""

import argparse
import errno
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

import hawk.models.convert
from hawk import HawkError, HawkPipeline
from hawk.decoding.grid import Grid
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.methods import METHODS
from hawk.models.checkpoint import read_checkpoint
from hawk.models.convert import PublishedModel, convert_llamagen, decoder_shape, find_published, target_shape
from hawk.models.folder import load_model, read_config
from hawk.models.llamagen.target import LlamaGen, LlamaGenConfig
from hawk.models.tokenizers.vqgan import VQGAN, VQGANConfig, decoding_weights
from test_cli import hawk_command, last_json, refused

OFFICIAL = json.loads((Path(__file__).parent / "fixtures" / "llamagen_official.json").read_text())
SHAPE = LlamaGenConfig(dim=16, n_layer=2, n_head=2, vocab_size=24, caption_dim=12, caption_tokens=20, height=4, width=6)
CODES = VQGANConfig(codebook_size=24, z_channels=8, channels=32, multipliers=(1, 1), blocks=1, attention_levels=(1,))
TARGET, TOKENIZER = "t2i_XL_stage1_256.pt", "vq_ds16_t2i.pt"


def target_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    target = LlamaGen(SHAPE)
    target.initialize(0.1)
    torch.nn.init.normal_(target.output.weight, std=0.2)
    return target.state_dict()


def tokenizer_weights() -> dict[str, torch.Tensor]:
    """The decoder's weights, and those that a published tokenizer has for encoding and training."""
    torch.manual_seed(2)
    return {
        **VQGAN(CODES).state_dict(),
        "encoder.conv_in.weight": torch.zeros(32, 3, 3, 3),
        "quant_conv.weight": torch.zeros(8, 8, 1, 1),
        "quantize.codebook_used": torch.zeros(65536),
    }


@pytest.fixture
def published(tmp_path, tiny_t5) -> Path:
    """A folder of published files of a tiny model; the target's file also holds settings and steps of its training."""
    folder = tmp_path / "published"
    folder.mkdir()
    torch.save({"model": target_weights(), "steps": 7, "args": argparse.Namespace(lr=1e-4)}, folder / TARGET)
    torch.save({"model": tokenizer_weights()}, folder / TOKENIZER)
    shutil.copytree(tiny_t5, folder / "t5-ckpt" / "flan-t5-xl")
    return folder


def published_in(folder: Path) -> PublishedModel:
    return find_published(folder, height=8, width=12)


@pytest.fixture
def converted(published, tmp_path) -> Path:
    convert_llamagen(published_in(published), tmp_path / "model", "stored", n_head=2)
    return tmp_path / "model"


# --- the official shapes


def meta(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_the_official_transformer_is_known_by_its_names_and_shapes():
    shape = target_shape(Path("t2i_XL_stage2_512.pt"), meta(OFFICIAL["t2i_XL"]), Grid(32, 32))
    assert shape == LlamaGenConfig(height=32, width=32)
    assert (shape.n_layer, shape.n_head, shape.dim, shape.caption_tokens) == (36, 20, 1280, 120)
    with torch.device("meta"):
        target = LlamaGen(shape)
    assert {name: list(tensor.shape) for name, tensor in target.state_dict().items()} == OFFICIAL["t2i_XL"]
    assert target.parameter_count == 777_923_840


def test_the_official_tokenizer_is_known_by_its_names_and_shapes():
    weights = decoding_weights(meta(OFFICIAL["vq_ds16_t2i"]))
    assert decoder_shape(Path("vq_ds16_t2i.pt"), weights) == VQGANConfig()


# --- converting


def test_a_published_folder_becomes_a_model_folder(published, converted):
    config = read_config(converted)
    assert config.target == SHAPE
    assert config.defaults == SamplingParams(temperature=1.0, top_k=1000, top_p=1.0, cfg_scale=7.5)
    assert config.name == "llamagen-t2i-2x16-8x12"
    model = load_model(converted)
    for name, tensor in target_weights().items():
        assert torch.equal(model.target.state_dict()[name], tensor), name
    stored = load_file(converted / "tokenizer.safetensors")
    assert stored.keys() == VQGAN(CODES).state_dict().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in tokenizer_weights().items() if name in stored)
    assert model.text.source == str((published / "t5-ckpt" / "flan-t5-xl").resolve())
    assert TARGET in (converted / "README.md").read_text()


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None, "safetensors"])
def test_every_usual_wrapping_gives_the_same_weights(published, converted, tmp_path, wrapper):
    for name, weights in ((TARGET, target_weights()), (TOKENIZER, tokenizer_weights())):
        (published / name).unlink()
        if wrapper == "safetensors":
            save_file(weights, (published / name).with_suffix(".safetensors"))
        else:
            torch.save(weights if wrapper is None else {wrapper: weights}, published / name)
    convert_llamagen(published_in(published), tmp_path / "again", "stored", n_head=2)
    for name in ("target.safetensors", "tokenizer.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (converted / name).read_bytes()


def test_stored_in_bfloat16_and_in_shards(published, tmp_path, monkeypatch):
    monkeypatch.setattr(hawk.models.convert, "SHARD_BYTES", 4096)
    told = []
    convert_llamagen(published_in(published), tmp_path / "m", n_head=2, on_bytes=lambda *bytes_: told.append(bytes_))
    shards = sorted((tmp_path / "m").glob("target-*.safetensors"))
    total = sum(tensor.numel() * 2 for tensor in target_weights().values())
    assert len(shards) == len(told) > 2
    assert told == sorted(told)
    assert told[-1] == (total, total)
    target = load_model(tmp_path / "m").target
    for name, tensor in target_weights().items():
        assert torch.equal(target.state_dict()[name], tensor.bfloat16().float()), name


def test_tables_that_the_public_code_makes_anew_are_passed_over(published, converted, tmp_path):
    tables = {"freqs_cis": torch.zeros(3), "layers.1.attention.kv_cache.k_cache": torch.zeros(2)}
    torch.save({"model": target_weights() | tables}, published / TARGET)
    convert_llamagen(published_in(published), tmp_path / "again", "stored", n_head=2)
    name = "target.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (converted / name).read_bytes()


# --- drawing


@pytest.fixture
def pipe(converted) -> HawkPipeline:
    """A pipeline in float64, where rounding cannot flip an argmax."""
    return HawkPipeline.from_pretrained(converted, device="cpu", dtype="float64")


@pytest.mark.parametrize("method", ["scd", "sjd", "sjd-pac"])
def test_methods_without_a_drafter_draw(pipe, method):
    prompts = ["a red apple", "a bright cat on a blue dog"]
    settings = {"seed": 5, "guidance_scale": 3.0, "top_k": 9, "batch_size": 2}
    output = pipe(prompts, method=method, **settings)
    assert [image.size for image in output.images] == [(12, 8), (12, 8)]
    assert 0 <= int(output.tokens.min()) <= int(output.tokens.max()) < 24
    if METHODS[method].verifier == "coupled":
        plain = pipe(prompts, method="ar", **settings)
        assert torch.equal(output.tokens, plain.tokens)
        assert output.nfe < plain.nfe == 24
        assert not torch.equal(output.tokens[0], pipe("a dog", method="ar", **settings).tokens[0])


def test_the_official_presets_draw_and_a_negative_prompt_steers(pipe):
    assert pipe.model.text.device == pipe.device
    settings = {"seed": 3, "method": "scd"}
    assert pipe("a cat", **settings).params == SamplingParams(1.0, 1000, 1.0, 7.5)
    steered = pipe("a cat", negative_prompt="A blue DOG", **settings)
    assert not torch.equal(steered.tokens, pipe("a cat", **settings).tokens)


def test_pixels_are_the_decoders(pipe):
    output = pipe("a cat", seed=1, method="ar", output_type="pt")
    decoder = VQGAN(CODES)
    decoder.load_state_dict(decoding_weights(tokenizer_weights()))
    pixels = decoder.decode(output.tokens.unflatten(1, (4, 6))).detach().clamp(-1, 1)
    torch.testing.assert_close(output.images, (pixels + 1) / 2, atol=1e-6, rtol=0)


def test_a_model_with_a_lost_text_encoder_says_where_it_was(published, converted):
    shutil.rmtree(published)
    with pytest.raises(HawkError, match=r"text encoder's folder .*flan-t5-xl is gone"):
        load_model(converted)


def test_the_text_encoder_may_lie_inside_the_model_folder(published, converted):
    shutil.move(published / "t5-ckpt" / "flan-t5-xl", converted / "text")
    config = json.loads((converted / "config.json").read_text())
    config["text"] |= {"source": "text", "dtype": "float32"}
    (converted / "config.json").write_text(json.dumps(config))
    text = load_model(converted).text
    assert text.source == str(converted / "text")
    assert text.encode(["a cat"]).features.shape == (1, 20, 12)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("tokenizer", {"attention_levels": [2]}, "attention at level 2 of 2, counted from 0"),
        ("tokenizer", {"channels": 48}, "tokenizer.vqgan.channels"),
        ("tokenizer", {"levels": [8]}, "tokenizer.vqgan.levels: Extra inputs"),
        ("tokenizer", {"z_channels": 16}, "config.json asks for"),
        ("text", {"kind": "clip"}, "text: .*'clip'.*'static', 't5'"),
        ("text", {"tokens": 19}, "captions of 20x12, the text encoder gives 19x12"),
        ("text", {"source": ""}, "text.t5.source"),
    ],
)
def test_a_config_that_was_tampered_with_is_refused_in_one_line(converted, part, changes, message):
    config = json.loads((converted / "config.json").read_text())
    config[part] |= changes
    (converted / "config.json").write_text(json.dumps(config))
    with pytest.raises(HawkError, match=message) as caught:
        load_model(converted)
    assert "\n" not in str(caught.value)


# --- finding the files


def test_explicit_files_and_sizes(published, tmp_path):
    moved = published.rename(tmp_path / "elsewhere")
    (moved / TARGET).rename(moved / "my.pt")
    found = find_published(
        tmp_path, target=moved / "my.pt", tokenizer=moved / TOKENIZER, text="google/flan-t5-base", stage=2
    )
    assert found == PublishedModel(moved / "my.pt", moved / TOKENIZER, "google/flan-t5-base", 512, 512)
    with pytest.raises(HawkError, match="give --stage, or --height and --width"):
        find_published(moved, target=moved / "my.pt")


def test_the_stage_is_chosen_where_there_are_two(published):
    assert find_published(published).height == 256
    shutil.copy(published / TARGET, published / "t2i_XL_stage2_512.pt")
    with pytest.raises(HawkError, match="choose one with --stage"):
        find_published(published)
    assert find_published(published, stage=2).target.name == "t2i_XL_stage2_512.pt"
    assert find_published(published, stage=2).width == 512


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage": 3}, "stage is 1"),
        ({"stage": 1, "target": Path("x/t2i_XL_stage2_512.pt")}, "is the transformer of stage 2, not of stage 1"),
        ({"stage": 2}, "there is no t2i_XL_stage2_512.pt in"),
        ({"folder": Path("/nowhere")}, "there is no folder /nowhere"),
        ({"folder": Path(__file__).parent}, "there is no t2i_XL_stage1_256.pt or _stage2_512.pt in"),
        ({"folder": Path(__file__).parent, "target": Path("my.pt")}, "there is no vq_ds16_t2i.pt in"),
    ],
)
def test_missing_parts_are_named(published, arguments, message):
    with pytest.raises(HawkError, match=message):
        find_published(**{"folder": published} | arguments)


# --- refusals


class Malicious:
    def __reduce__(self):
        return (os.system, ("echo never run",))


def resave(path: Path, change) -> None:
    """Save a checkpoint again, with its weights changed by `change`."""
    weights = read_checkpoint(path)
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    change(weights)
    torch.save({"model": weights}, path)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def rename(weights: dict, old: str, new: str) -> None:
    weights[new] = weights.pop(old)


WQKV = "layers.1.attention.wqkv.weight"
CODEBOOK = "quantize.embedding.weight"


def filled(name: str, value: float):
    """A damage that puts a number into a weight."""
    return lambda path: resave(path, lambda weights: weights[name].view(-1)[0].fill_(value))


def replaced(name: str, change):
    """A damage that replaces a weight by what `change` makes of it."""
    return lambda path: resave(path, lambda weights: weights.update({name: change(weights[name])}))


def nested(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


DAMAGE = {
    "NaN": (TARGET, filled(WQKV, math.nan), "wqkv.weight holds a NaN or an infinite number"),
    "an infinite number": (TARGET, filled(WQKV, math.inf), "wqkv.weight holds a NaN or an infinite number"),
    "infinite once stored": (TARGET, filled(WQKV, -3.4e38), r"wqkv.weight holds 3.4e\+38, .* infinite in bfloat16"),
    "NaN in the tokenizer": (TOKENIZER, filled(CODEBOOK, math.nan), "embedding.weight holds a NaN or an infinite"),
    "infinite once read": (TOKENIZER, replaced(CODEBOOK, lambda w: w.double() + 1e200), "is infinite in float32"),
    "sparse": (TARGET, replaced(WQKV, torch.Tensor.to_sparse), "wqkv.weight is a sparse tensor"),
    "sparse rows": (TOKENIZER, replaced(CODEBOOK, torch.Tensor.to_sparse_csr), "embedding.weight is a sparse tensor"),
    "meta": (TARGET, replaced(WQKV, lambda w: w.to("meta")), "wqkv.weight is a meta tensor"),
    "nested": (TARGET, replaced("norm.weight", nested), "norm.weight is a nested tensor"),
    "cut short": (TARGET, cut_short, "is cut short: fetch it again"),
    "tokenizer cut short": (TOKENIZER, cut_short, "vq_ds16_t2i.pt .* is cut short"),
    "no checkpoint": (TARGET, lambda p: p.write_text("<html>404</html>"), "is no PyTorch checkpoint"),
    "code in it": (
        TARGET,
        lambda p: torch.save({"model": Malicious()}, p),
        r"a Python object \(\S*system\), which could",
    ),
    "no state dict": (TARGET, lambda p: torch.save({"steps": 3}, p), "holds no state dict"),
    "a list": (TARGET, lambda p: torch.save([torch.zeros(2)], p), "holds no state dict"),
    "renamed key": (
        TARGET,
        lambda p: resave(p, lambda w: rename(w, WQKV, "layers.1.attn.wqkv.weight")),
        "lacks 1 of 20 weights, among them layers.1.attention.wqkv.weight and holds layers.1.attn.wqkv.weight instead",
    ),
    "renamed layers": (
        TARGET,
        lambda p: resave(p, lambda w: [rename(w, name, f"gpt.{name}") for name in list(w)]),
        "lacks output.weight: it is no LlamaGen text-to-image transformer, or its keys were renamed",
    ),
    "extra key": (
        TARGET,
        lambda p: resave(p, lambda w: w.update({"layers.0.attention.q_norm.weight": torch.ones(8)})),
        "holds layers.0.attention.q_norm.weight, which this architecture does not have",
    ),
    "integer weights": (
        TARGET,
        lambda p: resave(p, lambda w: w.update({WQKV: w[WQKV].to(torch.int8)})),
        "wqkv.weight is torch.int8, weights must be floating-point",
    ),
    "wrong shape": (
        TARGET,
        lambda p: resave(p, lambda w: w.update({WQKV: w[WQKV][:-8].clone()})),
        r"wqkv.weight has shape \(40, 16\), the other weights ask for \(48, 16\)",
    ),
    "class-conditional": (
        TARGET,
        lambda p: resave(p, lambda w: w.update({"cls_embedding.embedding_table.weight": torch.zeros(11, 16)})),
        "class-conditional",
    ),
    "another codebook": (
        TOKENIZER,
        lambda p: resave(p, lambda w: w.update({"quantize.embedding.weight": torch.zeros(30, 8)})),
        "draws 24 codes, .* has 30",
    ),
    "tokenizer lacks a key": (
        TOKENIZER,
        lambda p: resave(p, lambda w: w.pop("decoder.mid.1.q.weight")),
        "lacks 1 of .* weights, among them decoder.mid.1.q.weight",
    ),
    "no tokenizer": (TOKENIZER, lambda p: shutil.copy(p.parent / TARGET, p), "is no LlamaGen image tokenizer"),
    "narrow tokenizer": (
        TOKENIZER,
        lambda p: resave(
            p, lambda w: w.update({"decoder.conv_blocks.1.res.0.conv1.weight": torch.zeros(24, 32, 3, 3)})
        ),
        "is no LlamaGen image tokenizer .*channels",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_refused_in_one_line(published, tmp_path, case):
    name, damage, message = DAMAGE[case]
    damage(published / name)
    with pytest.raises(HawkError, match=message) as caught:
        convert_llamagen(published_in(published), tmp_path / "model", n_head=2)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


def test_a_damaged_safetensors_file_is_refused(published, tmp_path):
    path = (published / TARGET).with_suffix(".safetensors")
    save_file(target_weights(), path)
    path.write_bytes(path.read_bytes()[:-9])
    (published / TARGET).unlink()
    with pytest.raises(HawkError, match="is damaged or cut short"):
        convert_llamagen(published_in(published), tmp_path / "model", n_head=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_head": None}, "has 2 layers 16 wide, which is no published size: say its --heads"),
        ({"n_head": 3}, "dim 16 must split into 3 heads"),
        ({"dtype": "int8"}, "unknown dtype 'int8': choose one of bfloat16, stored"),
    ],
)
def test_wrong_arguments_are_refused(published, tmp_path, arguments, message):
    with pytest.raises(HawkError, match=message):
        convert_llamagen(published_in(published), tmp_path / "model", **{"n_head": 2} | arguments)


def test_sizes_and_text_encoders_that_do_not_fit_are_refused(published, tmp_path, tiny_t5):
    with pytest.raises(HawkError, match="height must be a positive multiple of 2 pixels, not 9"):
        convert_llamagen(find_published(published, height=9, width=12), tmp_path / "model", n_head=2)
    with pytest.raises(HawkError, match=r"width must be at most 1048576 pixels, not a number .* too long to print"):
        convert_llamagen(find_published(published, height=8, width=8 * 10**5000), tmp_path / "model", n_head=2)
    with pytest.raises(HawkError, match=r"no T5 encoder at \./nowhere"):
        convert_llamagen(find_published(published, text="./nowhere", height=8), tmp_path / "model", n_head=2)
    wide = published / "t5-ckpt" / "flan-t5-xl" / "config.json"
    wide.write_text(wide.read_text().replace('"d_model": 12', '"d_model": 16'))
    with pytest.raises(HawkError, match="is 16 wide, the transformer takes captions 12 wide"):
        convert_llamagen(published_in(published), tmp_path / "model", n_head=2)


def test_a_folder_that_is_there_is_not_touched(published, converted, tmp_path):
    before = {path: path.read_bytes() for path in converted.iterdir()}
    with pytest.raises(HawkError, match="is there already: name a new folder"):
        convert_llamagen(published_in(published), converted, n_head=2)
    assert {path: path.read_bytes() for path in converted.iterdir()} == before
    (tmp_path / "empty").mkdir()
    convert_llamagen(published_in(published), tmp_path / "empty", n_head=2)
    assert load_model(tmp_path / "empty").name == "llamagen-t2i-2x16-8x12"


def impossible_folders(tmp_path: Path) -> list[Path]:
    """Paths at which the system allows no folder: a loop of links, below a file, too long, in a folder of its own."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("")
    return [tmp_path / "loop", tmp_path / "file" / "x" / "y", tmp_path / ("x" * 300), Path("/proc/none/model")]


def test_a_folder_that_cannot_be_is_refused_in_one_line(published, tmp_path):
    for out in impossible_folders(tmp_path):
        with pytest.raises(HawkError, match=r"the model cannot be saved to .* \(.+\): name another folder") as caught:
            convert_llamagen(published_in(published), out, n_head=2)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop", "published"]


def test_a_full_disk_leaves_nothing_behind(published, tmp_path, monkeypatch):
    real = safetensors.torch.save_file

    def full(tensors, path, metadata=None):
        if "quantize.embedding.weight" in tensors:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, metadata=metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        convert_llamagen(published_in(published), tmp_path / "model", n_head=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


# --- the command


def test_the_command_converts_and_the_result_draws(published, empty_folder):
    result = hawk_command(
        "convert", "llamagen", published, "fox", "--heads", 2, "--height", 8, "--width", 12, "--name", "fox", "--json"
    )
    report = last_json(result)
    assert (report["out"], report["name"], report["grid"]) == ("fox", "fox", [4, 6])
    drawn = last_json(hawk_command("generate", "a Red apple", "-m", "fox", "--method", "scd", "--seed", 3, "--json"))
    plain = last_json(hawk_command("generate", "a red apple", "-m", "fox", "--method", "ar", "--seed", 3, "--json"))
    assert drawn["cfg_scale"] == 7.5
    assert drawn["nfe"] < plain["nfe"] == 24
    facts = last_json(hawk_command("info", "fox", "--json"))
    assert facts["text"]["longest_prompt"] == "20 tokens"
    assert facts["grid"] == "4x6 tokens, 8x12 pixels"
    (published / "t5-ckpt" / "flan-t5-xl" / "model.safetensors").unlink()
    assert "no T5 text encoder could be read" in refused("generate", "a blue apple", "-m", "fox", "--method", "scd")


def test_the_command_refuses_in_one_line(published, empty_folder):
    assert "no published size" in refused("convert", "llamagen", published, "out")
    cut_short(published / TARGET)
    assert "cut short" in refused("convert", "llamagen", published, "out")
    assert "there is no folder nowhere" in refused("convert", "llamagen", "nowhere", "out")
    assert list(empty_folder.iterdir()) == []
