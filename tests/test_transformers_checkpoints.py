"""Folders of published checkpoints load and draw; damaged ones are refused in one line."""

import json
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    Emu3Config,
    Emu3ForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
    LlamaConfig,
)
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig
from typer.testing import CliRunner

import hawk
from fixtures.tiny_transformers import CODES, FAMILIES, PROMPTS, Tiny, save, tiny
from hawk import HawkError, HawkPipeline
from hawk.cli.app import app
from hawk.decoding.noise import HELD
from hawk.drafters.heads import DraftHeads, HeadsConfig
from hawk.models.hf.families import Lumina
from hawk.models.hf.model import family_of, read_hint
from hawk.models.hf.target import TransformersTarget
from hawk.models.tokenizers.vqgan import VQGAN, VQGANConfig

models = cache(tiny)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder for each family, with the weights in several files and an index."""
    parent = tmp_path_factory.mktemp("checkpoints")
    return {name: save(models(name), parent / name) for name in FAMILIES}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A Janus with the weights in one file, which a test may damage."""
    one = models("janus")
    one.hf.save_pretrained(tmp_path / "janus")
    one.tokenizer.save_pretrained(tmp_path / "janus")
    return tmp_path / "janus"


def sides(one: Tiny) -> dict[str, int]:
    return {"height": one.grid.height * one.model.cell, "width": one.grid.width * one.model.cell}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("janus", "lumina") else pytest.mark.proofs) for name in FAMILIES],
)
def test_a_published_folder_loads_by_path_and_draws(folders, name):
    one = models(name)
    pipe = HawkPipeline.from_pretrained(folders[name], "cpu", "float32")
    assert pipe.model.name == name
    assert type(pipe.model.family) is type(one.model.family)
    assert pipe.model.fingerprint == one.model.fingerprint
    drawn = {
        method: pipe(PROMPTS, seed=3, method=method, top_k=8, output_type="pt", **sides(one))
        for method in ("ar", "scd", "sjd-pac")
    }
    assert drawn["ar"].images.shape == (3, 3, *sides(one).values())
    assert torch.equal(drawn["ar"].tokens, drawn["scd"].tokens)
    assert drawn["ar"].nfe == one.grid.size > drawn["scd"].nfe
    around = hawk.accelerate(one.hf, one.tokenizer, vqgan=vqgan_of(folders[name]))
    assert torch.equal(around(PROMPTS, seed=3, method="scd", top_k=8, **sides(one)).tokens, drawn["ar"].tokens)


@pytest.mark.parametrize(
    "name", ["janus", *(pytest.param(f, marks=pytest.mark.proofs) for f in FAMILIES if f != "janus")]
)
@torch.no_grad()
def test_on_a_cpu_float16_holds_a_bfloat16_checkpoint_and_computes_in_float32(name, tmp_path):
    one = tiny(name, torch.bfloat16)
    folder = save(one, tmp_path / name)
    wide, half = (HawkPipeline.from_pretrained(folder, "cpu", dtype).model for dtype in ("float32", "float16"))
    assert half.fingerprint == wide.fingerprint == one.model.fingerprint
    assert (half.target.weight_dtype, half.target.dtype) == (torch.float16, torch.float32)
    hidden = [
        model.target.prefill(model.condition(["a cat"], [""], one.grid), True, 4).hidden for model in (wide, half)
    ]
    torch.testing.assert_close(*hidden)
    pipe = HawkPipeline.from_pretrained(folder, "cpu", "float16")
    drawn = [pipe("a cat", seed=3, method=method, **sides(one)).tokens for method in ("ar", "scd")]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_on_a_cpu_float16_rounds_nothing_but_the_weights_of_linear_layers(dtype, tmp_path):
    one = tiny("janus", dtype)
    folder = save(one, tmp_path / "janus")
    target = HawkPipeline.from_pretrained(folder, "cpu", "float16").model.target
    codes = torch.arange(CODES)
    assert torch.equal(
        target.family.model.model.generation_embeddings(codes), one.hf.model.generation_embeddings(codes).float()
    )


def vqgan_of(folder: Path) -> Path | None:
    path = folder / "vqgan.safetensors"
    return path if path.is_file() else None


