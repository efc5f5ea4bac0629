"""Nothing is drawn silently wrong: pixels that overflow, control words in prompts, folders that lack a part."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fixtures.tiny_transformers import CODES, FAMILIES, PROMPTS, save, tiny
from hawk import HawkError, HawkPipeline, accelerate
from hawk.cli.tables import model_facts
from hawk.decoding.grid import Grid
from hawk.drafters.settings import FusedSettings, settings_for
from hawk.models import loading
from hawk.models.checkpoint import read_checkpoint
from hawk.models.folder import HEADS_FOLDER, load_model
from hawk.models.hf.control import added_tokens, is_text
from hawk.models.hf.families import Lumina
from hawk.models.pixels import FAR, sound_pixels
from hawk.nn import stored


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
    pixels = sound_pixels(one.model, codes)
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
        sound_pixels(one.model, codes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_pixels_of_our_own_tokenizer_that_are_not_finite_are_refused(saved_model, value):
    model = load_model(saved_model)
    codes = torch.zeros(1, 4, 6, dtype=torch.long)
    assert sound_pixels(model, codes).abs().max() <= 1
    next(p for name, p in model.tokenizer.decoder.named_parameters() if name.endswith("bias")).fill_(value)
    with pytest.raises(HawkError, match="pixels that are not finite"):
        sound_pixels(model, codes)


@pytest.mark.parametrize("name", ["own", "janus", "chameleon"])
def test_pixels_that_lie_absurdly_far_out_are_refused_in_one_line(name, saved_model):
    """A last weight that is 1e30 times too large leaves a picture of black and white only."""
    one = None if name == "own" else tiny(name)
    model = load_model(saved_model) if one is None else one.model
    codes = torch.arange(4 * 6).remainder(CODES).view(1, 4, 6)
    if one is not None:
        codes = torch.arange(one.grid.size).remainder(CODES).view(1, one.grid.height, one.grid.width)
    assert sound_pixels(model, codes).abs().max() < FAR / 10, "sound pixels are far from the limit"
    last = model.tokenizer.decoder[-2].weight if one is None else decoder_of(model).decoder.conv_out.weight
    last.data.mul_(1e30)
    with pytest.raises(HawkError, match=r"the pixel decoder gave pixels up to \de\+\d\d, .* damaged") as caught:
        sound_pixels(model, codes)
    assert "\n" not in str(caught.value)


# --- memory that ends ----------------------------------------------------------------------------------------


def out_of_memory(kind: str) -> None:
    """Raise what PyTorch raises where a GPU's or this machine's memory ends."""
    if kind == "gpu":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    if kind == "windows":
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to")
    torch.empty(2**60, dtype=torch.uint8)


def tighten(model, room: int, kind: str, monkeypatch) -> list[int]:
    """Let a model's decoder have memory for `room` images at once; the list returned takes the sizes of its batches."""
    decode, sizes = model.tokenizer.unclamped, []

    def tight(codes):
        sizes.append(len(codes))
        return decode(codes) if len(codes) <= room else out_of_memory(kind)

    monkeypatch.setattr(model.tokenizer, "unclamped", tight)
    return sizes


@pytest.mark.parametrize("kind", ["gpu", "cpu", "windows"])
def test_pixels_that_do_not_fit_at_once_are_decoded_in_parts_before_giving_up(kind, saved_model, monkeypatch):
    model = load_model(saved_model)
    codes = torch.arange(5 * 24).remainder(12).view(5, 4, 6)
    expected = sound_pixels(model, codes)
    with monkeypatch.context() as patch:
        sizes = tighten(model, 2, kind, patch)
        torch.testing.assert_close(sound_pixels(model, codes), expected)
        assert sizes == [5, 3, 2, 1, 2]
    tighten(model, 0, kind, monkeypatch)
    with pytest.raises(HawkError, match=r"memory is too small \(.+\): the tokens were drawn, but not even") as refused:
        sound_pixels(model, codes)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("the GPU's" if kind == "gpu" else "the machine's")


def test_another_error_of_a_pixel_decoder_is_not_called_memory(saved_model, monkeypatch):
    model = load_model(saved_model)
    monkeypatch.setattr(model.tokenizer, "unclamped", lambda codes: torch.ones(2, 3) @ torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        sound_pixels(model, torch.zeros(2, 4, 6, dtype=torch.long))


def test_images_are_drawn_where_only_one_fits_into_the_decoder(saved_model, monkeypatch):
    pipe = HawkPipeline.from_pretrained(saved_model, "cpu", "float32")
    call = {"seed": 1, "num_images_per_prompt": 3, "method": "ar", "output_type": "pt", "batch_size": 3}
    expected = pipe("a red cat", **call).images
    sizes = tighten(pipe.model, 1, "cpu", monkeypatch)
    torch.testing.assert_close(pipe("a red cat", **call).images, expected)
    assert sizes == [3, 2, 1, 1, 1]


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_memory_that_ends_while_steps_are_priced_or_a_model_is_loaded_is_one_line(kind, saved_model, monkeypatch):
    target = load_model(saved_model).target
    monkeypatch.setattr(target, "prefill", lambda *_, **__: out_of_memory(kind))
    fitted = FusedSettings.unfitted()
    elsewhere = replace(fitted, measured_on="elsewhere", refresh=8, tokens_at={8: 2.0})
    with pytest.raises(
        HawkError, match=r"memory is too small .*: steps cannot be timed, so load the model in bfloat16"
    ):
        settings_for(elsewhere, target, f"full {kind}")
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: out_of_memory(kind))
    with pytest.raises(HawkError, match=r"memory is too small .*: load the model in bfloat16"):
        HawkPipeline.from_pretrained(saved_model, "cpu", "float32")


