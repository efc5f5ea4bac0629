"""`hawk study`: the figures of every study on tiny models, and cases whose answer is known."""

import json
import math
import shutil
from itertools import product

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fixtures.tiny_transformers import tiny
from hawk import HawkError, HawkPipeline, SamplingParams
from hawk.cli.app import app
from hawk.decoding.grid import Grid
from hawk.evaluation.prompt_sets import PromptItem, PromptSet
from hawk.evaluation.studies import acceptance, attention, heads, residual, settings, study
from hawk.evaluation.studies.run import STUDIES, rounded, run_study
from hawk.evaluation.studies.study import Album, Mean, Setting, correlation, edge_strength
from hawk.models.folder import HEADS_FOLDER

runner = CliRunner()
PARAMS = SamplingParams(temperature=1.0, cfg_scale=2.0)


@pytest.fixture(scope="module")
def pipe(saved_model) -> HawkPipeline:
    return HawkPipeline.from_pretrained(saved_model, "cpu", "float64")


@pytest.fixture(scope="module", autouse=True)
def short_prompts():
    """The prompts that studies draw, as short as the tiny model takes them."""
    items = tuple(PromptItem(text, text) for text in ("a cat", "a red apple", "a blue cat"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(study, "built_in_prompts", lambda: PromptSet("short", items, {}))
        yield


@pytest.fixture(scope="module")
def album(pipe) -> Album:
    return Album(pipe, Setting(2, 3, PARAMS))


def numbers(document) -> list[float]:
    """All numbers in a JSON document."""
    if isinstance(document, dict | list):
        values = document.values() if isinstance(document, dict) else document
        return [number for value in values for number in numbers(value)]
    return [document] if isinstance(document, int | float) else []


def refused(*words: object) -> str:
    """The line of a command that must end with exit code 2."""
    result = runner.invoke(app, [str(word) for word in words])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    return result.stderr


# --- every study


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.proofs if name == "settings" else ()) for name in STUDIES]
)
def test_a_study_writes_finite_figures_and_a_plot(name, album, tmp_path):
    chosen = STUDIES[name]
    document = run_study(chosen, album, tmp_path, f"hawk study {name}")
    assert json.loads((tmp_path / f"{name}.json").read_text()) == document
    with Image.open(tmp_path / f"{name}.png") as image:
        assert image.size == (round(100 * chosen.size[0]), round(100 * chosen.size[1]))
    assert all(map(math.isfinite, numbers(document)))
    assert (document["command"], document["temperature"], document["cfg_scale"]) == (f"hawk study {name}", 1.0, 2.0)
    assert {"processor", "versions", "threads", "seed", "model", "fingerprint", "grid"} <= document.keys()
    figures = document["figures"]
    assert not {"pictures", "examples"} & figures.keys() or name == "divergence"
    shapes = {"attention": ("by_offset", 4, 11), "divergence": ("map", 3, 6)}
    if name in shapes:
        field, height, width = shapes[name]
        assert [len(row) for row in figures[field]] == [width] * height


def test_studies_ask_for_the_images_that_they_announce(album):
    for one in STUDIES.values():
        asked = []
        album.on_image = lambda asked=asked: asked.append(1)
        one.measure(album)
        assert len(asked) == one.draws(album.pipe, album.setting), one.name
    album.on_image = lambda: None


def test_an_image_is_drawn_once_and_its_steps_add_up(album, monkeypatch):
    image = album.image(1, "hawk-paper")
    assert 1 + sum(step.tokens for step in image.steps) == album.pipe.model.grid.size
    assert [step.frontier for step in image.steps][:1] == [1]
    # the first token and the last token of each step but perhaps the last step are no accepted drafts
    assert int(image.accepted.sum()) in (23 - len(image.steps), 24 - len(image.steps))
    monkeypatch.setattr(HawkPipeline, "__call__", lambda *_, **__: pytest.fail("drawn again"))
    assert album.image(1, "hawk-paper") is image


# --- attention


def test_attention_masses_sum_to_one(album):
    found = attention.measure(album)
    cells = sum(map(sum, found.by_offset))
    prompt = found.shares["prompt"].mass
    assert cells + prompt == pytest.approx(1, abs=1e-6)
    assert sum(share.mass for share in found.shares.values()) == pytest.approx(1, abs=1e-6)
    assert sum(share.if_equal for share in found.shares.values()) == pytest.approx(1, abs=1e-9)
    assert sum(found.by_offset[1]) == pytest.approx(found.shares["row above"].mass, abs=1e-6)
    assert sum(found.by_offset[0][6:]) == 0, "no cell to the right in the row of the predicted cell"
    for layer in zip(*found.by_layer.values(), strict=True):
        assert sum(layer) == pytest.approx(1, abs=1e-6)