def test_half_precision_keeps_the_pixel_decoder_in_float32(folders):
    model = HawkPipeline.from_pretrained(folders["janus"], "cpu", "bfloat16").model
    assert model.target.dtype == torch.bfloat16
    assert {p.dtype for p in model.family.model.model.vqmodel.parameters()} == {torch.float32}
    codes = torch.zeros(1, 4, 4, dtype=torch.long)
    assert model.pixels(codes).dtype == torch.float32
    chameleon = HawkPipeline.from_pretrained(folders["chameleon"], "cpu", "float16").model
    assert chameleon.pixels(codes).dtype == torch.float32


def test_the_command_line_draws_and_tells(folders, empty_folder):
    runner = CliRunner()
    told = runner.invoke(app, ["info", str(folders["janus"]), "--json"])
    facts = json.loads(told.stdout.splitlines()[-1])
    assert facts["target"]["architecture"] == "JanusForConditionalGeneration"
    assert facts["tokenizer"]["codes"] == CODES
    command = ["generate", "a red apple", "--model", str(folders["janus"]), "--method", "scd", "--seed", "1", "--json"]
    drawn = runner.invoke(app, [*command, "--dtype", "float32"])
    assert drawn.exit_code == 0, drawn.output
    report = json.loads(drawn.stdout.splitlines()[-1])
    assert Path(report["path"]).is_file()
    assert (report["model"], report["cfg_scale"]) == ("janus", 5.0)
    smaller = ["generate", "a red apple", "--model", str(folders["lumina"]), "--method", "scd", "--dtype", "float32"]
    assert runner.invoke(app, smaller).exit_code == 2, "the tiny vocabulary has no token for 48 rows"
    drawn = runner.invoke(app, [*smaller, "--height", "8", "--width", "8"])
    assert drawn.exit_code == 0, drawn.output


def test_a_drafter_folder_loads_for_its_target_alone(folders, tmp_path):
    heads, fingerprint = DraftHeads(HeadsConfig(32, horizontal=2, vertical=1)), models("janus").model.fingerprint
    heads.save(tmp_path / "heads", fingerprint)
    pipe = HawkPipeline.from_pretrained(folders["janus"], "cpu", "float32", tmp_path / "heads")
    drawn = {name: pipe(PROMPTS, seed=1, method=name, verifier="coupled").tokens for name in ("ar", "hawk", "medusa")}
    assert torch.equal(drawn["hawk"], drawn["ar"])
    assert torch.equal(drawn["medusa"], drawn["ar"])
    with pytest.raises(HawkError, match="was trained for target"):
        HawkPipeline.from_pretrained(folders["emu3"], "cpu", "float32", tmp_path / "heads")


def test_lumina_is_told_from_chameleon(folders, tmp_path):
    copied = Path(shutil.copytree(folders["chameleon"], tmp_path / "chameleon"))
    (copied / "hawk.json").write_text('{"family": "lumina", "side": 64}')
    family = HawkPipeline.from_pretrained(copied, "cpu", "float32").model.family
    assert isinstance(family, Lumina)
    assert family.grid.height == 64
    (copied / "hawk.json").write_text('{"famly": "lumina"}')
    with pytest.raises(HawkError, match=r"hawk.json: famly: Extra"):
        read_hint(copied)


def test_the_official_decoder_file_is_read_without_running_code(folders, tmp_path):
    copied = Path(shutil.copytree(folders["chameleon"], tmp_path / "chameleon"))
    (copied / "vqgan.safetensors").unlink()
    with pytest.raises(HawkError, match=r"no pixel decoder: put vqgan.ckpt"):
        HawkPipeline.from_pretrained(copied, "cpu", "float32")
    decoder = models("chameleon").model.family.decoder
    names = {"mid.0": "mid.block_1", "mid.1": "mid.attn_1", "mid.2": "mid.block_2"}
    names |= {f"conv_blocks.{level}": f"up.{1 - level}" for level in (0, 1)} | {".res.": ".block."}
    official = {"loss.discriminator.num_batches_tracked": torch.tensor(3), "encoder.conv_in.bias": torch.zeros(3)}
    for name, tensor in decoder.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        official[name] = tensor
    (copied / "tokenizer").mkdir()
    torch.save({"state_dict": official}, copied / "tokenizer" / "vqgan.ckpt")
    codes = torch.arange(CODES)[:9].view(1, 3, 3)
    model = HawkPipeline.from_pretrained(copied, "cpu", "float32").model
    torch.testing.assert_close(model.pixels(codes), decoder.decode(codes))
    torch.save({"state_dict": official, "callback": SimpleNamespace()}, copied / "tokenizer" / "vqgan.ckpt")
    refused(copied, r"holds a Python object \(types.SimpleNamespace\), which could run code")
    save_file({"decoder.conv_in.bias": torch.zeros(3)}, copied / "vqgan.safetensors")
    refused(copied, "no decoder of this checkpoint's shape")


