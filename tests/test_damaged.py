"""Files from elsewhere that are wrong: a model folder draws or is refused in one line, in bounded time and memory."""

import json
import math
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fixtures.tiny_transformers import save, tiny
from hawk import HawkError, HawkPipeline
from hawk.decoding.planning import costs_file, known_seconds
from hawk.decoding.tree import TreeBuilder
from hawk.drafters.best_first import Candidates, grow_best_first
from hawk.drafters.feature import FeatureConfig
from hawk.drafters.left import LeftFactor
from hawk.drafters.settings import FusedSettings
from hawk.drafters.spatial import SpatialConfig, SpatialDrafter
from hawk.models.folder import HEADS_FOLDER, load_model, outline_model, target_fingerprint

HEADS = str(HEADS_FOLDER)
SOURCES = ("horizontal", "vertical-1", "vertical-2", "spatial", "stale")


@pytest.fixture(scope="session")
def whole_folder(saved_model, tmp_path_factory) -> Path:
    """A tiny model folder with every part of a drafter, whose pool fuses all sources and is priced where it draws."""
    folder = Path(shutil.copytree(saved_model, tmp_path_factory.mktemp("damaged") / "whole"))
    torch.manual_seed(1)
    shape = SpatialConfig(16, width=16, heads=2, window=6, columns=2, left=3)
    SpatialDrafter(shape).save(folder / HEADS, target_fingerprint(folder))
    tables = np.random.default_rng(1).standard_normal((2, 12, 3)).astype(np.float32)
    LeftFactor(tables[0], tables[1], 0.7).save(folder / HEADS)
    priced = replace(FusedSettings.unfitted(SOURCES), refresh=4, measured_on="elsewhere", tokens_at={1: 1.5, 5: 3.0})
    priced.save(folder / HEADS)
    (folder / "cache").mkdir()
    (folder / "cache" / "step-costs.json").write_text('{"another model": {"1": 0.5}}')
    return folder


@pytest.fixture
def folder(whole_folder, tmp_path) -> Path:
    """A copy of the whole folder, to damage."""
    return Path(shutil.copytree(whole_folder, tmp_path / "model"))


