"""Metrics by large networks, with stand-ins for packages that are not installed where tests run."""

import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

from hawk import HawkError, SamplingParams
from hawk.evaluation.learned import LEARNED, learned_figures, learned_scores, package, weights_named
from hawk.evaluation.prompt_sets import PromptItem, PromptSet
from hawk.evaluation.run import CONTROL, Drawn, EvalJob
from hawk.evaluation.scoring import BY_LARGE_NETWORKS, metrics_named

PACKAGES = {"clip": "open_clip", "hpsv2": "open_clip", "imagereward": "ImageReward", "lpips": "lpips"}


class ClipNetwork(torch.nn.Module):
    """Embeds a picture by its mean colours, and a text by the colour that it names."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def encode_image(self, pictures):
        return pictures.mean((2, 3)) * self.scale

    def encode_text(self, tokens):
        return tokens.float()


@pytest.fixture
def clip(monkeypatch) -> types.ModuleType:
    """open_clip, as far as it is used."""
    module, made = types.ModuleType("open_clip"), []

    def create(model, pretrained=None):
        made.append((model, pretrained))
        if pretrained not in (None, "openai") and not torch.load(pretrained, weights_only=True):
            raise RuntimeError("Error(s) in\nloading")
        return (
            ClipNetwork(),
            None,
            lambda image: torch.tensor(list(image.resize((1, 1)).getdata())).float().T[:, :, None],
        )

    module.create_model_and_transforms = create
    module.get_tokenizer = lambda model: lambda texts: torch.tensor([[float(c in t) for c in "rgb"] for t in texts])
    module.made = made
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return module


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """A red and a blue picture."""
    paths = []
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        paths.append(tmp_path / f"{name}.png")
        Image.new("RGB", (8, 8), colour).save(paths[-1])
    return paths


def test_the_names_are_those_that_the_command_knows():
    assert tuple(LEARNED) == BY_LARGE_NETWORKS
    assert metrics_named("clip,lpips") == ("clip", "lpips")
    assert not set(metrics_named(None)) & set(LEARNED)


@pytest.mark.parametrize("name", LEARNED)
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(HawkError, match=rf"the metric '{name}' needs the package {PACKAGES[name]}: run pip install"):
        learned_scores([name], {})


def test_clip_is_a_hundred_times_the_cosine(clip, pictures):
    score = learned_scores(["clip", "vendi"], {})["clip"]
    assert clip.made == [("ViT-L-14-quickgelu", "openai")]
    assert score.scores("r", pictures).tolist() == pytest.approx([100, 0])
    assert score.scores("rb", pictures).tolist() == pytest.approx([100 / 2**0.5] * 2)


def test_weights_that_cannot_be_loaded_are_named_in_one_line(clip, tmp_path):
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(
        HawkError, match=r"weights of 'clip' cannot be loaded .*: fetch .* --weights clip=PATH"
    ) as error:
        learned_scores(["clip"], {"clip": tmp_path / "w.pt"})
    assert "\n" not in str(error.value)


def test_hps_takes_its_weights_from_a_file(clip, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: None)
    with pytest.raises(HawkError, match=r"the weights of 'hpsv2' are missing: fetch HPS_v2\.1_compressed\.pt"):
        learned_scores(["hpsv2"], {})
    torch.save({"state_dict": {"scale": torch.tensor([-2.0])}}, tmp_path / "hps.pt")
    score = learned_scores(["hpsv2"], {"hpsv2": tmp_path / "hps.pt"})["hpsv2"]
    assert clip.made[-1] == ("ViT-H-14", None)
    assert score.scores("r", pictures).tolist() == pytest.approx([-1, 0])
    torch.save({"state_dict": {"other": torch.ones(1)}}, tmp_path / "hps.pt")
    with pytest.raises(HawkError, match="weights of 'hpsv2' cannot be loaded"):
        learned_scores(["hpsv2"], {"hpsv2": tmp_path / "hps.pt"})


def test_image_reward_is_asked_picture_by_picture(pictures, tmp_path, monkeypatch):
    module = types.ModuleType("ImageReward")
    asked = []

    class Reward:
        def score(self, prompt, path):
            return float(Path(path).stem == prompt)

    def load(name, device, download_root):
        asked.append((name, device, download_root))
        return Reward()

    module.load = load
    monkeypatch.setitem(sys.modules, "ImageReward", module)
    learned_scores(["imagereward"], {"imagereward": tmp_path / "reward.pt"})
    score = learned_scores(["imagereward"], {})["imagereward"]
    assert asked == [(str(tmp_path / "reward.pt"), "cpu", str(tmp_path)), ("ImageReward-v1.0", "cpu", None)]
    assert score.scores("red", pictures).tolist() == [1, 0]


class LpipsNetwork(torch.nn.Module):
    """The distance of two pictures is the mean of their difference, times a weight of the trunk."""

    def __init__(self, net, pnet_rand, verbose) -> None:
        super().__init__()
        assert (net, verbose) == ("alex", False)
        self.net = torch.nn.ModuleDict({"slice1": torch.nn.ModuleDict({"0": torch.nn.Linear(1, 1, bias=False)})})
        torch.nn.init.constant_(self.net["slice1"]["0"].weight, float("nan") if pnet_rand else 1.0)

    def forward(self, first, second):
        return (first - second).abs().mean((1, 2, 3), keepdim=True) * self.net["slice1"]["0"].weight


def test_lpips_is_taken_between_all_pairs_of_a_prompt(pictures, tmp_path, monkeypatch):
    module = types.ModuleType("lpips")
    module.LPIPS = LpipsNetwork
    monkeypatch.setitem(sys.modules, "lpips", module)
    gap = 2 * 200 / 255 * 2 / 3
    assert learned_scores(["lpips"], {})["lpips"].scores("a", [*pictures, pictures[0]]).tolist() == pytest.approx(
        [gap, 0, gap]
    )
    torch.save({"features.0.weight": torch.tensor([[3.0]])}, tmp_path / "alexnet.pth")
    score = learned_scores(["lpips"], {"lpips": tmp_path / "alexnet.pth"})["lpips"]
    assert score.scores("a", pictures).tolist() == pytest.approx([3 * gap])
    with pytest.raises(HawkError, match="lpips needs at least 2 images"):
        score.scores("a", pictures[:1])


def test_figures_have_intervals_and_scores_are_kept(clip, pictures, tmp_path):
    items = tuple(PromptItem(str(number), "rb"[number % 2]) for number in range(12))
    prompts = PromptSet("text", items)
    job = EvalJob("tiny", "", "", "cpu", "float32", SamplingParams(), (4, 4), prompts, 2, 1, ("ar", CONTROL, "hawk"))
    right = [path for number in range(12) for path in [pictures[number % 2]] * 2]
    drawn = {
        name: Drawn(name, paths, torch.full((24, 1), row), torch.ones(24), torch.ones(24))
        for row, (name, paths) in enumerate({"ar": right, CONTROL: right, "hawk": right[::-1]}.items())
    }
    score = learned_scores(["clip"], {})
    found = learned_figures(score, drawn, job, tmp_path, 20)
    assert {row.method: (row.value, row.inside) for row in found} == {
        "ar": (pytest.approx(100), None),
        CONTROL: (pytest.approx(100), None),
        "hawk": (0, False),
    }
    for path in pictures:
        path.unlink()
    assert learned_figures(score, drawn, job, tmp_path, 20) == found


def test_weights_are_named(tmp_path):
    (tmp_path / "a=b.pt").write_bytes(b"")
    assert weights_named([f"clip={tmp_path}/a=b.pt"]) == {"clip": tmp_path / "a=b.pt"}
    with pytest.raises(HawkError, match=r"--weights must be NAME=PATH with a NAME of clip, .*, not 'vgg=x'"):
        weights_named(["vgg=x"])
    with pytest.raises(HawkError, match="there are no weights of 'clip' at /no/such"):
        weights_named(["clip=/no/such"])


def test_a_package_that_is_there_is_imported():
    assert package("json", "clip").loads("1") == 1
