"""Scores by large networks that others trained, through their own packages: CLIP, HPSv2, ImageReward and LPIPS.

Each metric is one small adapter. None of the weights come with Hawk: a file is given, or the package's own cache holds
them. Packages and weights that are missing are named before anything is drawn.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from hawk.errors import HawkError, install, one_line
from hawk.evaluation.features import read_picture
from hawk.evaluation.run import Drawn, EvalJob
from hawk.evaluation.scoring import FEW_PROMPTS, Figure, OnStep, judged, kept_features, over_prompts


class LearnedScore(ABC):
    """A network that scores the pictures of one prompt; its weights are loaded when it is made."""

    title: str
    meaning: str

    @abstractmethod
    def scores(self, prompt: str, pictures: Sequence[Path]) -> Float[Tensor, " n"]:
        """The scores of the pictures that were drawn for a prompt: one a picture, or one a pair of pictures."""


class Clip(LearnedScore):
    """CLIP score (Hessel et al. 2021): 100 times the cosine of picture and prompt, 0 at least; CLIP ViT-L/14."""

    title = "CLIP score"
    meaning = "100 times the cosine of picture and prompt"
    model, pretrained = "ViT-L-14-quickgelu", "openai"

    def __init__(self, weights: Path | None) -> None:
        """Load the network, from `weights` or as open_clip does. Raises `HawkError` if anything is missing."""
        self.clip = package("open_clip", "clip")
        source = self.pretrained if weights is None else str(weights)
        made = loaded("clip", lambda: self.clip.create_model_and_transforms(self.model, pretrained=source))
        self.network, _, self.prepare = made
        self.network.eval()
        self.tokenize = self.clip.get_tokenizer(self.model)

    @torch.inference_mode()
    def scores(self, prompt: str, pictures: Sequence[Path]) -> Float[Tensor, " n"]:
        """The scores of the pictures."""
        return 100 * cosines(self.network, self.prepare, self.tokenize, prompt, pictures).clamp(min=0)


class Hps(LearnedScore):
    """Human Preference Score v2 (Wu et al. 2023): the cosine of picture and prompt in CLIP ViT-H/14 as tuned for it."""

    title = "HPSv2"
    meaning = "predicted human preference"
    model, repository, file = "ViT-H-14", "xswu/HPSv2", "HPS_v2.1_compressed.pt"

    def __init__(self, weights: Path | None) -> None:
        """Load the network from `weights` or the cache of huggingface_hub; `HawkError` if anything is missing."""
        from huggingface_hub import try_to_load_from_cache

        clip = package("open_clip", "hpsv2")
        path = weights or try_to_load_from_cache(self.repository, self.file)
        if not isinstance(path, str | Path):
            raise HawkError(
                f"the weights of 'hpsv2' are missing: fetch {self.file} of {self.repository} and pass --weights "
                "hpsv2=PATH"
            )
        self.network, _, self.prepare = loaded("hpsv2", lambda: clip.create_model_and_transforms(self.model))
        state = loaded("hpsv2", lambda: torch.load(path, map_location="cpu", weights_only=True))
        loaded("hpsv2", lambda: self.network.load_state_dict(state.get("state_dict", state)))
        self.network.eval()
        self.tokenize = clip.get_tokenizer(self.model)

    @torch.inference_mode()
    def scores(self, prompt: str, pictures: Sequence[Path]) -> Float[Tensor, " n"]:
        """The scores of the pictures."""
        return cosines(self.network, self.prepare, self.tokenize, prompt, pictures)


class Reward(LearnedScore):
    """ImageReward (Xu et al. 2023): predicted human preference, about 0 on average with a deviation of about 1."""

    title = "ImageReward"
    meaning = "predicted human preference"

    def __init__(self, weights: Path | None) -> None:
        """Load the network, from `weights` or as the package does. Raises `HawkError` if anything is missing."""
        reward = package("ImageReward", "imagereward", "run pip install image-reward")
        name = "ImageReward-v1.0" if weights is None else str(weights)
        # The package looks for its configuration med_config.json beside the weights.
        root = None if weights is None else str(weights.parent)
        self.network = loaded("imagereward", lambda: reward.load(name, device="cpu", download_root=root))

    @torch.inference_mode()
    def scores(self, prompt: str, pictures: Sequence[Path]) -> Float[Tensor, " n"]:
        """The scores of the pictures."""
        return torch.tensor([float(self.network.score(prompt, str(path))) for path in pictures])


class Lpips(LearnedScore):
    """LPIPS (Zhang et al. 2018) with AlexNet, between all pairs of pictures of a prompt: how different they look."""

    title = "LPIPS between images of a prompt"
    meaning = "perceptual distance; higher is more diverse"

    def __init__(self, weights: Path | None) -> None:
        """Load the network, torchvision's AlexNet from `weights` or torch's cache; `HawkError` if it is missing."""
        lpips = package("lpips", "lpips")
        given = weights is not None
        self.network = loaded("lpips", lambda: lpips.LPIPS(net="alex", pnet_rand=given, verbose=False))
        if weights is not None:
            state = loaded("lpips", lambda: torch.load(weights, map_location="cpu", weights_only=True))
            # The package splits AlexNet's `features` into slices and keeps the numbers of the layers.
            own = self.network.net.state_dict()
            loaded(
                "lpips",
                lambda: self.network.net.load_state_dict(
                    {key: state[f"features.{key.partition('.')[2]}"] for key in own}
                ),
            )
        self.network.eval()

    @torch.inference_mode()
    def scores(self, prompt: str, pictures: Sequence[Path]) -> Float[Tensor, " n"]:
        """The distances of all pairs of the pictures."""
        if len(pictures) < 2:
            raise HawkError("lpips needs at least 2 images of each prompt: draw more with --images")
        pixels = torch.stack([read_picture(path) for path in pictures]) / 127.5 - 1
        first, second = (list(numbers) for numbers in zip(*combinations(range(len(pictures)), 2), strict=True))
        found: Tensor = self.network(pixels[first], pixels[second])
        return found.flatten()


LEARNED: dict[str, Callable[[Path | None], LearnedScore]] = {
    "clip": Clip,
    "hpsv2": Hps,
    "imagereward": Reward,
    "lpips": Lpips,
}
"""The metrics by learned networks; each is called with the file of its weights, or None."""


def weights_named(given: Sequence[str]) -> dict[str, Path]:
    """The files of weights, from texts NAME=PATH. Raises `HawkError` for other texts and for missing files."""
    known = (*LEARNED, "inception")
    found = {}
    for text in given:
        name, _, path = text.partition("=")
        if name not in known or not path:
            raise HawkError(f"--weights must be NAME=PATH with a NAME of {', '.join(known)}, not {text!r}")
        if not Path(path).is_file():
            raise HawkError(f"there are no weights of {name!r} at {path}")
        found[name] = Path(path)
    return found


def learned_scores(names: Sequence[str], weights: Mapping[str, Path]) -> dict[str, LearnedScore]:
    """The learned metrics among `names`, with their weights. Raises `HawkError` for what is missing."""
    return {name: LEARNED[name](weights.get(name)) for name in names if name in LEARNED}


def learned_figures(
    scores: Mapping[str, LearnedScore],
    drawn: Mapping[str, Drawn],
    job: EvalJob,
    out: Path,
    resamples: int,
    on_step: OnStep | None = None,
) -> list[Figure]:
    """The learned metrics of all methods, with intervals over prompts; the scores are kept in the job's folder."""
    found: list[Figure] = []
    for name, score in scores.items():
        rows = []
        for method, each in drawn.items():
            if on_step is not None:
                on_step(f"{name} of {method}")
            mark = hashlib.sha256(each.tokens.to(torch.int32).numpy().tobytes()).hexdigest()
            path = out / "features" / name / f"{method}.safetensors"
            by_prompt = kept_features(path, mark, partial(by_prompts, score, each, job))
            interval = over_prompts(lambda x: float(x.mean()), by_prompt.double(), resamples)
            few = f"{name} of {len(by_prompt)} prompts, which are few: the value says little"
            warning = few if len(by_prompt) < FEW_PROMPTS else None
            ends = (interval.value, interval.low, interval.high)
            rows.append(Figure(name, score.title, score.meaning, "", method, *ends, len(each.paths), warning=warning))
        found += judged(rows)
    return found


