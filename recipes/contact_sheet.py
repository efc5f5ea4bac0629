"""Draw the contact sheet of docs/bundled.md: 24 prompts that are no training captions, each drawn once, none left out.

    python recipes/contact_sheet.py OUT.png [SEED] [MODEL]

The prompts are paraphrases, backgrounds that no training caption names (turquoise, lavender, mint), and pairs of style
and object that are held out from training (3d pizza, 3d hamster, flat cherries). The seeds count up from SEED (default
0); none of them was chosen for its image.
"""

import sys

import numpy as np

from hawk import HawkPipeline
from hawk.pictures.contact_sheet import contact_sheet

PROMPTS = [
    "a juicy red apple on a bright blue background",
    "kitten's face, 3d",
    "pizza in 3d",
    "happy yellow smiley",
    "green frog on pink",
    "space rocket blasting off, 3d render",
    "blue heart on a yellow background",
    "gray elephant, flat design",
    "hot cup of coffee on an orange background",
    "strawberry on a turquoise background",
    "a cactus on a lavender background",
    "a purple octopus on white",
    "palm tree on a mint background",
    "robot head on a black background, flat",
    "a spooky ghost on a purple background",
    "a tiny ladybug in the top left corner",
    "crying face in 3d",
    "yellow banana on a sky blue background",
    "3d hamster",
    "cherries, flat style",
    "a gift with a ribbon on a red background",
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
