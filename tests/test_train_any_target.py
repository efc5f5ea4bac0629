"""`hawk train drafter` for any target: kills and resumes, two processes, the written folder, refused input."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from fixtures import train_together
from fixtures.tiny_training import GRID as TINY_GRID
from fixtures.tiny_training import prompts as tiny_prompts
from fixtures.tiny_training import tiny_target
from fixtures.tiny_transformers import save, tiny
from fixtures.train_together import fit_all
from hawk.cli.app import app
from hawk.decoding.grid import Grid
from hawk.decoding.noise import GumbelNoise
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams, log_probs
from hawk.drafters.feature import FeatureDrafter
from hawk.drafters.heads import DraftHeads, HeadsConfig
from hawk.drafters.spatial import SpatialConfig, SpatialDrafter
from hawk.errors import HawkError
from hawk.pipeline import HawkPipeline
from hawk.training.drafters import grids
from hawk.training.drafters import pool as pooling
from hawk.training.drafters import run as drafting
from hawk.training.drafters.feature import FeatureLoss, feature_shape
from hawk.training.drafters.grids import Drawing, OnPolicy, SamplingRanges, draw_on_policy, hidden_states, origin_of
from hawk.training.drafters.heads import HeadsLoss
from hawk.training.drafters.recipe import KindRecipe, load_recipe
from hawk.training.drafters.run import FrozenModel, Plan, train_drafter
from hawk.training.drafters.spatial import SpatialLoss, window_noise
from hawk.training.drafters.teacher import forced_hidden, guided_states, teacher_log_p
from hawk.training.loop import FitConfig
from hawk.training.texts import PromptFile
from hawk.training.world import World

FIT = FitConfig(steps=4, batch_size=4, lr=1e-2, warmup=1, ema=0.5, dtype="float32", save_every=2, evaluate_every=4)
SPATIAL = {"width": 16, "heads": 2, "layers": 1, "window": 6, "columns": 2, "left": 3}
KINDS = {
    "heads": KindRecipe(FIT, {"horizontal": 2, "vertical": 1}),
    "spatial": KindRecipe(FIT, SPATIAL),
    "feature": KindRecipe(FIT, {}),
}
WORDS = PromptFile(("a red apple", "a cat", "a blue cat"))


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def targets(saved_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny LlamaGen, Janus and Emu3."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {"llamagen": saved_model, **{name: save(tiny(name), folder / name) for name in ("janus", "emu3")}}


def plan_for(model: Any, name: str, **changes: Any) -> Plan:
    grid = Grid(3, 4) if name == "emu3" else model.grid
    return replace(
        Plan(KINDS, 12, replace(model.defaults, cfg_scale=2.0), grid, ("horizontal", "spatial", "stale"), 4), **changes
    )


def dying(function: Any, at: int) -> Any:
    """A function that passes the first `at` calls on to `function` and raises `KilledError` at the next call."""
    calls = iter(range(at))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is None:
            raise KilledError
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("llamagen", marks=pytest.mark.proofs),
        pytest.param("janus", marks=pytest.mark.slow),
        pytest.param("emu3", marks=pytest.mark.proofs),
    ],
)
def test_a_drafter_for_any_target_survives_kills_and_is_lossless(
    targets: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed while drawing, while fitting and while fitting the pool ends with the weights of an unbroken run."""
    frozen = FrozenModel.load(targets[name], torch.device("cpu"), "float32")
    plan = plan_for(frozen.bare, name)
    with monkeypatch.context() as patch:
        patch.setattr(drafting, "fit_pool", dying(drafting.fit_pool, 0))  # this run is compared in its fits only
        with pytest.raises(KilledError):
            train_drafter(frozen, WORDS, plan, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(grids, "generate", dying(grids.generate, 2))
        with pytest.raises(KilledError):
            train_drafter(frozen, WORDS, plan, tmp_path / "killed")
    drawn = sorted(path.name for path in (tmp_path / "killed" / "grids").iterdir())
    assert drawn == ["tokens-000000.safetensors", "tokens-000004.safetensors"]
    with monkeypatch.context() as patch:  # killed after the heads, in the middle of the spatial drafter
        patch.setattr(SpatialLoss, "forward", dying(SpatialLoss.forward, 3))
        patch.setattr(grids, "generate", dying(grids.generate, 1))  # only the missing shard is drawn
        with pytest.raises(KilledError):
            train_drafter(frozen, WORDS, plan, tmp_path / "killed")
    assert torch.load(tmp_path / "killed" / "spatial" / "state.pt", weights_only=True)["step"] == 2
    with monkeypatch.context() as patch:
        patch.setattr(drafting, "fit_pool", dying(drafting.fit_pool, 0))
        with pytest.raises(KilledError):
            train_drafter(frozen, WORDS, plan, tmp_path / "killed")
    assert not (tmp_path / "killed" / "drafter").exists()
    assert train_drafter(frozen, WORDS, plan, tmp_path / "killed") is not None
    folder = tmp_path / "killed" / "drafter"
    report = json.loads((folder / "report.json").read_text())
    assert report["loss"].keys() == KINDS.keys()
    for kind in KINDS:
        whole, resumed = (
            torch.load(tmp_path / run / kind / "state.pt", weights_only=True) for run in ("whole", "killed")
        )
        assert all(torch.equal(whole["averaged"][key], resumed["averaged"][key]) for key in whole["averaged"])
        assert report["loss"][kind] == whole["scalars"] == resumed["scalars"]
        assert whole["scalars"]["loss"] > 0
        stored = load_file(folder / f"{kind}.safetensors")
        part = {"heads": "heads", "spatial": "drafter", "feature": "drafter"}[kind]
        assert all(torch.equal(stored[key], whole["averaged"][f"{part}.{key}"].bfloat16()) for key in stored)
    assert frozen.bare.fingerprint in (folder / "README.md").read_text()

    pipe = HawkPipeline.from_pretrained(targets[name], "cpu", "float32", drafter=folder)
    assert pipe.model.drafting is not None
    assert pipe.model.drafting.fused.sources == ("horizontal", "spatial", "stale")
    cell = pipe.model.cell
    ask = {"prompt": "a cat", "seed": 3, "height": plan.grid.height * cell, "width": plan.grid.width * cell}
    ask |= {"guidance_scale": 2.0}
    plain = pipe(**ask, method="ar")
    for method in ("hawk", "eagle", "hawk-paper"):
        drafted = pipe(**ask, method=method, verifier="coupled")
        assert torch.equal(drafted.tokens, plain.tokens), method
    other = next(folder for key, folder in targets.items() if key not in (name, "llamagen"))
    with pytest.raises(HawkError, match="was trained for target"):
        HawkPipeline.from_pretrained(other, "cpu", "float32", drafter=folder)


@pytest.mark.parametrize("name", ["llamagen", "janus", "emu3"])
def test_the_teacher_says_what_plain_ar_samples_from(targets: dict[str, Path], name: str) -> None:
    """argmax(log p + g) gives the image's tokens, for the teacher's log p and the image's noise g, with any head."""
    from hawk.decoding.generate import generate
    from hawk.decoding.trees import NoDrafter

    model = FrozenModel.load(targets[name], torch.device("cpu"), "float32").bare
    plan = plan_for(model, name)
    condition = model.condition(["a cat", "a red apple"], ["", ""], plan.grid)
    tokens = generate(model.target, Request(condition, plan.grid, plan.params, [5, 6]), NoDrafter()).tokens
    hidden = forced_hidden(model.target, tokens, condition, plan.grid, plan.params, chunk=5)
    assert len(hidden) == (2 if name == "janus" else 1)
    log_p = teacher_log_p(model.target, hidden, plan.params)
    noise = GumbelNoise([5, 6], plan.grid.size, model.target.vocab_size, log_p)
    everywhere = torch.arange(plan.grid.size).expand(2, -1)
    assert torch.equal((log_p + noise.rows(everywhere)).argmax(-1), tokens)
    if name == "janus":  # the guided state gives another distribution, which is why both states are kept
        single = log_probs(model.target.head(guided_states(hidden, plan.params)), plan.params)
        assert (single - log_p).abs().max() > 0.1


@pytest.mark.proofs
def test_two_processes_give_the_loss_of_one(tmp_path: Path) -> None:
    """Under torchrun with gloo, the batch and the shards are split between two processes; all losses stay the same."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, train_together.__file__, str(tmp_path / "two")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    fit_all(tmp_path / "one")
    one, two = (json.loads((tmp_path / run / "losses.json").read_text()) for run in ("one", "two"))
    assert one.keys() == two.keys() == {"tokenizer", "target", "heads", "spatial", "feature"}
    for kind, scalars in one.items():
        assert scalars.keys() == two[kind].keys()
        for name, value in scalars.items():
            assert two[kind][name] == pytest.approx(value, abs=1e-5), (kind, name)


def test_a_batch_is_split_evenly_or_not_at_all() -> None:
    assert [World(rank, 3).own(6) for rank in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    with pytest.raises(HawkError, match="a batch of 7 does not split among 3 processes"):
        World(0, 3).own(7)


def test_states_past_the_budget_are_recomputed_to_the_same(tmp_path: Path) -> None:
    target, params = tiny_target().requires_grad_(False), SamplingParams(cfg_scale=2.0)
    drawing = Drawing(tiny_prompts, TINY_GRID, params, batch=4)
    tokens = draw_on_policy(target, drawing, 10, tmp_path)
    shard = 4 * TINY_GRID.size * target.hidden_size * 2
    chosen = torch.tensor([9, 0, 5, 4, 5])
    states = []
    for budget, shards in ((0.0, 0), (1.5 * shard, 1), (1e9, 3)):
        out = tmp_path / f"states-{shards}"
        data = hidden_states(target, tokens, drawing, out, budget)
        assert len(data.files) == shards
        assert len(list(out.glob("*"))) == shards
        assert sum(path.stat().st_size for path in out.glob("*")) <= max(1.1 * budget, 0)
        states.append(data(chosen))
    for other in states[1:]:
        torch.testing.assert_close(states[0], other, atol=2e-2, rtol=2e-2)  # bfloat16


def test_shards_of_other_settings_are_refused(tmp_path: Path) -> None:
    target, params = tiny_target(), SamplingParams(cfg_scale=2.0)
    origin = origin_of("a-target", params, TINY_GRID, "some-prompts", 4)
    draw_on_policy(target, Drawing(tiny_prompts, TINY_GRID, params, 4, origin), 4, tmp_path)
    changes = (
        origin_of("another", params, TINY_GRID, "some-prompts", 4),
        origin_of("a-target", replace(params, top_k=5), TINY_GRID, "some-prompts", 4),
        origin_of("a-target", params, TINY_GRID, "others", 4),
    )
    for changed, name in zip(changes, ("target=a-target, not another", "top_k=0, not 5", "prompts=some"), strict=True):
        with pytest.raises(HawkError, match=f"was made with {name}"):
            draw_on_policy(target, Drawing(tiny_prompts, TINY_GRID, params, 4, changed), 4, tmp_path)


RANGES = SamplingRanges((0.3, 1.0), (1.0, 4.0))


def test_grids_drawn_together_have_a_setting_of_their_own_that_a_resumed_run_repeats(tmp_path: Path) -> None:
    target, params = tiny_target(), SamplingParams(temperature=0.7, top_k=9)
    drawing = Drawing(tiny_prompts, TINY_GRID, params, 4, origin_of("t", params, TINY_GRID, "p", 4), ranges=RANGES)
    tokens = draw_on_policy(target, drawing, 12, tmp_path)
    settings = drawing.settings(12)
    assert settings is not None
    assert len({(one.temperature, one.cfg_scale) for one in settings}) == 3  # one for each shard
    assert all(0.3 <= one.temperature <= 1 and 1 <= one.cfg_scale <= 4 and one.top_k == 9 for one in settings)
    with safe_open(str(tmp_path / "tokens-000004.safetensors"), framework="pt") as file:
        assert float(file.metadata()["temperature"]) == settings[4].temperature == settings[7].temperature
        assert float(file.metadata()["cfg_scale"]) == settings[4].cfg_scale

    (tmp_path / "tokens-000004.safetensors").unlink()
    assert torch.equal(draw_on_policy(target, drawing, 12, tmp_path), tokens)
    for other, complaint in (
        (replace(drawing, ranges=replace(RANGES, temperatures=(0.2, 1.0))), "made with temperatures=0.3 to 1.0, not"),
        (replace(drawing, ranges=None), "made with temperature=.*, not 0.7"),
    ):
        with pytest.raises(HawkError, match=complaint):
            draw_on_policy(target, other, 12, tmp_path)


@pytest.mark.parametrize("name", ["llamagen", "janus"])
def test_the_teacher_speaks_for_each_grid_at_the_setting_that_the_grid_was_drawn_with(
    targets: dict[str, Path], name: str, tmp_path: Path
) -> None:
    """argmax(log p + g) gives each grid's tokens, for log p at the grid's own temperature and guidance scale."""
    model = FrozenModel.load(targets[name], torch.device("cpu"), "float32").bare

    def prompts(start: int, count: int) -> Any:
        return model.condition(WORDS.drawn(start, count), [""] * count, model.grid)

    drawing = Drawing(prompts, model.grid, model.defaults, 2, ranges=RANGES)
    tokens = draw_on_policy(model.target, drawing, 4, tmp_path / "grids")
    states = hidden_states(model.target, tokens, drawing, tmp_path / "states", 0.0)
    data, mixed = OnPolicy(tokens, states, drawing.settings(4)), torch.tensor([3, 0, 2])
    log_p = teacher_log_p(model.target, data.hidden(mixed), data.sampling(mixed))
    noise = GumbelNoise(mixed.tolist(), model.grid.size, model.target.vocab_size, log_p)
    chosen = (log_p + noise.rows(torch.arange(model.grid.size).expand(3, -1))).argmax(-1)
    same = (chosen == tokens[mixed]).double().mean()
    assert same > 0.9  # the states are rounded to bfloat16
    assert len(data.hidden(mixed)) == (2 if name == "janus" else 1)


def test_each_kind_learns_a_grid_at_the_setting_of_the_grid(tmp_path: Path) -> None:
    """The loss of a batch of two settings is the mean of the losses of its images, each at its own setting."""
    target = tiny_target()
    drawing = Drawing(tiny_prompts, TINY_GRID, SamplingParams(), 1, ranges=RANGES)
    tokens = draw_on_policy(target, drawing, 2, tmp_path / "grids")
    data = OnPolicy(tokens, hidden_states(target, tokens, drawing, tmp_path / "states", 0.0), drawing.settings(2))
    both, dim = torch.arange(2), target.hidden_size
    shape = SpatialConfig(dim, **SPATIAL)
    starts, noise = torch.tensor([5, 6]), window_noise([0, 1], shape.window, target.vocab_size, "cpu")
    heads, feature = DraftHeads(HeadsConfig(dim, 2, 1)), FeatureDrafter(feature_shape(dim))
    losses = {
        "heads": (HeadsLoss(heads, target, TINY_GRID, SamplingParams()), lambda i: (data.hidden(i),)),
        "feature": (FeatureLoss(feature, target, SamplingParams()), lambda i: (tokens[i], data.hidden(i), None)),
        "spatial": (
            SpatialLoss(SpatialDrafter(shape), target, TINY_GRID, SamplingParams()),
            lambda i: (tokens[i], data.hidden(i), starts[i], noise[i]),
        ),
    }
    for kind, (loss, inputs) in losses.items():
        with torch.no_grad():
            together, others = (float(loss(*inputs(both), own)["loss"]) for own in (data.sampling(both), None))
            alone = [float(loss(*inputs(one), data.sampling(one))["loss"]) for one in both[:, None]]
        assert together == pytest.approx(sum(alone) / 2, rel=1e-5), kind
        assert together != pytest.approx(others, rel=1e-3), kind


@pytest.mark.proofs
def test_a_drafter_is_trained_over_ranges_and_its_pool_is_fitted_on_them(
    targets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = FrozenModel.load(targets["llamagen"], torch.device("cpu"), "float32")
    heads = {"heads": KINDS["heads"]}
    plan = plan_for(frozen.bare, "llamagen", ranges=RANGES, kinds=heads, sources=("horizontal", "stale"))
    seen: dict[str, set[float]] = {"record": set(), "cost": set()}
    record, cost = pooling.record_drafts, pooling.measure_cost

    def recorded(target: Any, pool: Any, prompt: Any, grid: Any, params: Any, *rest: Any) -> Any:
        seen["record"].add(params.temperature)
        return record(target, pool, prompt, grid, params, *rest)

    def costed(target: Any, pool: Any, prompt: Any, grid: Any, params: Any, seeds: Any) -> Any:
        seen["cost"] |= {one.temperature for one in params}
        return cost(target, pool, prompt, grid, params, seeds)

    monkeypatch.setattr(pooling, "record_drafts", recorded)
    monkeypatch.setattr(pooling, "measure_cost", costed)
    assert train_drafter(frozen, WORDS, plan, tmp_path) is not None
    assert len(seen["record"]) == 3  # three runs of four images, which share a setting
    assert len(seen["cost"]) == 4
    assert "(CFG 1.0 to 4.0,\ntemperature 0.3 to 1.0," in (tmp_path / "drafter" / "README.md").read_text()


def test_a_recipe_with_ranges_refuses_a_single_temperature_or_scale(tmp_path: Path) -> None:
    train = ("train", "drafter", "--target", "none", "--out", tmp_path, "--prompts", "none", "--recipe", "mixed")
    for option, complaint in (
        ("--temperature", "recipe mixed draws from a range, 0.2 to 1.0: leave --temperature out"),
        ("--cfg-scale", "recipe mixed draws from a range, 1.0 to 3.0: leave --cfg-scale out"),
    ):
        refused = command(*train, option, 1)
        assert refused.exit_code == 2, refused.output
        assert complaint in refused.stderr.splitlines()[-1]


def test_a_prompt_file_is_read_and_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff# mine\n\na cat  \n# no\nein Äpfel\n  a dog\n", encoding="utf-8")
    texts = PromptFile.read(path)
    assert texts.lines == ("a cat", "ein Äpfel", "a dog")
    assert texts.drawn(2, 3) == ["a dog", "a cat", "ein Äpfel"]
    assert texts.unseen(3, 2, 3) == ["a dog", "ein Äpfel"]  # from the end
    assert texts.fingerprint != PromptFile(("a cat", "a dog")).fingerprint
    path.write_text("# nothing\n\n")
    with pytest.raises(HawkError, match="holds no prompt: write one a line"):
        PromptFile.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    for wrong in (path, tmp_path / "nowhere.txt"):
        with pytest.raises(HawkError, match="give a UTF-8 file with one prompt a line"):
            PromptFile.read(wrong)


def test_recipes_are_read_and_unknown_keys_refused(tmp_path: Path) -> None:
    paper = load_recipe("paper")
    fit = paper.kind("heads").fit
    assert (paper.images, fit.lr, fit.weight_decay, fit.betas) == (6000, 2e-5, 0.1, (0.9, 0.95))
    assert sum(paper.kind("heads").shape.values()) == 4
    assert load_recipe("hawk").kinds.keys() == {"heads", "spatial", "feature"}
    assert load_recipe("hawk").ranges is None
    mixed = load_recipe("mixed")
    assert (mixed.kinds, mixed.draw_batch) == (load_recipe("hawk").kinds, 8)
    assert mixed.ranges == SamplingRanges((0.2, 1.0), (1.0, 3.0))
    with pytest.raises(HawkError, match="has nothing on kind 'spatial', only on heads"):
        paper.kind("spatial")
    with pytest.raises(HawkError, match="unknown drafter kind 'lookup'"):
        paper.kind("lookup")
    with pytest.raises(HawkError, match="no recipe 'nobody': give a YAML file, or one of hawk, mixed, paper"):
        load_recipe("nobody")
    for text, complaint in (
        ("heads: {steps: 3, batch_size: 2, speed: 4}", "heads: unknown key 'speed'"),
        ("heads: {steps: 3, batch_size: 2, device: cuda}", "unknown key 'device'"),
        ("tails: {steps: 3}", "unknown key 'tails'"),
        ("heads: {steps: many, batch_size: 2}", "heads: steps: Input should be a valid integer"),
        ("heads: {steps: 3}", "heads: batch_size: Field required"),
        ("heads: {steps: 3, batch_size: 2, horizontal: 0}", "horizontal must be a number above 0"),
        ("images: few\nheads: {steps: 3, batch_size: 2}", "images must be a number above 0"),
        ("draw_batch: 0\nheads: {steps: 3, batch_size: 2}", "draw_batch must be a number above 0"),
        ("temperatures: 0.5", "temperatures must be two numbers .low, high. from 1e-05 on, not 0.5"),
        ("temperatures: [0, 1]", "temperatures must be two numbers"),
        ("temperatures: [1, 0.2]", "temperatures must be two numbers"),
        ("cfg_scales: [0.5, 3]", "cfg_scales must be two numbers .low, high. from 1.0 on"),
        ("cfg_scales: [1, .inf]", "cfg_scales must be two numbers"),
        ("cfg_scales: [1, 2, 3]", "cfg_scales must be two numbers"),
        ("- heads", "must be a mapping"),
        ("heads: [", "is not YAML"),
    ):
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(HawkError, match=complaint):
            load_recipe(str(tmp_path / "own.yaml"))


def test_sources_that_will_not_be_there_are_refused(targets: dict[str, Path], tmp_path: Path) -> None:
    frozen = FrozenModel.load(targets["janus"], torch.device("cpu"), "float32")
    plan = plan_for(frozen.bare, "janus", kinds={"heads": KINDS["heads"]}, sources=("vertical-2",))
    with pytest.raises(HawkError, match="unknown source 'vertical-2': choose from horizontal, vertical-1, stale"):
        train_drafter(frozen, WORDS, plan, tmp_path)
    with pytest.raises(HawkError, match="there are none in"):
        train_drafter(frozen, WORDS, replace(plan, kinds={"feature": KINDS["feature"]}, sources=None), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.proofs
def test_the_command_writes_a_drafter_that_generate_takes(targets: dict[str, Path], tmp_path: Path) -> None:
    """`hawk train drafter --target --prompts` works with the fewest images and a recipe file, and refuses bad input."""
    janus, prompts = targets["janus"], tmp_path / "prompts.txt"
    prompts.write_text("a cat\na red apple\n")
    (tmp_path / "own.yaml").write_text("heads: {steps: 3, batch_size: 4, horizontal: 1, vertical: 1}")
    train = ["train", "drafter", "--target", janus, "--out", tmp_path / "run"]
    how = ["--recipe", tmp_path / "own.yaml", "--target-dtype", "bfloat16", "--dtype", "float32", "--draw-batch", 16]
    done = command(*train, "--prompts", prompts, *how, "--sources", "horizontal,stale", "--cfg-scale", 2)
    assert done.exit_code == 0, (done.output, done.exception)
    drafter = tmp_path / "run" / "drafter"
    assert json.loads((drafter / "report.json").read_text())["images"] == 64
    drawn = command("generate", "a cat", "--model", janus, "--drafter", drafter, "--out", tmp_path / "cat.png")
    assert drawn.exit_code == 0, (drawn.output, drawn.exception)
    for words, complaint in (
        ([], "give --prompts FILE"),
        (["--prompts", tmp_path / "none.txt"], "cannot read prompts"),
        (["--prompts", prompts, "--kind", "heads,tails"], "unknown drafter kind 'tails'"),
        (["--prompts", prompts, "--recipe", "best"], "no recipe 'best'"),
        (["--prompts", prompts, *how, "--cfg-scale", 3], "was made with cfg_scale=2.0, not 3.0"),
        (["--prompts", prompts, *how, "--cfg-scale", 2, "--height", 12], "draws 8x8 pixels only"),
    ):
        refused = command(*train, *words)
        assert refused.exit_code == 2, refused.output
        assert complaint in refused.stderr.splitlines()[-1]


def command(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])
