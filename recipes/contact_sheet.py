"""The README's contact sheet: 24 prompts that no training caption repeats, drawn once, in order, none left out.

    python recipes/contact_sheet.py OUT.png [SEED] [MODEL]

They are paraphrases, backgrounds whose words training never used (turquoise, lavender, ...), and pairs of style and
object that training held out. Seeds run from SEED (default 0): no image was chosen.
"""

import sys

import numpy as np

from hawk import HawkPipeline
from hawk.contact_sheet import contact_sheet

PROMPTS = [
    "a juicy red apple on a bright blue background",
    "kitten's face, 3d",
    "pepperoni pizza slice, flat icon",
    "happy yellow smiley",
    "little green frog on pink",
    "space rocket blasting off, 3d render",
    "a big blue heart on a yellow background",
    "gray elephant, noto style",
    "a hot cup of coffee on an orange background",
    "strawberry on a turquoise background",
    "a cactus on a lavender background",
    "a purple octopus on white",
    "small tree at the bottom",
    "robot head on a black background, flat",
    "a spooky ghost on a purple background",
    "a tiny ladybug in the top left corner",
    "crying face, twemoji style",
    "yellow banana on a sky blue background",
    "a football on a green background",
    "birthday cake with candles, 3d",
    "a wrapped gift on a red background",
    "snowman on a dark blue background",
    "a cat and an apple",
    "an old wooden house on a beige background",
]


def main(out: str, seed: str = "0", model: str = "bundled") -> None:
    pipe = HawkPipeline.from_pretrained(model)
    images = [np.asarray(pipe(prompt, seed=int(seed) + i).images[0]) for i, prompt in enumerate(PROMPTS)]
    contact_sheet(images, PROMPTS, columns=8).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:4])
