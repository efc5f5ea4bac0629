"""Prompt sets are read from files in the formats of their authors; what is wrong with a file is one line."""

import json
import shutil
from pathlib import Path

import pytest

from hawk.errors import HawkError
from hawk.evaluation.prompt_sets import (
    SETS,
    PromptItem,
    PromptSet,
    built_in_prompts,
    read_prompt_set,
    reference_pictures,
)
from hawk.measure.prompts import BENCH_PROMPTS

FILES = Path(__file__).parent / "fixtures" / "prompt_sets"


def refusal(name: str, path: Path) -> str:
    """The error of reading a set: one line that is not too long, beside the file's own path."""
    with pytest.raises(HawkError) as error:
        read_prompt_set(name, path)
    message = str(error.value)
    assert "\n" not in message
    assert len(message.replace(str(path.parent), "")) < 320
    return message


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def triples(prompts: PromptSet) -> list[tuple[str, str, str]]:
    return [(item.id, item.prompt, item.group) for item in prompts.items]


# --- files in the published formats

READ = {
    "coco": (
        "captions_val.json",
        [("42", "A wooden chair by a window.", ""), ("7", "Kites fly over the sand", "")],
    ),
    "flickr30k": ("dataset_flickr30k.json", [("1007", "A man rows.", "train"), ("1009", "A girl skips.", "test")]),
    "parti": (
        "PartiPrompts.tsv",
        [
            ("2", "a lamp", "Artifacts"),
            ("3", '"O P E N" painted on a blue door', "Illustrations"),
            ("4", 'a café at dawn, "late"', "Outdoor Scenes"),
        ],
    ),
    "geneval": (
        "evaluation_metadata.jsonl",
        [("1", "a photo of a kite", "single_object"), ("2", "a photo of three cups", "counting")],
    ),
    "dpg": (
        "dpg",
        [
            (
                "12",
                "A long wooden table stands in a garden. On it lie three lemons, each on a plate of its own.",
                "",
            ),
            ("midjourney3", "Two paper boats, one white and one green, drift on a pond.", "midjourney"),
        ],
    ),
    "compbench": (
        "compbench",
        [
            ("color_val-1", "a green kite and a red cup", "color"),
            ("color_val-2", "a red kite and a green cup", "color"),
            ("numeracy_val-1", "two kites", "numeracy"),
            ("numeracy_val-2", "three cups and a lemon", "numeracy"),
        ],
    ),
    "hps": (
        "hps",
        [
            (f"{style}-{number:05}", f"{text}, {style}.", style)
            for style in ("anime", "concept-art", "paintings", "photo")
            for number, text in enumerate(("A lighthouse", "Two lemons on a plate"))
        ],
    ),
    "text": ("prompts.txt", [("2", "a red lemon on a pond", ""), ("4", "a kite, 3d", "")]),
}


def test_every_set_has_a_file_here():
    assert READ.keys() == SETS.keys()


@pytest.mark.parametrize("name", READ)
def test_a_file_in_the_published_format_is_read(name):
    file, expected = READ[name]
    prompts = read_prompt_set(name, FILES / file)
    assert prompts.name == name
    assert triples(prompts) == expected


@pytest.mark.parametrize("file", ["results.token", "results.csv"])
def test_the_other_files_of_flickr30k_are_read(file):
    prompts = read_prompt_set("flickr30k", FILES / file)
    assert [item.id for item in prompts.items] == ["1009", "1007"]
    assert prompts.items[0] == PromptItem("1009", "A girl skips .")
    assert prompts.references == {"1009": "1009.jpg", "1007": "1007.jpg"}


def test_one_file_of_a_folder_is_read_alone():
    assert len(read_prompt_set("hps", FILES / "hps" / "photo.json").items) == 2
    assert triples(read_prompt_set("compbench", FILES / "compbench" / "spatial_train.txt")) == [
        ("spatial_train-1", "a cup on the left of a kite", "spatial_train")
    ]


def test_the_number_of_prompts_is_stated():
    assert read_prompt_set("parti", FILES / "PartiPrompts.tsv").summary == (
        "parti: 3 prompts of the 1632 published (Artifacts 1, Illustrations 1, Outdoor Scenes 1)"
    )
    assert read_prompt_set("text", FILES / "prompts.txt").summary == "text: 2 prompts"
    assert PromptSet("text", (PromptItem("1", "a"),)).summary == "text: 1 prompt"


