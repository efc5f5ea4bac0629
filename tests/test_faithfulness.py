"""Prompt faithfulness: what prompts ask for, what is seen in pictures, and the scores with their ceiling and floor."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hawk import SamplingParams
from hawk.evaluation.faithfulness import PARTS, Faithfulness, faithfulness
from hawk.evaluation.gallery import Gallery, cut_out
from hawk.evaluation.prompt_sets import PromptItem, PromptSet
from hawk.evaluation.questions import Question, question
from hawk.evaluation.run import CONTROL, Drawn, EvalJob
from hawk.evaluation.scoring import FAITHFULNESS, SCENES, metrics_of
from hawk.training.scenes.captions import SIZES
from hawk.training.scenes.colours import COLOURS
from hawk.training.scenes.plain import plain_caption, plain_question
from hawk.training.scenes.scene import render


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a red apple on a blue background", Question("apple", "red", "blue")),
        ("Kitten, in front of a grey wall", Question("cat", "", "gray")),
        ("tiny rabbit on the left on turquoise", Question("rabbit", "", "teal", ("left", "centre"), "small")),
        ("a key in the bottom right corner", Question("key", place=("right", "bottom"))),
        (
            "an orange ice cream at the top on an orange background",
            Question("ice cream", "orange", "orange", ("centre", "top")),
        ),
        ("a huge green doughnut", Question("donut", "green", size="large")),
        ("a small cat and a bear on a red background", Question(background="red")),
        ("a red and white ball on black", Question("ball", "", "black")),
        ("a red apple on a striped blue background", Question()),
        ("a yellow moon in the night sky", Question()),
        ("a lighthouse on a hill", Question()),
        ("a lighthouse on a pink background", Question(background="pink")),
    ],
)
def test_a_prompt_asks_for_what_it_names(prompt, asked):
    assert question(prompt) == asked


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    return Gallery()


def scenes(behind: str, count: int) -> list:
    """Taught scenes of one bare figure, all on one colour: drawing a gallery for each colour takes seconds."""
    found = []
    for number in range(200):
        scene = plain_question(number)
        if scene.figures[0].colour != behind and len(found) < count:
            rgb = COLOURS[behind]
            found.append(replace(scene, background=replace(scene.background, colour=behind, main=rgb, other=rgb)))
    return found


def test_the_training_pictures_are_seen_as_they_are(gallery):
    taught = scenes("teal", 60)
    for scene in taught:
        figure, seen, asked = scene.figures[0], gallery.see(render(scene)), question(plain_caption(scene))
        assert (asked.kind, asked.colour, asked.background) == (figure.kind, figure.colour, "teal")
        assert asked.size == ("" if figure.size == "medium" else figure.size)
        assert all(part.holds(seen, asked) for part in PARTS.values() if part.named(asked)), plain_caption(scene)
    assert {scene.figures[0].size for scene in taught} == {*SIZES}
    assert len({(scene.figures[0].across, scene.figures[0].along) for scene in taught}) > 6


def test_a_picture_of_nothing_shows_nothing(gallery):
    seen = gallery.see(np.full((128, 128, 3), COLOURS["teal"], np.uint8))
    assert seen.behind == "teal"
    assert seen.middle is None
    assert cut_out(np.full((64, 64, 3), 200, np.uint8), np.full(3, 200.0)) is None
    asked = Question("cat", "red", "red", ("left", "top"), "small")
    assert not any(part.holds(seen, asked) for part in PARTS.values())


def scored(tmp_path, gallery, wrong: float) -> Faithfulness:
    """The scores of pictures that show what was asked for, but for a share `wrong` of those of `medusa`."""
    taught = scenes("teal", 24)
    items = PromptSet("text", tuple(PromptItem(str(i), plain_caption(scene)) for i, scene in enumerate(taught)))
    pictures = [render(scene) for scene in taught]
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
    return faithfulness(drawn, job, 20, gallery=gallery)


def test_pictures_that_show_what_was_asked_for_reach_the_ceiling(tmp_path, monkeypatch, gallery):
    monkeypatch.setattr("hawk.evaluation.faithfulness.plain_question", lambda number: scenes("teal", 24)[number % 24])
    monkeypatch.setattr("hawk.evaluation.faithfulness.TAUGHT", 24)
    found = scored(tmp_path, gallery, wrong=0.9)
    value = {(row.metric, row.method): row.value for row in found.figures}
    for part in ("object", "colour", "place"):
        assert value[part, "ar"] == 1
        assert found.limits[part].ceiling.value == 1
        assert found.limits[part].floor.value < 0.5
        assert value[part, "medusa"] < 0.6
    assert value["background", "medusa"] == 1
    inside = {(row.metric, row.method): row.inside for row in found.figures}
    assert inside["object", "medusa"] is False
    assert inside["object", "ar"] is None
    assert all(row.low <= row.value <= row.high for row in found.figures if row.low == row.low)


def test_other_models_are_not_judged_by_drawn_scenes_unless_it_is_asked_for():
    assert FAITHFULNESS in metrics_of(SCENES)
    assert FAITHFULNESS not in metrics_of("llamagen-256")
