"""Ask a model of scenes for one figure in a colour at a place on a plain background, and print what came as asked.

    python recipes/scores.py MODEL [IMAGES] [SCALE]

Half of the questions are about held-out pairs: things in colours that training never shows them in. The shares of kind,
colour, background, place and of all four together are printed for both halves.
"""

import sys

import numpy as np

from hawk import HawkPipeline
from hawk.training.scenes.scores import judge, mean_of, plain_caption, plain_question


def main(model: str, images: str = "48", scale: str = "2") -> None:
    pipe = HawkPipeline.from_pretrained(model)
    questions = [plain_question(i, pairs="held-out" if i % 2 else "taught") for i in range(int(images))]
    prompts, seeds = [plain_caption(question) for question in questions], list(range(len(questions)))
    drawn = pipe(prompts, guidance_scale=float(scale), temperature=1.0, seed=seeds, method="ar", batch_size=16).images
    scores = [judge(np.asarray(image), question) for image, question in zip(drawn, questions, strict=True)]
    print("taught pairs  ", mean_of(scores[::2]))
    print("held-out pairs", mean_of(scores[1::2]))


if __name__ == "__main__":
    main(*sys.argv[1:4])
