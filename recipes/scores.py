"""Ask a model of scenes for one figure in a colour at a place on a plain background, and print what came as asked.

    python recipes/scores.py MODEL [IMAGES] [SCALE]

Half of the prompts are about held-out pairs: things in colours that training never shows them in. The share of pictures
with each part of a prompt as asked is printed for both halves.
"""

import sys

import numpy as np

from hawk import HawkPipeline
from hawk.evaluation.faithfulness import PARTS
from hawk.evaluation.gallery import Gallery
from hawk.evaluation.questions import question
from hawk.training.scenes.plain import plain_caption, plain_question


def main(model: str, images: str = "48", scale: str = "2") -> None:
    pipe, gallery = HawkPipeline.from_pretrained(model), Gallery()
    for pairs in ("taught", "held-out"):
        prompts = [plain_caption(plain_question(number, pairs=pairs)) for number in range(int(images) // 2)]
        seeds = list(range(len(prompts)))
        drawn = pipe(prompts, guidance_scale=float(scale), temperature=1.0, seed=seeds, batch_size=4).images
        seen_and_asked = [
            (gallery.see(np.asarray(image)), question(text)) for image, text in zip(drawn, prompts, strict=True)
        ]
        shares = {
            name: float(np.mean(found))
            for name, part in PARTS.items()
            if (found := [part.holds(seen, asked) for seen, asked in seen_and_asked if part.named(asked)])
        }
        print(f"{pairs} pairs:", ", ".join(f"{name} {share:.2f}" for name, share in shares.items()))


if __name__ == "__main__":
    main(*sys.argv[1:4])
