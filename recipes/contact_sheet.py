"""Draw the contact sheets of docs/bundled.md: 24 prompts, and six of them with four seeds each, none left out.

    python recipes/contact_sheet.py OUT.png [SEED] [MODEL]           # 24 prompts, one image each
    python recipes/contact_sheet.py OUT.png [SEED] [MODEL] seeds     # six prompts, four seeds each

The prompts were written by hand before the first of their images was drawn. Those in `NEVER_SHOWN` name a thing in a
colour that training never showed it in. The seeds count up from SEED (default 0).
"""

import sys

import numpy as np

from hawk import HawkPipeline
from hawk.pictures.contact_sheet import contact_sheet

NEVER_SHOWN = [
    "a purple cat on a yellow background",
    "a pink bus on a meadow",
    "a purple tree on white",
    "a yellow mushroom on a blue background",
    "a green sun and a brown star on a pink background",
    "a happy gray circle with a bow on an orange background",
]
PROMPTS = [
    "a juicy red apple on a bright blue background",
    "a kitten in space",
    "a happy blue circle on yellow",
    "a green frog on pink",
    "a white rocket under the stars",
    "a big red heart on polka dots",
    "a gray bear with a crown on a teal background",
    "a small cup on the right on an orange background",
    "an owl and a moon at night",
    "a cactus in front of a purple wall",
    "a purple octopus with a party hat on white",
    "a tree on top of a red car",
    "a robot on a checkered gray background",
    "a spooky ghost on a purple background",
    "a tiny ladybug in the top left corner on a white background",
    "a sad cloud on a pink gradient",
    "a snowman next to a green pine on a blue background",
    "a blue house on a hill",
    *NEVER_SHOWN,
]
SEVERAL = PROMPTS[:6]


def main(out: str, seed: str = "0", model: str = "bundled", what: str = "prompts") -> None:
    pipe = HawkPipeline.from_pretrained(model)
    prompts = PROMPTS if what == "prompts" else [prompt for prompt in SEVERAL for _ in range(4)]
    images = [np.asarray(pipe(prompt, seed=int(seed) + i).images[0]) for i, prompt in enumerate(prompts)]
    contact_sheet(images, prompts, columns=8).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:5])