# --- damage --------------------------------------------------------------------------------------------------


def refused(folder: Path, why: str) -> None:
    with pytest.raises(HawkError, match=why) as caught:
        HawkPipeline.from_pretrained(folder, "cpu", "float32")
    assert "\n" not in str(caught.value)


def rewrite(folder: Path, change) -> None:
    """Change the tensors in a checkpoint's single weight file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_the_whole_folder_is_taken(folder):
    assert HawkPipeline.from_pretrained(folder, "cpu", "float32").model.name == "janus"


def test_a_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(folder, "damaged or cut short")


def test_an_empty_single_file_is_refused_beside_whole_shards(folder):
    """transformers prefers the single file to the index, so that the empty file would be read."""
    whole = (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(load_file(whole), whole.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").write_bytes(b"")
    refused(folder, "damaged or cut short")


def test_a_missing_a_foreign_and_a_misshapen_weight_are_refused(folder):
    whole = load_file(folder / "model.safetensors")
    head = next(name for name in whole if "generation_head.vision_head.weight" in name)
    rewrite(folder, lambda tensors: tensors.pop(head))
    refused(folder, r"lack 1 tensors, among them .*generation_head.vision_head.weight")
    rewrite(folder, lambda tensors: tensors.update({head: whole[head], "model.foreign.weight": torch.zeros(2)}))
    refused(folder, r"hold model.foreign.weight, which JanusForConditionalGeneration does not have")
    rewrite(folder, lambda tensors: (tensors.pop("model.foreign.weight"), tensors.update({head: whole[head][:5]})))
    refused(folder, "no checkpoint that transformers can read")


def test_a_wrong_dtype_is_refused(folder):
    rewrite(folder, lambda tensors: tensors.update({name: t.to(torch.int8) for name, t in list(tensors.items())[:1]}))
    refused(folder, "is I8, weights must be one of BF16, F16, F32, F64")


def test_pickled_weights_are_refused_unread(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not even opened")
    refused(folder, r"pickled weights only \(pytorch_model.bin\)")


def test_an_index_that_leads_nowhere_is_refused(folders, tmp_path):
    copied = Path(shutil.copytree(folders["emu3"], tmp_path / "emu3"))
    index = copied / "model.safetensors.index.json"
    named = json.loads(index.read_text())
    some = next(iter(named["weight_map"].values()))
    (copied / some).unlink()
    refused(copied, rf"{some} is missing, though model.safetensors.index.json names it")
    named["weight_map"] = dict.fromkeys(named["weight_map"], "../elsewhere.safetensors")
    index.write_text(json.dumps(named))
    refused(copied, "names ../elsewhere.safetensors, which is no safetensors file beside it")


def test_unknown_kinds_and_missing_parts_are_refused(folder):
    (folder / "tokenizer.json").unlink()
    refused(folder, "no tokenizer in")
    (folder / "model.safetensors").unlink()
    refused(folder, "has no weights: neither")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    refused(folder, "is a 'llava' model: Hawk draws with janus, emu3, chameleon")


def test_without_transformers_it_says_what_to_install(folder, monkeypatch):
    import builtins
    import sys

    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.split(".")[0] == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return real(name, *args, **kwargs)

    for module in [name for name in sys.modules if name in ("hawk.models.hf.model", "hawk.models.hf.target")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", absent)
    refused(folder, r"run pip install '.\[hf\]' in Hawk's folder")


# --- around a loaded model -----------------------------------------------------------------------------------


def test_accelerate_takes_pipelines_and_processors_and_says_what_it_cannot_take(folders):
    one = models("janus")
    plain = one.tokenizer.__class__.from_pretrained(folders["janus"])
    template, plain.chat_template = plain.chat_template, None
    processor = SimpleNamespace(tokenizer=plain, chat_template=template)
    held = hawk.accelerate(SimpleNamespace(model=one.hf, processor=processor))
    assert held.model.condition(PROMPTS, [""] * 3, one.grid) == one.model.condition(PROMPTS, [""] * 3, one.grid)
    assert plain.chat_template is None
    loaded = JanusForConditionalGeneration.from_pretrained(folders["janus"])
    assert hawk.accelerate(loaded).model.fingerprint == one.model.fingerprint
    with pytest.raises(HawkError, match="no transformers model"):
        hawk.accelerate(object())
    with pytest.raises(HawkError, match="no chat template"):
        hawk.accelerate(one.hf, plain)("a cat", method="ar")
    with pytest.raises(HawkError, match="a 'chameleon' model needs vqgan="):
        hawk.accelerate(models("chameleon").hf, models("chameleon").tokenizer)
    loaded.config.text_config._attn_implementation = "flash_attention_2"
    with pytest.raises(HawkError, match="'flash_attention_2' attention takes no tree mask"):
        hawk.accelerate(loaded, one.tokenizer)
    loaded.config.text_config._attn_implementation = "sdpa"
    loaded.hf_device_map = {"model.language_model.layers.0": 0, "model.language_model.layers.1": 1}
    with pytest.raises(HawkError, match="several devices"):
        hawk.accelerate(loaded, one.tokenizer)


# --- official shapes -----------------------------------------------------------------------------------------


def janus_pro(width: int, layers: int, heads: int, inner: int) -> JanusForConditionalGeneration:
    text = LlamaConfig(
        vocab_size=102400,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=16384,
    )
    vq = JanusVQVAEConfig(projection_dim=width, image_token_embed_dim=width)
    return JanusForConditionalGeneration(
        JanusConfig(text_config=text, vision_config=JanusVisionConfig(projection_dim=width), vq_config=vq)
    )


def emu3_8b() -> Emu3ForConditionalGeneration:
    visual = {f"<|visual token {code:06d}|>": 151854 + code for code in range(32768)}
    words = {"<image>": 151847, "<|extra_200|>": 151846, **visual}
    return Emu3ForConditionalGeneration(Emu3Config(vocabulary_map=words))


def chameleon_7b() -> ChameleonForConditionalGeneration:
    codes = {f"IMGIMG{''.join('ABCDEFGHIJ'[int(digit)] for digit in str(code))}Z": 4 + code for code in range(8192)}
    return ChameleonForConditionalGeneration(ChameleonConfig(vocabulary_map={"<image>": 8711, **codes}))


@pytest.mark.parametrize(
    ("make", "vocab", "width", "billions"),
    [
        (lambda: janus_pro(2048, 24, 16, 5632), 16384, 2048, 1.5),
        (lambda: janus_pro(4096, 30, 32, 11008), 16384, 4096, 6.6),
        (emu3_8b, 32768, 4096, 8.5),
        (chameleon_7b, 8192, 4096, 7.0),
    ],
    ids=["janus-pro-1b", "janus-pro-7b", "emu3", "chameleon"],
)
def test_official_shapes_fit_the_adapter(make, vocab, width, billions):
    with torch.device("meta"):
        family = family_of(make().to(torch.bfloat16), None, VQGAN(VQGANConfig.chameleon()))
        target = TransformersTarget(family)
        logits = target.head(torch.empty(2, width, dtype=torch.bfloat16))
        assert target.embed(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, width)
        prefilled = target.prefill(target.blank_prompt(), guided=True, capacity=target.grid.size + 65)
    held = sum(weight.nbytes for weight in family.model.parameters()) + 2 * prefilled.cache.keys.nbytes
    noise = 4 * min(target.grid.size, HELD) * vocab
    assert prefilled.hidden.shape == (2, width)
    assert held + noise < 22e9, "bfloat16, guidance and a window of 64 fit into 24 GB"
    assert (target.vocab_size, target.hidden_size, logits.shape) == (vocab, width, (2, vocab))
    assert target.parameter_count / 1e9 == pytest.approx(billions, abs=0.1)