def test_attention_with_equal_weights_has_the_shares_of_equal_weights(saved_model):
    pipe = HawkPipeline.from_pretrained(saved_model, "cpu", "float64")
    for block in pipe.model.target.layers:
        block.attention.wqkv.weight.data.zero_()
    found = attention.measure(Album(pipe, Setting(2, 0, PARAMS)))
    for share in (*found.shares.values(), found.left_cell, found.cell_above, found.nine_around_above):
        assert share.mass == pytest.approx(share.if_equal, abs=0.02)  # the prompts have different lengths
    tokens, grid = torch.zeros(1, 24, dtype=torch.long), pipe.model.grid
    one = attention.image_attention(pipe.model.target, pipe.condition(["a cat"]), tokens, grid)
    seen = torch.arange(1, 24)
    equal = 1.0 / (one.prompt_entries + seen)
    expected = torch.ones(23, 23).tril() * equal[:, None]
    torch.testing.assert_close(one.cells, expected.expand(2, -1, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(one.prompt, (1 - seen * equal).expand(2, -1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("family", "ends"), [("janus", False), ("lumina", True)])
def test_attention_of_a_transformers_model(family, ends):
    made = tiny(family)
    grid, model = made.grid, made.model
    tokens = torch.randint(model.target.vocab_size, (1, grid.size))
    found = attention.image_attention(model.target, model.condition(["a red apple"], [""], grid), tokens, grid)
    assert found.cells.shape == (2, grid.size - 1, grid.size - 1)
    assert torch.equal(found.cells > 0, torch.ones_like(found.cells, dtype=torch.bool).tril())
    whole = found.cells.sum(-1) + found.prompt + found.other
    torch.testing.assert_close(whole, torch.ones_like(whole))
    assert bool((found.other.abs() > 1e-3).any()) == ends
    figures = attention.attention_figures([found], grid)
    assert ("other" in figures.shares) == ends


# --- heads and divergence


def test_equal_heads_do_not_diverge_and_others_do_as_the_formula_says():
    q = torch.tensor([[0.5, 0.25, 0.25]])
    r = torch.tensor([[0.25, 0.5, 0.25]])
    assert heads.divergence(q.log(), q.log()).tolist() == [0]
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert float(heads.divergence(q.log(), r.log())) == pytest.approx(expected)


def test_no_head_is_better_than_the_target(album):
    found = heads.measure_heads(album)
    assert [(head.direction, head.distance) for head in found.heads] == [
        *(("horizontal", n) for n in (1, 2, 3)),
        *(("vertical", d) for d in (1, 2)),
    ]
    for head in found.heads:
        assert head.excess.value > 0
        assert head.cross_entropy.value == pytest.approx(head.excess.value + found.target_entropy.value)
    growth = found.growth
    assert found.growth_difference.value == pytest.approx(growth["horizontal"].value - growth["vertical"].value)


def test_growth_is_relative_and_per_step_of_distance():
    losses = {"vertical-1": [2.0, 1.0], "vertical-3": [2.0 * 1.1**2, 1.0]}
    assert heads.growth_of(losses, "vertical", 3) == pytest.approx([0.1, 0])


# --- residual


def chance_of_rejection(p, proposals):
    """By the definition: over all drafts x, the chance that each is drawn and rejected."""
    total = 0.0
    for drafts in product(range(len(p)), repeat=len(proposals)):
        left, chance = list(p), 1.0
        for x, q in zip(drafts, proposals, strict=True):
            chance *= q[x] * (1 - min(1.0, left[x] / q[x])) if q[x] else 0.0
            rest = [max(a - b, 0.0) for a, b in zip(left, q, strict=True)]
            left = [each / sum(rest) for each in rest] if sum(rest) else left
        total += chance
    return total


def test_the_rejected_mass_follows_the_definition():
    p, *proposals = torch.rand(4, 5, dtype=torch.float64).softmax(-1) ** 3
    p, *proposals = [each / each.sum() for each in (p, *proposals)]
    found = residual.rejected_mass(p, proposals)
    expected = [chance_of_rejection(p.tolist(), [q.tolist() for q in proposals[:count]]) for count in (1, 2, 3)]
    assert found == pytest.approx(expected)
    assert residual.rejected_mass(p, [p, proposals[0]]) == [0, 0]
    apart = torch.eye(5, dtype=torch.float64)
    assert residual.rejected_mass(apart[0], [apart[1], apart[2]]) == [1, 1]


# --- acceptance, entropy, settings


def test_groups_are_of_equal_size_and_in_the_order_of_their_entropy():
    entropy = torch.tensor([3.0, 1.0, 2.0, 0.0])
    groups = acceptance.groups_of(entropy, 10 * entropy, 2)
    assert [(group.entropy, group.value.value) for group in groups] == [(0.5, 5.0), (2.5, 25.0)]


def test_the_settings_own_value_is_on_every_axis(pipe):
    places = settings.places_of(pipe, Setting(1, 0, SamplingParams(temperature=0.7, cfg_scale=2.5, top_k=5)))
    own = [place.at for place in places if place.params.temperature == 0.7 and place.params.cfg_scale == 2.5]
    assert {0.7, 2.5, 5.0, 24.0} <= {place.at for place in places}
    assert own.count(5.0) == 1
    assert [place.at for place in places if place.axis == "temperature"] == [0.2, 0.6, 0.7, 1.0, 1.4]
    assert [place.grid for place in places if place.axis == "grid"] == [Grid(2, 3), Grid(4, 6), Grid(6, 9)]


def test_small_formulas():
    assert correlation(torch.tensor([1.0, 2, 3]), torch.tensor([3.0, 2, 1])) == pytest.approx(-1)
    assert correlation(torch.ones(3), torch.tensor([3.0, 2, 1])) == 0
    assert Mean.of([1.0, 3.0]) == Mean(2.0, 1.0)
    assert Mean.of([4.0]) == Mean(4.0, 0.0)
    pixels = torch.zeros(3, 8, 8)
    pixels[:, :, 6:] = 1
    assert (edge_strength(pixels, Grid(2, 2)).view(2, 2) > 0).tolist() == [[False, True]] * 2
    assert rounded({"a": [Mean(1.23456789, 0.0)], 2: (3, "x", None)}) == {
        "a": [{"value": 1.2346, "error": 0.0}],
        "2": [3, "x", None],
    }


# --- the command


def test_the_command_prints_its_document_last_and_lists_the_studies(saved_model, tmp_path):
    words = [
        "study",
        "entropy",
        "-m",
        str(saved_model),
        "-n",
        "1",
        "--method",
        "sjd",
        "--top-k",
        "9",
        "-o",
        str(tmp_path),
    ]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout.splitlines()[-1])
    assert document == json.loads((tmp_path / "entropy.json").read_text())
    assert (document["images"], document["method"], document["top_k"]) == (1, "sjd", 9)
    assert (document["temperature"], document["cfg_scale"]) == (1.0, 3.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entropy.json", "entropy.png"]
    listed = runner.invoke(app, ["study", "list"]).stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(STUDIES)


def test_unknown_names_are_refused_in_one_line():
    assert "unknown study 'attentoin': choose one of attention, " in refused("study", "attentoin")
    assert "unknown method 'eagel'" in refused("study", "entropy", "--method", "eagel")
    assert "--step" in refused("study", "entropy", "--step", 3)
    assert "--images" in refused("study", "entropy", "--images", 0)
    for words in (("study", "entropy"), ("eval", "--methods", "ar", "-o", "out"), ("report", "-o", "out")):
        assert "--images must be 100000 or less" in refused(*words, "--images", 10**9)
    assert "--resamples must be 100000 or less" in refused("eval", "--methods", "ar", "-o", "out", "--resamples", 10**9)


def test_a_model_without_drafters_is_told_so_in_one_line(saved_model, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(saved_model, bare)
    shutil.rmtree(bare / HEADS_FOLDER)
    album = Album(HawkPipeline.from_pretrained(bare, "cpu", "float64"), Setting(1, 0, PARAMS))
    for name in ("heads", "divergence", "residual", "acceptance-map", "entropy"):
        with pytest.raises(HawkError, match=rf"^study {name} .*`hawk train drafter --kind heads`") as caught:
            STUDIES[name].measure(album)
        assert "\n" not in str(caught.value)
    assert "study heads needs draft heads" in refused("study", "heads", "-m", bare, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_leaves_out_what_the_model_lacks(saved_model, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    shutil.copytree(saved_model, bare)
    shutil.rmtree(bare / HEADS_FOLDER)
    monkeypatch.setattr("hawk.drafters.settings.step_seconds", lambda target, widths, *_: dict.fromkeys(widths, 1e-3))
    few = {name: STUDIES[name] for name in ("attention", "residual")}
    monkeypatch.setattr("hawk.evaluation.studies.run.STUDIES", few)
    result = runner.invoke(app, ["study", "all", "-m", str(bare), "-n", "1", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("hawk: left out: study residual needs draft heads")
    assert list(json.loads(result.stdout.splitlines()[-1])) == ["attention"]


def test_a_missing_matplotlib_is_told_before_anything_is_drawn(saved_model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    line = refused("study", "attention", "-m", saved_model, "-o", tmp_path / "out")
    assert "plots need matplotlib: run pip install '.[eval]' in Hawk's folder" in line


def test_what_a_study_cannot_show_is_refused_before_anything_is_drawn(tmp_path, album, monkeypatch):
    (tmp_path / "file").write_text("")
    assert "is a file" in refused("study", "attention", "--out", tmp_path / "file")
    assert "--method means nothing for the study heads" in refused("study", "heads", "--method", "scd")
    monkeypatch.setattr(attention, "MOST_BYTES", 8 * album.pipe.model.grid.size**2)
    with pytest.raises(HawkError, match=r"attention holds .* GB of weights for 2 images: "):
        attention.measure(Album(album.pipe, Setting(2, 3, PARAMS)))
    with pytest.raises(HawkError, match="the study entropy needs a temperature above 0"):
        acceptance.measure_entropy(Album(album.pipe, Setting(1, 3, SamplingParams(temperature=0.0))))
