"""Prompt faithfulness: what prompts ask for, what is seen in pictures, and the scores with their ceiling and floor."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fixtures.coarse_features import coarse
from hawk import HawkError, SamplingParams
from hawk.evaluation.faithfulness import Faithfulness, faithfulness
from hawk.evaluation.prompt_sets import PromptItem, PromptSet
from hawk.evaluation.questions import PALETTE, Question, Reader
from hawk.evaluation.run import CONTROL, Drawn, EvalJob
from hawk.evaluation.things import cut_out, read_things
from hawk.training.sprites.composition import FAR, NEAR, compose
from hawk.training.sprites.data import SpriteJob, load_sprites, write_shards
from hawk.training.sprites.records import SpriteRecord

CATS = frozenset({"cat", "cat face"})
NAMES = {name: frozenset({name}) for name in ("red apple", "apple", "dog", "cup of coffee", "soccer ball", "ball")}
READER = Reader({**NAMES, "cat": CATS, "cat face": frozenset({"cat face"}), "kitten": CATS})


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("a red apple on a blue background", Question(frozenset({"red apple"}), "blue")),
        ("Kitten, flat style, with a plain navy blue background", Question(CATS, "dark blue")),
        ("a cat face on grey", Question(frozenset({"cat face"}), "gray")),
        ("small dog on the left, pink background", Question(frozenset({"dog"}), "pink", (NEAR, 0.5), "small")),
        ("a dog in the bottom right corner", Question(frozenset({"dog"}), "", (FAR, FAR))),
        ("a huge cup of coffee at the top", Question(frozenset({"cup of coffee"}), "", (0.5, NEAR), "large")),
        ("a soccer ball on the moon", Question(frozenset({"soccer ball"}))),
        ("a small cat and a dog on a red background", Question(background="red")),
        ("cat, kitten", Question(CATS)),
        ("a lighthouse on a turquoise background", Question()),
    ],
)
def test_a_prompt_asks_for_what_it_names(prompt, question):
    assert READER.question(prompt) == question


def picture(shape: str, colour: tuple[int, int, int]) -> bytes:
    """A PNG with one figure on nothing."""
    image = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(image)
    if shape == "disc":
        draw.ellipse((4, 4, 60, 60), (*colour, 255))
    elif shape == "square":
        draw.rectangle((4, 4, 60, 60), (*colour, 255))
    else:
        draw.polygon([(4, 60), (60, 60), (32, 4)], (*colour, 255))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


THINGS = {
    "red apple": picture("disc", (220, 40, 40)),
    "banana": picture("triangle", (240, 220, 60)),
    "frog": picture("square", (70, 170, 70)),
    "fish": picture("disc", (60, 110, 220)),
    "pig": picture("square", (240, 150, 190)),
    "tiger": picture("triangle", (240, 140, 30)),
    "elephant": picture("disc", (130, 130, 140)),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data set of seven things in one style."""
    folder = tmp_path_factory.mktemp("data")
    jobs = []
    for number, (name, png) in enumerate(THINGS.items()):
        record = SpriteRecord(f"test-{number}", name, (name,), (), "flat", "test", "none", "train")
        jobs.append(SpriteJob(record, png, False))
    write_shards(folder, jobs, {}, workers=0)
    return folder


def test_the_object_is_cut_out_whatever_its_place_size_and_background(data):
    sprites = load_sprites(data, "train")
    things = {record.name: number for number, record in enumerate(sprites.records)}
    seen = set()
    for seed in range(30):
        made = compose(sprites, things["frog"], np.random.default_rng(seed))
        if " and " in made.caption or "next to" in made.caption or "above" in made.caption or "over" in made.caption:
            continue
        cut, layout = cut_out(made.rgb)
        inside = np.abs(cut[40:72, 40:72].astype(int) - (70, 170, 70)).max()
        assert inside < 20, made.caption
        assert (cut[:4] == 128).all(), made.caption
        assert np.array_equal(layout.behind, made.background)
        seen.add(round(layout.extent, 1))
    assert {0.5, 0.7} <= seen
    empty, layout = cut_out(np.full((64, 64, 3), 200, np.uint8))
    assert (empty == 128).all()
    assert layout.middle is None


def scored(data: Path, tmp_path: Path, wrong: float = 0.0) -> Faithfulness:
    """The scores of pictures that show what was asked for; `wrong` is the share of those that show other things."""
    sprites = load_sprites(data, "train")
    prompts, pictures = [], []
    for number in range(24):
        made = compose(sprites, number % len(sprites), np.random.default_rng((9, number)))
        prompts.append(PromptItem(str(number), made.caption))
        pictures.append(made.rgb)
    items = PromptSet("text", tuple(prompts))
    job = EvalJob("tiny", "", "", "cpu", "float32", SamplingParams(), (4, 4), items, 1, 1, ("ar", CONTROL, "medusa"))
    drawn = {}
    for method in job.methods:
        moved = round(wrong * len(pictures)) if method == "medusa" else 0
        order = [*np.roll(np.arange(moved), 1), *range(moved, len(pictures))]
        paths = []
        for number, source in enumerate(order):
            path = tmp_path / f"{method}-{number}.png"
            Image.fromarray(pictures[source]).save(path)
            paths.append(path)
        tokens = torch.tensor(order)[:, None] + 100 * len(drawn)
        drawn[method] = Drawn(method, paths, tokens, torch.ones(24), torch.ones(24))
    return faithfulness(drawn, job, data, coarse("coarse"), tmp_path / "out", 20)


def test_pictures_that_show_what_was_asked_for_reach_the_ceiling(data, tmp_path):
    found = scored(data, tmp_path, wrong=0.9)
    value = {(row.metric, row.method): row.value for row in found.figures}
    assert found.things == len(THINGS)
    for part in ("object", "background"):
        assert value[part, "ar"] == pytest.approx(1, abs=0.1)
        assert found.limits[part].ceiling.value == pytest.approx(1, abs=0.1)
        assert found.limits[part].floor.value < 0.4
        assert value[part, "medusa"] < 0.5
    inside = {(row.metric, row.method): row.inside for row in found.figures}
    assert inside["object", "medusa"] is False
    assert inside["object", "ar"] is None
    assert all(row.low <= row.value <= row.high for row in found.figures if row.low == row.low)


def test_a_folder_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(HawkError, match="hawk data build"):
        read_things(tmp_path, coarse("coarse"), tmp_path)


def test_the_named_backgrounds_are_those_of_the_training():
    assert {"white", "dark blue", "beige"} <= PALETTE.keys()