def test_the_built_in_prompts_need_no_file():
    prompts = built_in_prompts()
    assert [item.prompt for item in prompts.items] == list(BENCH_PROMPTS)
    assert len({item.id for item in prompts.items}) == len(BENCH_PROMPTS) == 32


@pytest.mark.parametrize("name", READ)
def test_byte_order_marks_and_windows_line_ends_change_nothing(name, tmp_path):
    file, expected = READ[name]
    copy = tmp_path / file
    shutil.copytree(FILES / file, copy) if (FILES / file).is_dir() else shutil.copy(FILES / file, copy)
    for path in copy.iterdir() if copy.is_dir() else [copy]:
        plain = path.read_text(encoding="utf-8-sig")
        path.write_bytes(b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").encode())
    assert triples(read_prompt_set(name, copy)) == expected


def test_a_line_separator_inside_a_prompt_ends_no_line(tmp_path):
    path = written(tmp_path, "a_val.txt", "a kite\u2028and a cup\na lemon\n")
    assert [item.prompt for item in read_prompt_set("compbench", path).items] == ["a kite and a cup", "a lemon"]


# --- files with faults


@pytest.mark.parametrize("name", READ)
def test_a_missing_path_and_an_empty_one_are_named(name, tmp_path):
    assert refusal(name, tmp_path / "none") == (
        f"{tmp_path / 'none'} is missing: name the file or folder of the prompt set {name}"
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    assert str(folder) in refusal(name, folder)
    if name != "dpg":
        empty = written(tmp_path, "empty.json" if name in ("coco", "hps") else "empty.txt", "\n")
        assert "empty" in refusal(name, empty)


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_another_encoding_is_named(name, encoding, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    suffix = {"coco": "json", "hps": "json"}.get(name, "txt")
    path = written(folder, f"anime.{suffix}", "a café, a cup\n".encode(encoding))
    message = refusal(name, folder if name == "dpg" else path)
    assert f"{path} is not UTF-8 text" in message
    assert "save it as UTF-8" in message


def test_an_unknown_set_is_named(tmp_path):
    with pytest.raises(HawkError, match="unknown prompt set 'cocoa': choose one of coco, flickr30k, parti"):
        read_prompt_set("cocoa", tmp_path)


IMAGES = [{"id": 1, "file_name": "a.jpg"}]


def coco(images=IMAGES, **annotation) -> str:
    return json.dumps({"images": images, "annotations": [{"image_id": 1, "id": 5, "caption": "a kite"} | annotation]})


FAULTS = {
    "broken JSON": ("coco", "x.json", '{"images": [', "x.json is not valid JSON (Expecting value: line 1 column 13"),
    "a list": ("coco", "x.json", "[]", "x.json must hold a JSON object: give the captions of COCO"),
    "deep nesting": ("hps", "x.json", "[" * 100_000, "x.json is not valid JSON"),
    "no images": ("coco", "x.json", "{}", "x.json has no 'images': give the captions of COCO"),
    "images are no list": ("coco", "x.json", '{"images": 3}', "x.json: 'images' must be a list"),
    "no caption": ("coco", "x.json", coco().replace("caption", "bbox"), "x.json: annotations[0] has no 'caption'"),
    "an image of another file": ("coco", "x.json", coco(image_id=2), "annotations[0]: image_id 2 is not among the"),
    "an image twice": ("coco", "x.json", coco(IMAGES * 2), "images[1]: the id 1 is there twice"),
    "an id that is no id": ("coco", "x.json", coco([{"id": True, "file_name": "a"}]), "images[0]: an id must be a"),
    "an id that is a path": ("coco", "x.json", coco([{"id": "../a", "file_name": "a"}]), "images[0]: an id must be a"),
    "a picture outside": ("coco", "x.json", coco([{"id": 1, "file_name": "../a"}]), "images[0]: the file name of a"),
    "a number as caption": ("coco", "x.json", coco(caption=3), "annotations[0]: a prompt must be text, not 3"),
    "an empty caption": ("coco", "x.json", coco(caption=" \n"), "annotations[0]: the prompt is empty"),
    "a caption id of text": ("coco", "x.json", coco(id="5"), "annotations[0]: the id must be a whole number, not '5'"),
    "a caption twice": (
        "flickr30k",
        "x.token",
        "a.jpg#0\tA\na.jpg#0\tB\n",
        "line 2: caption 0 of a.jpg is",
    ),
    "no caption number": ("flickr30k", "x.token", "a.jpg\tA\n", "line 1 is neither FILE#NUMBER<tab>CAPTION nor"),
    "no sentences": (
        "flickr30k",
        "x.json",
        '{"images": [{"filename": "a.jpg", "sentences": []}]}',
        "images[0]: sentences must be a list with at least one",
    ),
    "two pictures of one id": (
        "flickr30k",
        "x.token",
        "a.jpg#0\tA\na.png#0\tB\n",
        "line 2: the id a is there twice, first at",
    ),
    "other columns": (
        "parti",
        "x.tsv",
        "prompt\tcategory\na\tb\n",
        "line 1: the columns of PartiPrompts.tsv are",
    ),
    "commas for tabs": ("parti", "x.tsv", "Prompt,Category,Challenge,Note\n", "line 1: the columns of PartiPrompts"),
    "a column too few": (
        "parti",
        "x.tsv",
        "Prompt\tCategory\tChallenge\tNote\na\tb\tc\t\na\tb\n",
        "line 3 has 2 columns, not 4: the columns of",
    ),
    "a header alone": ("parti", "x.tsv", "Prompt\tCategory\tChallenge\tNote\n", "x.tsv holds no prompt"),
    "a line of text": ("geneval", "x.jsonl", '{"tag": "a", "prompt": "b"}\na kite\n', "line 2 is not valid JSON"),
    "a line without a prompt": ("geneval", "x.jsonl", '{"tag": "a"}\n', "line 1 has no 'prompt': give GenEval's"),
    "a list line": ("geneval", "x.jsonl", '["a"]\n', "line 1 has no 'prompt': give GenEval's"),
    "an object": ("hps", "x.json", '{"a": "b"}', "x.json must hold a JSON list of prompts: give HPSv2's"),
    "a prompt in a list": ("hps", "x.json", '["a", ["b"]]', "x.json: entry 1: a prompt must be text, not ['b']"),
    "comments alone": ("text", "x.txt", "# a kite\n\n", "x.txt holds no prompt"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_with_its_place(fault, tmp_path):
    name, file, content, expected = FAULTS[fault]
    assert expected in refusal(name, written(tmp_path, file, content))


def test_a_caption_id_twice_is_named(tmp_path):
    document = json.loads(coco())
    document["annotations"] *= 2
    path = written(tmp_path, "x.json", json.dumps(document))
    assert "annotations[1]: the id 5 is there twice" in refusal("coco", path)


def test_an_empty_file_among_prompts_and_a_missing_style_are_named(tmp_path):
    written(tmp_path, "0.txt", "")
    assert refusal("dpg", tmp_path) == f"{tmp_path / '0.txt'}: the prompt is empty"
    written(tmp_path, "anime.json", '["a"]')
    assert f"cannot read {tmp_path / 'concept-art.json'} (No such file or directory)" in refusal("hps", tmp_path)
    assert f"{tmp_path} holds no *_val.txt file: give the folder" in refusal("compbench", tmp_path)


# --- reference pictures


def test_reference_pictures_follow_the_items(tmp_path):
    prompts = read_prompt_set("coco", FILES / "captions_val.json")
    names = ["COCO_val2014_000000000042.jpg", "COCO_val2014_000000000007.jpg"]
    assert dict(prompts.references) == dict(zip(("42", "7"), names, strict=True))
    with pytest.raises(HawkError, match="none is no folder: name the folder of reference pictures of coco"):
        reference_pictures(prompts, tmp_path / "none")
    (tmp_path / names[0]).touch()
    with pytest.raises(HawkError, match=rf"lacks 1 of the 2 reference pictures that coco names, {names[1]} first"):
        reference_pictures(prompts, tmp_path)
    (tmp_path / names[1]).touch()
    assert [path.name for path in reference_pictures(prompts, tmp_path)] == names


def test_a_set_without_references_takes_every_picture_of_the_folder(tmp_path):
    with pytest.raises(HawkError, match=r"holds no reference picture: give a folder of \.jpeg, \.jpg"):
        reference_pictures(built_in_prompts(), tmp_path)
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in reference_pictures(built_in_prompts(), tmp_path)] == ["a.jpg", "b.PNG"]