def test_a_checkpoint_that_does_not_fit_is_not_called_unreadable(tmp_path, monkeypatch):
    one = tiny("janus")
    folder = save(one, tmp_path / "janus")
    monkeypatch.setattr(type(one.hf), "from_pretrained", lambda *_, **__: out_of_memory("gpu"))
    with pytest.raises(HawkError, match=r"the GPU's memory is too small .*: load the model in bfloat16"):
        loaded(folder)


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


# --- folders -------------------------------------------------------------------------------------------------


def loaded(folder: Path):
    return HawkPipeline.from_pretrained(folder, "cpu", "float32").model


def edit_json(path: Path, change) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_chat_template_that_leaves_the_prompt_out_is_refused():
    one = tiny("janus")
    pipe = accelerate(one.hf, one.tokenizer)
    one.tokenizer.chat_template = "{% for m in messages %}User {% endfor %}Assistant "
    with pytest.raises(HawkError, match="the chat template of this Janus leaves the prompt out"):
        pipe("a red apple", seed=1, method="ar")


@pytest.mark.parametrize("method", ["ar", "scd", "hawk", "sjd"])
def test_logits_that_overflow_at_the_temperature_are_refused(method):
    one = tiny("chameleon")
    one.hf.lm_head.weight.data.mul_(1e34)  # the head takes its rows from there
    pipe = HawkPipeline(one.model, torch.device("cpu"), "float32", "eager")
    with pytest.raises(HawkError, match="logits are not finite in float32"):
        pipe("a cat", seed=1, method=method, temperature=1e-5, guidance_scale=1)
    assert pipe("a cat", seed=1, method=method, temperature=0).tokens.shape == (1, 16)


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_janus_reads_its_chat_template_from_the_processors_files(name, tmp_path):
    one = tiny("janus")
    folder = save(one, tmp_path / "janus")
    (folder / "chat_template.jinja").unlink()
    (folder / name).write_text(json.dumps({"chat_template": one.tokenizer.chat_template}))
    wanted = one.model.condition(PROMPTS, [""] * 3, one.grid)
    assert loaded(folder).condition(PROMPTS, [""] * 3, one.grid) == wanted


def test_janus_draws_with_a_tokenizer_that_names_no_pad_token(tmp_path):
    one = tiny("janus")
    wanted = one.model.condition(PROMPTS, [""] * 3, one.grid)
    folder = save(one, tmp_path / "janus")
    edit_json(folder / "tokenizer_config.json", lambda config: config.pop("pad_token"))
    assert loaded(folder).condition(PROMPTS, [""] * 3, one.grid) == wanted, "the model's own config names it, too"
    (folder / "generation_config.json").unlink()
    model = loaded(folder)
    model.family.model.generation_config.pad_token_id = None
    ended = model.condition(PROMPTS, [""] * 3, one.grid)
    assert set(ended.negatives[0]) == {1, 2, 4}, "as in transformers, end-of-sequence pads then"
    del model.family.padding
    model.family.tokenizer.eos_token = None
    with pytest.raises(HawkError, match="names no pad_token"):
        model.condition(PROMPTS, [""] * 3, one.grid)


@pytest.mark.parametrize("extra_file", [False, True])
def test_anole_draws_with_the_pixel_decoder_inside_its_checkpoint(tmp_path, extra_file):
    one = tiny("chameleon")
    folder = tmp_path / "anole"
    one.hf.save_pretrained(folder)
    one.tokenizer.save_pretrained(folder)
    decoder = one.model.family.decoder
    path = folder / "model.safetensors"
    save_file({**load_file(path), **as_anole(decoder.state_dict())}, path, {"format": "pt"})
    if extra_file:
        save_file({name: tensor.clone() for name, tensor in decoder.state_dict().items()}, folder / "vqgan.safetensors")
    codes = torch.arange(CODES)[:9].view(1, 3, 3)
    model = loaded(folder)
    torch.testing.assert_close(model.pixels(codes), decoder.decode(codes))
    assert model.fingerprint == one.model.fingerprint
    assert HawkPipeline(model, torch.device("cpu"), "float32")("a cat", seed=1, method="scd").images