def set_field(path: Path, keys: tuple[str | int, ...], value: Any) -> None:
    """Replace a value in a JSON file."""
    document = json.loads(path.read_text())
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(document))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights in a safetensors file."""
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


# --- one value of one file -----------------------------------------------------------------------------------

FIELDS: dict[str, list[tuple[tuple[str | int, ...], Any, str]]] = {
    "config.json": [
        (("target", "n_layer"), 100_000, r"target.n_layer is 100000, but target.safetensors has only \d+ weights"),
        (("target", "vocab_size"), 10**9, r"weight has shape \(12, 16\), config.json asks for \(10{9},"),
        (("target", "dim"), 38_400, r"target.safetensors: .* has shape \(.*16.*\), config.json asks for \(.*38400.*\)"),
        (("target", "dim"), 2**63, "target.dim is 9223372036854775808: it must be at most"),
        (("target", "dim"), 2**31, "asks for|too large"),
        (("target", "caption_tokens"), -1, "target.caption_tokens is -1"),
        (("target", "rope_base"), math.inf, "target.rope_base"),
        (("target", "height"), 100_000, "a grid of 100000x6 tokens is too large"),
        (("target",), None, "target"),
        (("tokenizer",), None, "tokenizer"),
        (("tokenizer", "encoder_widths"), [2**20, 8, 8], r"tokenizer.safetensors: encoder\S+ has shape"),
        (("tokenizer", "decoder_depths"), [1, 10**6, 1], "tokenizer.decoder_depths is 1000000, but"),
        (("tokenizer", "levels"), [2**40, 2**40], "levels give"),
        (("tokenizer", "levels"), [], "levels"),
        (("text",), None, "text"),
        (("defaults",), [], "defaults"),
    ],
    "text.json": [
        (("tokens",), None, "text.json: tokens"),
        (("tokens",), 10**12, "text.json: tokens"),
        (("context",), -1, "text.json: context"),
        (("position_channels",), 3, "text.json: position_channels"),
        (("position_channels",), "many", "text.json: position_channels"),
        (("depth",), 1, "text.json: depth: Extra"),
        (("examples",), 3, "text.json: examples"),
    ],
    f"{HEADS}/heads.json": [
        (("dim",), 38_400, r"heads.safetensors: \S+ has shape \(16.*\), heads.json asks for \(38400"),
        (("dim",), -16, "heads.json: dim"),
        (("horizontal",), 10**9, r"heads.json: horizontal is 1000000000, but heads.safetensors has only 10 weights"),
        (("vertical",), None, "heads.json: vertical"),
        (("depth",), 1, "heads.json: depth"),
        (("target",), None, "was trained for target None"),
    ],
    f"{HEADS}/spatial.json": [
        (("width",), 2**20, "spatial.safetensors: .* has shape .*, spatial.json asks for"),
        (("layers",), 10**9, "spatial.json: layers is 1000000000, but spatial.safetensors has only"),
        (("heads",), 3, "spatial.json: .*16 channels do not split into 3 heads"),
        (("heads",), "2 or so", "spatial.json: heads"),
        (("window",), 2**63, "spatial.json: window"),
        (("above",), 10**6, "spatial.json: above"),
    ],
    f"{HEADS}/feature.json": [
        (("dim",), 10**6, "feature.safetensors: .* has shape .*, feature.json asks for"),
        (("heads",), 0, "feature.json: heads"),
        (("heads",), 16, "feature.json: .*16 channels do not split into 16 heads"),
    ],
    f"{HEADS}/pool.json": [
        (("tokens_at",), 0, "pool.json is not a pool .* wrote: tokens_at"),
        (("tokens_at",), {"-1": 2.0}, "pool.json is not a pool .* wrote: tokens_at"),
        (("tokens_at",), {str(2**63): 2.0}, "pool.json is not a pool .* wrote: tokens_at"),
        (("tokens_at",), {"4": 0.0}, "pool.json is not a pool .* wrote: tokens_at"),
        (("tokens_at",), {"4": math.nan}, "pool.json is not a pool .* wrote: tokens_at"),
        (("max_nodes",), 10**9, "pool.json is not a pool .* wrote: max_nodes"),
        (("refresh",), 10**9, "pool.json is not a pool .* wrote: refresh"),
        (("node_cost",), math.inf, "pool.json is not a pool .* wrote: node_cost"),
        (("node_cost",), -1.0, "pool.json is not a pool .* wrote: node_cost"),
        (("edges", 0), 1e400, "pool.json is not a pool .* wrote: edges"),
        (("rate", 0, 0), 1e308, "pool.json is not a pool .* wrote: rate"),
        (("weights", "0"), [], "the weights of the sources 0 must be rows"),
        (("weights", "0,1"), [[1.0]], "the weights of the sources 0,1 must be rows"),
        (("sources",), ["stale", "vertical-3"], "names vertical-3, but there are 2 vertical heads"),
        (("sources",), ["oracle"], "pool.json is not a pool .* wrote: sources"),
        (("sources",), None, "pool.json is not a pool .* wrote: sources"),
        (("more",), 1, "pool.json is not a pool .* wrote: more"),
    ],
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_value_is_refused_in_one_line_that_names_file_and_field(name, folder):
    load_model(folder)
    right = (folder / name).read_text()
    for keys, value, message in FIELDS[name]:
        set_field(folder / name, keys, value)
        for read in (load_model, outline_model):
            with pytest.raises(HawkError, match=message) as refused:
                read(folder)
            assert "\n" not in str(refused.value)
        (folder / name).write_text(right)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("text", ["[" * 5000 + "]" * 5000, "null", "[]", '{"a": ', "\xff"], ids=repr)
def test_a_json_file_that_is_no_object_is_refused_in_one_line(name, text, folder):
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(HawkError, match=f"{Path(name).name} (is not|must hold)") as refused:
        load_model(folder)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


NOT_FINITE = (
    ("target.safetensors", "layers.1.attention.wo.weight"),
    ("tokenizer.safetensors", "encoder.8.bias"),
    ("words.safetensors", "scales"),
    (f"{HEADS}/heads.safetensors", "vertical.1.bias"),
    (f"{HEADS}/spatial.safetensors", "norm.weight"),
    (f"{HEADS}/feature.safetensors", "last.weight"),
    (f"{HEADS}/left.safetensors", "here"),
)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf], ids=str)
def test_a_weight_that_is_not_finite_is_refused_by_file_and_name(number, folder):
    for file, tensor in NOT_FINITE:
        right = (folder / file).read_bytes()
        edit_weights(folder / file, lambda weights, name=tensor: weights[name].view(-1)[-1:].fill_(number))
        with pytest.raises(HawkError, match=f"{Path(file).name} is damaged.*{tensor} holds a NaN or an inf") as refused:
            load_model(folder)
        assert "\n" not in str(refused.value)
        (folder / file).write_bytes(right)


def test_words_of_another_form_are_refused(folder):
    path = folder / "words.safetensors"
    edit_weights(path, lambda weights: weights.update(vectors=weights["vectors"].flatten()))
    with pytest.raises(HawkError, match=r"vectors has shape \(28,\), scales \(7,\)"):
        load_model(folder)
    edit_weights(path, lambda weights: weights.pop("scales"))
    with pytest.raises(HawkError, match=r"words.safetensors holds vectors: it must hold vectors and scales"):
        load_model(folder)
    (folder / "words.txt").write_bytes(b"caf\xe9")
    with pytest.raises(HawkError, match=r"words.txt is damaged"):
        load_model(folder)


@pytest.mark.parametrize("change", [lambda s: s.to(torch.int8), torch.zeros_like], ids=["integers", "zeros"])
def test_scales_of_words_that_would_lose_the_words_are_refused(change, folder):
    edit_weights(folder / "words.safetensors", lambda weights: weights.update(scales=change(weights["scales"])))
    with pytest.raises(HawkError, match=r"words.safetensors: scales must be floating-point numbers other than 0"):
        load_model(folder)


def test_scales_of_words_that_overflow_are_refused(folder):
    edit_weights(folder / "words.safetensors", lambda weights: weights.update(scales=torch.full((7,), 3e38)))
    with pytest.raises(HawkError, match=r"words.safetensors is damaged: vectors \* scales holds"):
        load_model(folder)


PARTS = [f"{name}.{kind}" for name in ("heads", "spatial", "feature") for kind in ("safetensors", "json")]


@pytest.mark.parametrize("lost", [*PARTS, "pool.json"])
def test_a_drafter_that_lost_a_file_is_refused_and_not_drafted_with(lost, folder):
    (folder / HEADS / lost).unlink()
    named = r"pool\.json is missing" if lost == "pool.json" else f"is there, {lost} is not"
    for load in (load_model, outline_model):
        with pytest.raises(HawkError, match=f"the drafter is damaged: .*{named}: fetch or train it again") as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_heads_without_their_pool_are_loaded_with_a_warning_that_names_the_command(folder):
    for path in (folder / HEADS).iterdir():
        if path.name not in ("heads.json", "heads.safetensors"):
            path.unlink()
    with pytest.warns(UserWarning, match=r"pool.json is missing, .* not fitted .* `hawk train drafter --kind heads`"):
        model = load_model(folder)
    assert model.drafting.heads is not None


CHECKPOINT_FIELDS = (
    (
        ("text_config", "num_hidden_layers"),
        100_000,
        "num_hidden_layers is 100000, but the files hold only",
    ),
    (("vq_config", "num_res_blocks"), 10**9, "num_res_blocks is 1000000000, but the files hold only"),
    (("text_config", "vocab_size"), 10**9, r"has shape \(40, 32\), config.json asks for \(1000000000, 32\)"),
    (("text_config", "hidden_size"), 38_400, r"has shape .*32.*, config.json asks for .*38400"),
    (("text_config", "num_attention_heads"), 0, "text_config.num_attention_heads is 0, it must be from 1 to"),
    (("text_config", "rms_norm_eps"), -1.0, "text_config.rms_norm_eps is -1.0, it must be from 1e-12 to 0.1"),
    (("text_config", "rope_parameters", "rope_theta"), 0.0, "rope_parameters.rope_theta is 0.0, it must be from 1 to"),
    (("text_config", "max_position_embeddings"), -1, "text_config.max_position_embeddings is -1, it must be"),
    (("text_config", "hidden_size"), None, "no checkpoint that transformers can read"),
    (("text_config",), 3, "no checkpoint that transformers can read"),
)


def test_a_transformers_config_that_asks_for_more_than_its_weights_is_refused_at_once(tmp_path):
    folder = save(tiny("janus"), tmp_path / "janus")
    right = (folder / "config.json").read_text()
    for keys, value, message in CHECKPOINT_FIELDS:
        set_field(folder / "config.json", keys, value)
        with pytest.raises(HawkError, match=message) as refused:
            HawkPipeline.from_pretrained(folder, "cpu", "float32")
        assert "\n" not in str(refused.value)
        (folder / "config.json").write_text(right)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(HawkError, match="no tokenizer in"):
        HawkPipeline.from_pretrained(folder, "cpu", "float32")


# --- a drafter can only be slow ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(whole_folder):
    """The tokens that plain AR draws with the undamaged model."""
    return HawkPipeline.from_pretrained(whole_folder, "cpu", "float32")("a red cat", seed=1, method="ar").tokens


@pytest.fixture(scope="module")
def overflowing(whole_folder, tmp_path_factory):
    """A pipeline whose drafters have weights that are finite, but whose products overflow."""
    folder = Path(shutil.copytree(whole_folder, tmp_path_factory.mktemp("overflowing") / "model"))
    for part in ("heads", "spatial", "feature"):
        edit_weights(
            folder / HEADS / f"{part}.safetensors", lambda weights: [weight.fill_(3e38) for weight in weights.values()]
        )
    return HawkPipeline.from_pretrained(folder, "cpu", "float32")


@pytest.mark.parametrize("method", ["hawk", "medusa", "hawk-paper", "hawk-spatial", "eagle", "eagle-topk"])
def test_a_drafter_whose_q_is_not_a_number_can_only_be_slow(method, overflowing, plain):
    assert torch.equal(overflowing("a red cat", seed=1, method=method, verifier="coupled").tokens, plain)
    assert overflowing("a red cat", seed=1, method=method).tokens.shape == plain.shape


def test_candidates_without_a_chance_are_left_out():
    builder = TreeBuilder.rooted(0)
    grow_best_first(builder, lambda offset, token: Candidates([1, 2], (0.0, 0.0)), depth=3, max_nodes=9, node_cost=0.0)
    assert builder.tokens == [0]


@pytest.mark.parametrize("shape", [(FeatureConfig, 10, 3), (FeatureConfig, 9, 3), (SpatialConfig, 8, 12, 2, 2)])
def test_a_drafter_whose_width_does_not_split_into_its_heads_is_refused(shape):
    config, *numbers = shape
    with pytest.raises(HawkError, match="channels do not split into"):
        config(*numbers)


# --- costs that no clock measured ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        '{"1": Infinity, "4": 1.0}',
        '{"1": NaN, "4": 1.0}',
        '{"1": 1e308, "4": 1.0}',
        '{"1": 0, "4": 1.0}',
        '{"1": 1.0, "4": -1.0}',
        '{"1": 1.0, "4": 1.0, "-7": 1.0}',
        '{"1": 1.0}',
        "null",
        '"fast"',
        "[" * 5000 + "]" * 5000,
    ],
    ids=lambda text: text[:30],
)
def test_costs_that_no_clock_can_have_measured_are_measured_anew(entry, tmp_path, monkeypatch):
    monkeypatch.setenv("HAWK_CACHE", str(tmp_path))
    costs_file().write_text(f'{{"model": {entry}, "other": {{"1": 0.5}}}}')
    assert known_seconds("model", [1, 4], lambda: {1: 0.1, 4: 0.2}) == {1: 0.1, 4: 0.2}
    kept = json.loads(costs_file().read_text())
    assert kept["model"]["seconds"] == {"1": 0.1, "4": 0.2}
    assert kept.get("other", {"seconds": {"1": 0.5}})["seconds"] == {"1": 0.5}


# --- random damage -------------------------------------------------------------------------------------------

VALUES = (
    None,
    True,
    -1,
    0,
    1,
    3,
    2**31,
    2**63,
    -(2**63),
    10**9,
    1e308,
    -0.5,
    math.inf,
    math.nan,
    "",
    "x",
    [],
    {},
    [[]],
)
CPU_SECONDS, WALL_SECONDS = 10, 120
"""The time that one folder may take: of the processor (the machine may be busy), and before the worker is given up."""


def places(document: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value inside a JSON document."""
    inner = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in inner:
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from places(value, (*above, key))


