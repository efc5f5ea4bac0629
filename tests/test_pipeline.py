"""Model folders are saved and loaded whole, refused when damaged; the pipeline draws what its arguments say."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import hawk.decoding.recording
import hawk.models.loading
from hawk import HawkError, HawkPipeline
from hawk.decoding.request import Condition
from hawk.drafters.methods import METHODS
from hawk.models.folder import HEADS_FOLDER, load_model, read_config, save_model, target_fingerprint
from hawk.models.protocol import ImageTarget, Model
from hawk.pipeline import StoppedError, image_seeds, tokens_sha256

HEADS = HEADS_FOLDER.as_posix()


@pytest.fixture
def model_copy(saved_model, tmp_path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(saved_model, tmp_path / "model"))


@pytest.fixture(scope="module")
def pipe(saved_model) -> HawkPipeline:
    """In float64, where rounding cannot flip an argmax."""
    return HawkPipeline.from_pretrained(saved_model, device="cpu", dtype="float64")


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_config(folder: Path, part: str, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[part] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# --- model folders


def test_a_saved_model_loads_as_it_was(saved_model, tmp_path):
    model = load_model(saved_model)
    assert model.name == "tiny"
    assert model.config.defaults.temperature == 0.8
    assert not any(p.is_meta for p in model.target.parameters())
    heads = model.drafting.heads
    save_model(tmp_path / "again", model.name, model.target, model.tokenizer, saved_model, model.config.defaults, heads)
    again = load_model(tmp_path / "again")
    assert again.config == model.config
    for ours, theirs in (
        (model.target, again.target),
        (model.tokenizer, again.tokenizer),
        (heads, again.drafting.heads),
    ):
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_says_nothing_of_its_text_encoder_has_word_vectors(model_copy):
    before = read_config(model_copy)
    config = json.loads((model_copy / "config.json").read_text())
    assert config.pop("text") == {"kind": "static"}
    (model_copy / "config.json").write_text(json.dumps(config))
    assert read_config(model_copy) == before
    assert load_model(model_copy).text.facts()["words"] == 7


def test_weights_on_disk_are_bfloat16_under_the_official_names(saved_model):
    stored = load_file(saved_model / "target.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    official = {
        "cls_embedding.cap_proj.fc1.weight",
        "cls_embedding.uncond_embedding",
        "tok_embeddings.weight",
        "layers.1.attention.wqkv.weight",
        "layers.1.feed_forward.w2.weight",
        "layers.1.ffn_norm.weight",
        "norm.weight",
        "output.weight",
    }
    assert official <= stored.keys()


def test_shards_hold_the_same_model_and_replace_the_single_file(model_copy):
    model = load_model(model_copy)
    save_model(model_copy, "tiny", model.target, model.tokenizer, model_copy, shard_bytes=4096)
    shards = sorted(model_copy.glob("target-*-of-*.safetensors"))
    assert len(shards) > 2
    assert not (model_copy / "target.safetensors").exists()
    assert all(path.stat().st_size < 4096 + 2048 for path in shards)  # with its header
    again = load_model(model_copy)
    for name, tensor in model.target.state_dict().items():
        assert torch.equal(tensor, again.target.state_dict()[name]), name
    save_model(model_copy, "tiny", model.target, model.tokenizer, model_copy)
    assert [path.name for path in model_copy.glob("target*")] == ["target.safetensors"]


def test_a_missing_shard_is_named(model_copy):
    model = load_model(model_copy)
    save_model(model_copy, "tiny", model.target, model.tokenizer, model_copy, shard_bytes=4096)
    lost = sorted(model_copy.glob("target-*-of-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(HawkError, match=lost.name):
        load_model(model_copy)


def test_a_save_cut_short_leaves_the_old_weights(model_copy, monkeypatch):
    model, before = load_model(model_copy), (model_copy / "target.safetensors").read_bytes()

    def cut_short(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", cut_short)
    with pytest.raises(HawkError, match=r"cannot write .*target.safetensors: .*No space"):
        save_model(model_copy, "tiny", model.target, model.tokenizer, model_copy)
    assert (model_copy / "target.safetensors").read_bytes() == before
    assert not list(model_copy.rglob("*.tmp"))


DAMAGE = {
    "config.json gone": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config.json cut short": (lambda f: (f / "config.json").write_text('{"format": "ha'), "not valid JSON"),
    "config.json a list": (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
    "another format": (lambda f: edit_json(f / "config.json", format="hawk-2"), "format"),
    "another architecture": (lambda f: edit_json(f / "config.json", architecture="vit"), "architecture"),
    "unknown field": (lambda f: edit_json(f / "config.json", extra=1), "extra"),
    "unknown target field": (lambda f: edit_config(f, "target", depth=3), "unknown field depth"),
    "no layers": (lambda f: edit_config(f, "target", n_layer=0), "target.n_layer is 0"),
    "heads that do not divide": (lambda f: edit_config(f, "target", n_head=3), "must split into 3 heads"),
    "bad defaults": (lambda f: edit_config(f, "defaults", temperature=-1), "temperature must be"),
    "bad tokenizer": (lambda f: edit_config(f, "tokenizer", kind="vae"), "tokenizer: .*'vae'.* 'fsq', 'vqgan'"),
    "target gone": (lambda f: (f / "target.safetensors").unlink(), "target.safetensors is missing"),
    "target cut short": (
        lambda f: (f / "target.safetensors").write_bytes((f / "target.safetensors").read_bytes()[:3000]),
        "damaged or cut short",
    ),
    "target not safetensors": (lambda f: (f / "target.safetensors").write_bytes(b"junk" * 9), "damaged or cut short"),
    "a weight missing": (
        lambda f: edit_weights(f / "target.safetensors", lambda t: t.pop("norm.weight")),
        "lacks 1 of .* norm.weight",
    ),
    "a weight too many": (
        lambda f: edit_weights(f / "target.safetensors", lambda t: t.update(bias=torch.zeros(2))),
        "holds bias, which this architecture does not have",
    ),
    "a weight of another shape": (
        lambda f: edit_weights(f / "target.safetensors", lambda t: t.update({"norm.weight": torch.zeros(5)})),
        r"norm.weight has shape \(5,\), config.json asks for \(16,\)",
    ),
    "weights of integers": (
        lambda f: edit_weights(f / "target.safetensors", lambda t: t.update({"norm.weight": torch.zeros(16).long()})),
        "norm.weight is I64",
    ),
    "a larger config": (lambda f: edit_config(f, "target", n_layer=3), "lacks .* layers.2"),
    "tokenizer gone": (lambda f: (f / "tokenizer.safetensors").unlink(), "tokenizer.safetensors is missing"),
    "tokenizer of other codes": (lambda f: edit_config(f, "tokenizer", levels=[4, 4]), "12 codes.* has 16|shape"),
    "words gone": (lambda f: (f / "words.txt").unlink(), "words.txt"),
    "words cut short": (lambda f: (f / "words.safetensors").write_bytes(b"junk"), r"words\.safetensors is damaged"),
    "text for another target": (
        lambda f: (f / "text.json").write_text('{"tokens": 9, "context": 1, "position_channels": 4}'),
        "captions of 6x",
    ),
    "heads of another target": (lambda f: edit_json(f / HEADS / "heads.json", target="0" * 16), "train a new drafter"),
    "heads cut short": (lambda f: (f / HEADS / "heads.safetensors").write_bytes(b"junk"), "drafter .* damaged"),
    "heads of another shape": (lambda f: edit_json(f / HEADS / "heads.json", horizontal=9), "drafter .* damaged"),
    "heads without weights": (lambda f: (f / HEADS / "heads.safetensors").unlink(), r"heads\.json is there, heads\."),
    "pool cut short": (lambda f: (f / HEADS / "pool.json").write_text("{"), "pool.json"),
    "pool without a pattern": (
        lambda f: edit_json(f / HEADS / "pool.json", weights={"0": [[1.0]]}),
        "no weights for the sources",
    ),
    "pool of uneven rates": (lambda f: edit_json(f / HEADS / "pool.json", edges=[1.0]), "one more row of rate"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_model_is_refused_in_one_line(model_copy, case):
    damage, message = DAMAGE[case]
    load_model(model_copy)
    damage(model_copy)
    with pytest.raises(HawkError, match=message) as caught:
        load_model(model_copy)
    assert "\n" not in str(caught.value)


def test_fingerprint_belongs_to_config_and_output_head(model_copy):
    model = load_model(model_copy)
    own = target_fingerprint(model_copy)
    assert (
        own
        == target_fingerprint(model.target)
        == model.fingerprint
        == load_model(model_copy, torch.float16).fingerprint
    )
    with torch.no_grad():
        model.target.output.weight[0, 0] += 1
    assert target_fingerprint(model.target) != own
    wider = dataclasses.replace(read_config(model_copy).target, rope_base=5000.0)
    model.target.output.weight.data[0, 0] -= 1
    model.target.config = wider
    assert target_fingerprint(model.target) != own


def test_heads_of_another_target_can_be_left_alone(model_copy):
    """As training new ones has to."""
    edit_json(model_copy / HEADS / "heads.json", target="0" * 16)
    assert load_model(model_copy, with_heads=False).drafting is None


def test_drafter_folder_takes_the_place_of_the_models_own(model_copy, tmp_path):
    other = Path(shutil.copytree(model_copy / HEADS, tmp_path / "heads"))
    edit_weights(other / "heads.safetensors", lambda t: t["horizontal.0.bias"].fill_(7.0))
    assert load_model(model_copy, drafter=other).drafting.heads.horizontal[0].bias[0] == 7
    shutil.rmtree(model_copy / HEADS)
    assert HawkPipeline.from_pretrained(model_copy, "cpu", drafter=other).model.drafting is not None


# --- drawing


RUNNABLE = [name for name in METHODS if name != "hawk-spatial"]  # the saved model has no spatial drafter


TWO = {"prompt": ["a red apple", "a cat"], "seed": 7, "height": 24, "width": 32}
"""Two images of 3x4 tokens."""


@pytest.fixture(scope="module")
def plain(pipe):
    """What plain AR draws."""
    return pipe(**TWO, method="ar")


@pytest.mark.parametrize("method", RUNNABLE)
def test_every_method_draws_the_tokens_of_ar_under_the_coupled_verifier(pipe, plain, method):
    other = pipe(**TWO, method=method, verifier="coupled")
    assert torch.equal(plain.tokens, other.tokens)
    assert np.array_equal(np.asarray(plain.images[1]), np.asarray(other.images[1]))
    assert plain.nfe == 12
    assert (other.nfe < 12) == (method != "ar")


@pytest.mark.parametrize("method", RUNNABLE)
def test_many_images_are_many_single_calls(pipe, method):
    asked = {"prompt": "a cat", "method": method, "height": 24, "width": 32, "temperature": 2.0}
    singles = torch.cat([pipe(**asked, seed=7 + i).tokens for i in range(3)])
    assert len({tokens_sha256(tokens) for tokens in singles}) == 3
    for batch_size in (2,) if method != "hawk" else (1, 2, 3):
        together = pipe(**asked, num_images_per_prompt=3, seed=7, batch_size=batch_size)
        assert together.seeds == [7, 8, 9]
        assert torch.equal(together.tokens, singles)


def test_the_lossy_method_says_so_and_others_take_their_verifiers(pipe):
    assert not pipe("a cat", seed=1, method="lantern").lossless
    assert pipe("a cat", seed=1, method="lantern", verifier="residual").lossless  # it is eagle then
    for method in ("medusa", "hawk-paper", "eagle", "sjd"):
        assert pipe("a cat", seed=1, method=method, verifier="traversal").lossless
    with pytest.raises(HawkError, match="need the verifier residual or coupled, not traversal"):
        pipe("a cat", method="sjd-pac", verifier="traversal")


def test_output_tells_how_the_images_came_about(pipe):
    output = pipe(["a cat", "a red apple"], seed=1, num_images_per_prompt=2)
    parallel = (output.images, output.stats, output.seeds, output.tokens, output.origins, output.seconds)
    assert {len(values) for values in parallel} == {4}
    assert output.nfe * output.accept_length == pytest.approx(24)
    assert output.source_names == ("horizontal", "vertical-1", "vertical-2")
    recovered = int((output.origins == -1).sum())
    assert recovered >= sum(stats.nfe for stats in output.stats) - 4
    kept = sum(sum(stats.accepted_by_source.values()) for stats in output.stats)
    assert recovered + kept == output.origins.numel()


def test_seeds_come_from_generators(pipe):
    def generator(seed):
        return torch.Generator().manual_seed(seed)

    one, same = (pipe("a cat", generator=generator(3), num_images_per_prompt=2) for _ in range(2))
    assert one.seeds == same.seeds
    assert one.seeds[0] != one.seeds[1]
    each = pipe(["a cat", "a cat"], generator=[generator(3), generator(3)])
    assert each.seeds == [one.seeds[0]] * 2
    assert pipe(["a cat", "a cat"], seed=[9, 2]).seeds == [9, 2]
    assert pipe("a cat").seeds != pipe("a cat").seeds


def test_negative_prompt_takes_the_place_of_the_null_caption(pipe):
    plain, away = pipe("a cat", seed=4), pipe("a cat", negative_prompt="blue", seed=4)
    assert not torch.equal(plain.tokens, away.tokens)
    assert torch.equal(plain.tokens, pipe("a cat", negative_prompt="", seed=4).tokens)
    mixed = pipe(["a cat", "a cat"], negative_prompt=["", "blue"], seed=[4, 4], batch_size=2)
    assert torch.equal(mixed.tokens, torch.cat((plain.tokens, away.tokens)))


def test_arguments_take_the_place_of_the_models_defaults(pipe):
    output = pipe("a cat", seed=1)
    assert output.params == pipe.defaults
    given = pipe("a cat", seed=1, guidance_scale=1.0, temperature=0.0, top_k=3, top_p=0.5)
    assert dataclasses.astuple(given.params) == (0.0, 3, 0.5, 1.0)
    assert torch.equal(given.tokens, pipe("a cat", seed=2, guidance_scale=1.0, temperature=0.0).tokens)  # greedy


def test_output_types(pipe):
    images = {kind: pipe("a cat", seed=3, output_type=kind).images for kind in ("pil", "np", "pt")}
    assert isinstance(images["pil"][0], Image.Image)
    assert images["pil"][0].size == (48, 32)
    assert images["np"].shape == (1, 32, 48, 3)
    assert images["pt"].shape == (1, 3, 32, 48)
    assert 0 <= images["np"].min() <= images["np"].max() <= 1
    assert np.array_equal(np.asarray(images["pil"][0]), np.rint(images["np"][0] * 255).astype(np.uint8))
    assert pipe("a cat", seed=3, return_dict=False)[0][0].tobytes() == images["pil"][0].tobytes()


def test_any_height_and_width(pipe):
    output = pipe("a cat", seed=3, height=40, width=16)
    assert output.images[0].size == (16, 40)
    assert output.tokens.shape == (1, 10)
    assert torch.equal(output.tokens, pipe("a cat", seed=3, height=40, width=16, method="ar").tokens)


def test_callback_follows_every_forward(pipe):
    seen = []
    output = pipe(
        "a cat",
        seed=3,
        num_images_per_prompt=2,
        callback_on_step_end=lambda owner, step, committed, state: seen.append((owner, step, committed, sorted(state))),
    )
    committed = [each[2] for each in seen]
    assert committed == sorted(committed)
    assert committed[-1] == 48
    assert len(seen) == sum(stats.nfe - 1 for stats in output.stats)  # the prefill is no step
    assert seen[0][0] is pipe
    assert seen[0][3] == ["canvas", "images", "stats"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "no word in it"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": "red " * 7}, "7 words, at most 6"),
        ({"prompt": ["a cat", "  "]}, "no word in it"),
        ({"negative_prompt": ["blue", "red"]}, "as many negative prompts"),
        ({"negative_prompt": "blue", "guidance_scale": 1.0}, "no effect"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ({"guidance_scale": 1e9}, "guidance_scale must be from 1 .off. to 1000000, not 1000000000"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"temperature": float("nan")}, "finite"),
        ({"top_k": -1}, "top_k must be"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be 1"),
        ({"batch_size": 0}, "batch_size must be 1"),
        ({"seed": -1}, "seed must be between .* not -1: leave seed out for a random one"),
        ({"seed": 2**63}, "seed must be between"),
        ({"seed": [1, 2]}, "1 images need one seed"),
        ({"seed": 1, "generator": torch.Generator()}, "either seed or generator"),
        ({"generator": [torch.Generator()] * 2}, "1 images need one generator"),
        ({"method": "eagel"}, "unknown method 'eagel': choose one of ar, medusa"),
        ({"verifier": "exact"}, "unknown verifier"),
        ({"method": "hawk", "verifier": "residual"}, "need the verifier coupled"),
        ({"height": 20}, "height must be a positive multiple of 8"),
        ({"width": 0}, "width must be a positive multiple of 8"),
        ({"height": 8000, "width": 8000}, "too many"),
        ({"output_type": "jpg"}, "unknown output_type"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(pipe, arguments, message):
    with pytest.raises(HawkError, match=message) as caught:
        pipe(**{"prompt": "a cat"} | arguments)
    assert "\n" not in str(caught.value)


def test_a_model_without_drafters_draws_by_what_needs_none(model_copy):
    shutil.rmtree(model_copy / HEADS)
    pipe = HawkPipeline.from_pretrained(model_copy, "cpu")
    assert pipe("a cat", method="ar", seed=1).nfe == 24
    assert pipe("a cat", seed=1).nfe < 24
    with pytest.raises(HawkError, match="hawk train drafter --kind heads"):
        pipe("a cat", seed=1, method="medusa")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_draws(saved_model, dtype):
    pipe = HawkPipeline.from_pretrained(saved_model, "cpu", dtype)
    output = pipe("a cat", seed=1)
    assert output.tokens.shape == (1, 24)
    target = pipe.model.target
    assert target.weight_dtype == getattr(torch, dtype)
    assert target.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)


@pytest.mark.parametrize(
    ("units", "packs", "dtype"),
    [(True, True, "bfloat16"), (False, True, "float16"), (False, False, "float32")],
)
def test_auto_is_the_dtype_in_which_the_cpu_decodes_fastest(saved_model, monkeypatch, units, packs, dtype):
    monkeypatch.setattr("hawk.nn.packed.multiplies_bfloat16", lambda: units)
    monkeypatch.setattr("hawk.models.loading.can_pack_float16", lambda: packs)
    pipe = HawkPipeline.from_pretrained(saved_model, "cpu")
    assert pipe.dtype == dtype
    assert pipe.model.target.weight_dtype == getattr(torch, dtype)
    assert pipe("a cat", seed=1).tokens.shape == (1, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"device": "tpu9"}, "unknown device"),
        ({"device": "mps"}, "'mps' is not there: this PyTorch sees no Apple GPU"),
        ({"device": "xpu"}, "not supported"),
        ({"device": "cuda:99"}, "not there"),
        ({"drafter": "nowhere"}, "no drafter folder at nowhere"),
        ({"model": "nowhere"}, "no model folder at nowhere"),
        ({"model": "/nowhere/at/all"}, "no model folder at /nowhere"),
    ],
)
def test_bad_places_are_refused(saved_model, arguments, message):
    with pytest.raises(HawkError, match=message):
        HawkPipeline.from_pretrained(**{"model": saved_model} | arguments)


def test_hub_ids_are_fetched_and_refusals_are_one_line(saved_model, monkeypatch):
    import huggingface_hub

    asked = []
    places = {"someone/tiny": saved_model, "someone/its-drafter": saved_model / HEADS_FOLDER}

    def download(name, allow_patterns):
        asked.append(name)
        if name in places:
            return str(places[name])
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline\nmode")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert HawkPipeline.from_pretrained("someone/tiny", "cpu").model.name == "tiny"
    with pytest.raises(HawkError, match=r"the hub did not give it \(offline mode") as caught:
        HawkPipeline.from_pretrained("someone/else")
    assert "\n" not in str(caught.value)
    assert asked == ["someone/tiny", "someone/else"]
    assert HawkPipeline.from_pretrained(saved_model, "cpu", drafter="someone/its-drafter").model.drafting is not None
    with pytest.raises(HawkError, match="the hub did not give it"):
        HawkPipeline.from_pretrained(saved_model, "cpu", drafter="someone/nothing")


def test_an_installation_without_the_bundled_model_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(hawk.models.loading, "BUNDLED", tmp_path)
    with pytest.raises(HawkError, match="no bundled model"):
        HawkPipeline.from_pretrained("bundled")


def test_a_model_folder_is_what_the_pipeline_and_the_drafters_ask_for(saved_model):
    model = load_model(saved_model)
    assert isinstance(model, Model)
    assert isinstance(model.target, ImageTarget)
    condition = model.condition(["a red apple", "a cat", "a blue cat"], ["", "green", ""], model.grid)
    assert isinstance(condition, Condition)
    assert len(condition) == 3
    some = condition.rows(slice(1, 3))
    assert torch.equal(some.features, condition.features[1:])
    assert torch.equal(some.negative_mask, condition.negative_mask[1:])
    embedded = model.target.embed(torch.tensor([[0, 3]]))
    assert embedded.shape == (1, 2, model.target.hidden_size)
    assert model.target.draft_head(embedded).shape == (1, 2, model.target.vocab_size)


def test_image_seeds_are_in_range():
    assert image_seeds(2, 2**63 - 2) == [2**63 - 2, 2**63 - 1]
    assert all(0 <= seed < 2**63 for seed in image_seeds(50))


# --- stopping


def settings(method: str) -> dict[str, object]:
    return {"seed": 3, "method": method, "num_images_per_prompt": 3}


@pytest.mark.parametrize("method", ["ar", "scd", "hawk-paper"])
def test_a_callback_stops_a_call_and_the_next_call_draws(pipe, method):
    expected = pipe("a cat", **settings(method))
    steps = []

    def stop(pipe, step, committed, state):
        steps.append(committed)
        if committed > 24 + 6:  # in the middle of the second image
            pipe._interrupt = True

    with pytest.raises(StoppedError, match="stopped after 1 of 3 images") as caught:
        pipe("a cat", **settings(method), callback_on_step_end=stop)
    assert steps[-1] < 2 * 24
    finished = caught.value.finished
    assert torch.equal(finished.tokens, expected.tokens[:1])
    assert finished.seeds == [3]
    assert len(finished.images) == 1
    assert torch.equal(pipe("a cat", **settings(method)).tokens, expected.tokens)


def test_a_stop_before_the_first_image_is_finished_holds_none(pipe):
    def stop(pipe, step, committed, state):
        pipe._interrupt = True

    with pytest.raises(StoppedError, match="stopped after 0 of 1 images") as caught:
        pipe("a cat", seed=1, method="ar", callback_on_step_end=stop)
    assert caught.value.finished is None


@pytest.mark.parametrize("inner_stops", [False, True], ids=["the earlier call", "both calls"])
def test_an_interrupt_reaches_every_call_under_way_and_no_later_one(pipe, inner_stops):
    """The inner call runs within the outer one, as in another thread."""
    plain = {"seed": 1, "method": "ar"}
    expected, found = pipe("a cat", **plain).tokens, []

    def stop(pipe, step, committed, state):
        pipe._interrupt = True

    def start_another(pipe, step, committed, state):
        if committed != 6:
            return
        if not inner_stops:
            pipe._interrupt = True
            found.append(pipe("a cat", **plain).tokens)
            return
        with pytest.raises(StoppedError):
            pipe("a cat", **plain, callback_on_step_end=stop)
        pipe("a cat", **plain)  # resets the interrupt of the ended call, and not that of the call under way

    with pytest.raises(StoppedError):
        pipe("a cat", **plain, callback_on_step_end=start_another)
    assert all(torch.equal(tokens, expected) for tokens in found)
    assert torch.equal(pipe("a cat", **plain).tokens, expected)
    assert not pipe._interrupt


def test_a_stop_after_the_last_token_returns_the_image(pipe):
    def stop(pipe, step, committed, state):
        pipe._interrupt = committed == 24

    assert len(pipe("a cat", seed=1, method="ar", callback_on_step_end=stop).images) == 1


@pytest.mark.parametrize("method", ["ar", "scd", "medusa"])
def test_a_callback_that_changes_what_it_is_given_changes_no_image(pipe, method):
    def change(owner, step, committed, state):
        canvas, stats = state["canvas"], state["stats"]
        canvas.tokens.zero_()
        canvas.origins.fill_(99)
        canvas.committed.clear()
        stats.nfe = 0
        stats.verified_by_depth.clear()
        stats.accepted_by_source["nobody"] = 1

    plain = pipe("a cat", **settings(method))
    changed = pipe("a cat", **settings(method), callback_on_step_end=change)
    assert torch.equal(changed.tokens, plain.tokens)
    assert changed.nfe == plain.nfe


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("method", ["scd", "hawk-paper"])
@pytest.mark.parametrize("inside", ["callback", "forward"])
def test_a_call_that_an_exception_ended_is_drawn_again(pipe, monkeypatch, method, error, inside):
    expected, calls = pipe("a cat", seed=3, method=method).tokens, []
    run = type(pipe.model.target).forward_nodes

    def broken(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise error("in the middle")
        return run(*args, **kwargs) if inside == "forward" else None

    with monkeypatch.context() as patch:
        if inside == "forward":
            patch.setattr(type(pipe.model.target), "forward_nodes", broken)
        with pytest.raises(error, match="in the middle"):
            pipe("a cat", seed=3, method=method, callback_on_step_end=broken if inside == "callback" else None)
    assert torch.equal(pipe("a cat", seed=3, method=method).tokens, expected)


@pytest.mark.parametrize(
    "error", [MemoryError("own"), torch.OutOfMemoryError("CUDA out of memory"), NotImplementedError("own")], ids=repr
)
def test_an_error_of_the_callers_callback_stays_as_it_is(pipe, error, monkeypatch):
    monkeypatch.setattr(pipe, "device", torch.device("mps"))  # where a NotImplementedError of PyTorch is explained
    cause = KeyError("why")

    def full(pipe, step, committed, state):
        raise error from cause

    for method in ("ar", "sjd"):
        with pytest.raises(type(error)) as caught:
            pipe("a cat", seed=1, method=method, callback_on_step_end=full)
        assert caught.value is error
        assert error.__cause__ is cause


def test_ctrl_c_inside_a_replay_leaves_a_recording_that_draws(saved_model, monkeypatch):
    monkeypatch.setattr(hawk.decoding.recording, "recorded", lambda call, engine, device, pool=None: call)
    pipe = HawkPipeline.from_pretrained(saved_model, device="cpu", dtype="float64")
    expected = pipe("a cat", seed=3, method="scd").tokens
    replayed = dataclasses.replace(pipe, engine="graph")

    def interrupt(pipe, step, committed, state):
        if step == 4:
            raise KeyboardInterrupt

    replayed("a blue cat", seed=1, method="scd")
    with pytest.raises(KeyboardInterrupt):
        replayed("a cat", seed=3, method="scd", callback_on_step_end=interrupt)
    assert torch.equal(replayed("a cat", seed=3, method="scd").tokens, expected)