def as_anole(weights):
    """A decoder's weights under the names that Anole's checkpoint has for them."""
    names = {"mid.0": "mid.block_1", "mid.1": "mid.attn_1", "mid.2": "mid.block_2", ".res.": ".block."}
    names |= {f"conv_blocks.{level}": f"up.{1 - level}" for level in (0, 1)}
    renamed = {}
    for name, tensor in weights.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        renamed[f"model.vqmodel.{name}"] = tensor.clone()
    return renamed


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 1342\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "vqgan.ckpt"])
def test_a_git_lfs_pointer_in_a_transformers_folder_is_named(name, tmp_path):
    one = tiny("chameleon")
    one.hf.save_pretrained(tmp_path)
    one.tokenizer.save_pretrained(tmp_path)
    save_file({n: t.clone() for n, t in one.model.family.decoder.state_dict().items()}, tmp_path / "vqgan.safetensors")
    if name == "vqgan.ckpt":
        (tmp_path / "vqgan.safetensors").unlink()
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(HawkError, match=f"{name} is a Git LFS pointer: run git lfs pull"):
        loaded(tmp_path)


DRAFTER_FILES = ("heads.safetensors", "heads.json", "pool.json", "feature.safetensors", "left.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "target.safetensors",
        "tokenizer.safetensors",
        "words.safetensors",
        "words.txt",
        "config.json",
        *(f"drafters/heads/{name}" for name in DRAFTER_FILES),
    ],
)
def test_a_git_lfs_pointer_in_our_own_folder_is_named(name, saved_model, tmp_path):
    folder = Path(shutil.copytree(saved_model, tmp_path / "model"))
    (folder / name).write_text(POINTER)
    with pytest.raises(HawkError, match=f"{name} is a Git LFS pointer: run git lfs pull"):
        load_model(folder)


@pytest.mark.parametrize("name", DRAFTER_FILES)
def test_a_git_lfs_pointer_in_a_drafter_folder_is_named(name, saved_model, tmp_path):
    drafter = Path(shutil.copytree(saved_model / HEADS_FOLDER, tmp_path / "drafter"))
    (drafter / name).write_text(POINTER)
    with pytest.raises(HawkError, match=f"{name} is a Git LFS pointer: run git lfs pull"):
        load_model(saved_model, drafter=drafter)


def test_a_git_lfs_pointer_among_published_files_is_named(tmp_path):
    for name in ("t2i_XL_stage1_256.pt", "model.safetensors"):
        (tmp_path / name).write_text(POINTER)
        with pytest.raises(HawkError, match=f"{name} is a Git LFS pointer"):
            read_checkpoint(tmp_path / name)


# --- the default dtype ---------------------------------------------------------------------------------------


def test_the_default_dtype_on_a_gpu_follows_the_size_wherever_the_model_comes_from(saved_model, tmp_path, monkeypatch):
    folder = save(tiny("janus"), tmp_path / "janus")
    parameters = sum(p.numel() for p in load_model(saved_model).target.parameters())
    assert not loading.is_large(saved_model)
    assert not loading.is_large(folder)
    monkeypatch.setattr(loading, "LARGE", parameters - 1)
    assert loading.is_large(saved_model)
    assert loading.is_large(folder)
    monkeypatch.setattr(loading, "LARGE", parameters)
    assert not loading.is_large(saved_model)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [loading.dtype_named("auto", cuda, large) for large in (True, False)] == ["bfloat16", "float32"]
    monkeypatch.setattr(loading, "fast_dtype", lambda: torch.float32)
    monkeypatch.setattr(loading, "can_pack_float16", lambda: True)
    assert [loading.dtype_named("auto", cpu, large) for large in (True, False)] == ["float16", "float16"]
    monkeypatch.setattr(loading, "can_pack_float16", lambda: False)
    assert loading.dtype_named("auto", cpu, True) == "float32"


# --- facts without weights -----------------------------------------------------------------------------------


@pytest.fixture
def opened_tensors(monkeypatch) -> list[str]:
    """The names of the tensors that are read from safetensors files through `stored.opened`."""
    read: list[str] = []
    real = stored.safe_open

    class Watched:
        def __init__(self, path: str, framework: str) -> None:
            self.file = real(path, framework=framework)

        def __enter__(self):
            return self

        def __exit__(self, *error: object) -> None:
            self.file.__exit__(*error)

        def __getattr__(self, name: str):
            return getattr(self.file, name)

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(stored, "safe_open", Watched)
    return read


@pytest.mark.parametrize("name", ["janus", "emu3", "chameleon"])
def test_the_facts_of_a_checkpoint_are_told_without_its_weights(name, tmp_path, opened_tensors, monkeypatch):
    folder = save(tiny(name), tmp_path / name)
    whole = loaded(folder)
    del opened_tensors[:]
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", None)
    outline = loading.load_outline(folder)
    assert model_facts(folder, outline) == model_facts(folder, whole)
    assert opened_tensors
    assert all("lm_head" in read or "generation_head" in read for read in opened_tensors)


def test_the_facts_of_our_own_folder_are_told_without_its_weights(saved_model, opened_tensors):
    whole = model_facts(saved_model, load_model(saved_model))
    del opened_tensors[:]
    assert model_facts(saved_model, loading.load_outline(saved_model)) == whole
    drafter = {name for path in (saved_model / HEADS_FOLDER).glob("*.safetensors") for name in stored.shapes_in(path)}
    assert set(opened_tensors) == {"output.weight", "vectors", "scales"} | drafter