def cut(folder: Path, path: Path, at: float, choice: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(at * len(content))])


def flip(folder: Path, path: Path, at: float, choice: int) -> None:
    content = bytearray(path.read_bytes())
    start = min(int(at * len(content)), len(content) - 1)
    for step in range(1 + choice % 5):  # some bits, one after the other, from a place on
        content[(start + 7 * step) % len(content)] ^= 1 << (choice + step) % 8
    path.write_bytes(content)


def flip_header(folder: Path, path: Path, at: float, choice: int) -> None:
    flip(folder, path, min(at, 200 / path.stat().st_size), choice)


def remove(folder: Path, path: Path, at: float, choice: int) -> None:
    path.unlink()


def swap(folder: Path, path: Path, at: float, choice: int) -> None:
    others = sorted(other for other in folder.rglob("*") if other.is_file())
    other = others[choice % len(others)]
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def replace_value(folder: Path, path: Path, at: float, choice: int) -> None:
    if path.suffix == ".json":
        found = list(places(json.loads(path.read_text())))
        set_field(path, found[int(at * (len(found) - 1))], VALUES[choice % len(VALUES)])
    elif path.suffix == ".safetensors":
        weights = load_file(path)
        name = sorted(weights)[int(at * (len(weights) - 1))]
        weight = weights[name]
        number = (math.nan, math.inf, 3e38, -1e30)[choice % 4]
        if choice % 7 == 0:
            weights[name] = weight[..., None]
        elif choice % 7 == 1:
            weights[name] = weight.long()
        elif weight.is_floating_point():
            weight.view(-1)[choice % weight.numel()] = number
        save_file(weights, path)


