"""Print how different four seeds of a prompt are, beside four training pictures that have the same caption.

    python recipes/diversity.py [PROMPTS] [MODEL] [SHEET.png]

The prompts are the first captions of the training set's row that four of its scenes share. The figure is the mean of
`1 - cosine` over the pairs of a prompt's four pictures, over the features of `efficientnet` (needs the extra `eval`).
SHEET.png, if it is named, shows the pictures: a row of the model's above a row of the training's, prompt by prompt.
"""

import itertools
import sys
from collections import defaultdict

import numpy as np
import torch
from jaxtyping import UInt8

from hawk import HawkPipeline
from hawk.evaluation.features import extractor_named
from hawk.evaluation.metrics import prompt_diversities
from hawk.pictures.contact_sheet import contact_sheet
from hawk.training.scenes.data import ScenePictures

SEEDS = 4


def places_of_captions(pictures: ScenePictures, count: int) -> dict[str, list[int]]:
    """The first captions that four training pictures share, with the places of these pictures."""
    seen: dict[str, list[int]] = defaultdict(list)
    found: dict[str, list[int]] = {}
    for place in itertools.count():
        words = pictures.captions("train", [place])[0]
        seen[words].append(place)
        if len(seen[words]) == SEEDS:
            found[words] = list(seen[words])
        if len(found) == count:
            return found
    raise AssertionError("the row is endless")


def diversities(pictures: UInt8[np.ndarray, "prompts seeds h w 3"]) -> torch.Tensor:
    """The mean distance between the pictures of each prompt."""
    extractor = extractor_named("efficientnet")
    stacked = torch.from_numpy(pictures).permute(0, 1, 4, 2, 3)
    return prompt_diversities([extractor.features(of_prompt) for of_prompt in stacked])


def main(prompts: str = "24", model: str = "bundled", sheet: str = "") -> None:
    training = ScenePictures()
    places = places_of_captions(training, int(prompts))
    pipe = HawkPipeline.from_pretrained(model)
    asked = [words for words in places for _ in range(SEEDS)]
    drawn = pipe(asked, seed=list(range(len(asked))), batch_size=4).images
    ours = np.stack([np.asarray(image) for image in drawn]).reshape(len(places), SEEDS, *np.asarray(drawn[0]).shape)
    trained = np.stack([training.batch("train", alike).rgb for alike in places.values()])
    if sheet:
        both = np.concatenate([ours, trained], axis=1).reshape(-1, *ours.shape[2:])
        names = [f"{words}{of}" for words in places for of in [""] * SEEDS + [" (training)"] * SEEDS]
        contact_sheet(list(both), names, columns=2 * SEEDS).save(sheet)
    of_model, of_training = diversities(ours), diversities(trained)
    for words, one, other in zip(places, of_model.tolist(), of_training.tolist(), strict=True):
        print(f"{one:.3f} {other:.3f}  {words}")
    share = float(of_model.mean() / of_training.mean())
    print(f"{of_model.mean():.3f} between seeds, {of_training.mean():.3f} between training pictures: {share:.2f} of it")


if __name__ == "__main__":
    main(*sys.argv[1:4])