def by_prompts(score: LearnedScore, drawn: Drawn, job: EvalJob) -> Float[Tensor, "prompts _"]:
    """The scores of a method's pictures, a row for each prompt."""
    rows = []
    for number, item in enumerate(job.prompts.items):
        pictures = drawn.paths[number * job.images : (number + 1) * job.images]
        rows.append(score.scores(item.prompt, pictures).cpu())
    return torch.stack(rows)


def cosines(network: Any, prepare: Any, tokenize: Any, prompt: str, pictures: Sequence[Path]) -> Float[Tensor, " n"]:
    """The cosines of pictures and a prompt in a network with open_clip's interface."""
    batch = []
    for path in pictures:
        with Image.open(path) as picture:
            batch.append(prepare(picture.convert("RGB")))
    seen = torch.nn.functional.normalize(network.encode_image(torch.stack(batch)).float(), dim=-1)
    said = torch.nn.functional.normalize(network.encode_text(tokenize([prompt])).float(), dim=-1)
    return (seen @ said.T)[:, 0]


def package(module: str, metric: str, advice: str | None = None) -> Any:
    """An imported package. Raises `HawkError` with what to install if it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise HawkError(
            f"the metric {metric!r} needs the package {module}: {advice or install('eval-full')}"
        ) from error


def loaded(metric: str, load: Callable[[], Any]) -> Any:
    """What `load` returns. Raises `HawkError` in place of whatever a package raises for weights that it cannot load."""
    try:
        return load()
    except Exception as error:  # failed downloads, damaged files and other shapes raise whatever they like
        raise HawkError(
            f"the weights of {metric!r} cannot be loaded ({one_line(error)}): fetch them and pass --weights "
            f"{metric}=PATH"
        ) from error