def deepen(folder: Path, path: Path, at: float, choice: int) -> None:
    path.write_text("[" * 5000 + "]" * 5000)


DAMAGES = (cut, flip, flip_header, remove, swap, replace_value, replace_value, replace_value, deepen)


class Worker:
    """A process that answers folder after folder (fixtures/damaged_worker.py)."""

    def __init__(self, sound: Path) -> None:
        here = Path(__file__).parent
        environment = {**os.environ, "PYTHONPATH": str(here.parents[0] / "src"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(here / "fixtures" / "damaged_worker.py"), str(sound)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def answer(self, folder: Path) -> dict[str, Any]:
        """What happened with a folder; the test fails where the worker dies or does not answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], WALL_SECONDS)
        line = self.process.stdout.readline() if ready else ""
        assert line, f"no answer within {WALL_SECONDS} s, or the worker died"
        return json.loads(line)


@pytest.fixture(scope="module")
def worker(whole_folder) -> Iterator[Worker]:
    one = Worker(whole_folder)
    yield one
    one.process.kill()
    one.process.wait()


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.integers(0, 99),
    damage=st.sampled_from(DAMAGES),
    at=st.floats(0, 1),
    choice=st.integers(0, 10_000),
)
def test_a_randomly_damaged_folder_draws_or_is_refused_in_one_line(
    whole_folder, tmp_path, worker, file, damage, at, choice
):
    copied = tmp_path / "model"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(whole_folder, copied)
    files = sorted(path for path in copied.rglob("*") if path.is_file() and path.name != "README.md")
    damage(copied, files[file % len(files)], at, choice)
    answer = worker.answer(copied)
    assert answer["outcome"] in ("drew", "refused"), answer["message"]
    assert "\n" not in answer["message"]
    assert "memory is too small" not in answer["message"]
    assert answer["seconds"] < CPU_SECONDS
