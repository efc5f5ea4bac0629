"""The command line: what it writes and prints, and that bad input ends it with one line and exit code 2."""

import errno
import json
import os
import re
import shutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from hawk import HawkPipeline, __version__
from hawk.cli.app import app
from hawk.cli.wanted import SETTINGS
from hawk.drafters.methods import METHODS
from hawk.pictures.png import FIRST_BYTES
from hawk.pipeline import tokens_sha256

runner = CliRunner()


def hawk_command(*words: object, code: int = 0):
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    return result


def refused(*words: object) -> str:
    """Run a command that must end with exit code 2 and one line on standard error; return that line."""
    result = hawk_command(*words, code=2)
    assert result.stderr.startswith("hawk: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def last_json(result) -> dict:
    return json.loads(result.stdout.splitlines()[-1])


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def model_copy(saved_model, tmp_path) -> Path:
    return Path(shutil.copytree(saved_model, tmp_path / "copy"))


# --- generate


def test_generate_writes_one_png_that_holds_its_settings(saved_model, empty_folder):
    report = last_json(hawk_command("generate", "A cat, on red!", "--seed", 7, "-m", saved_model, "--json"))
    assert files(empty_folder) == ["a-cat-on-red-7.png"] == [report["path"]]
    assert {"method", "seed", "tokens_sha256", "nfe", "accept_length", "seconds", "path"} <= report.keys()
    assert (report["method"], report["seed"], report["verifier"]) == ("hawk", 7, "coupled")
    with Image.open(report["path"]) as image:
        assert image.size == (48, 32)
        text = image.text
        pixels = image.tobytes()
    assert (text["prompt"], text["seed"], text["model"], text["method"]) == ("A cat, on red!", "7", "tiny", "hawk")
    assert json.loads(text["settings"])["cfg_scale"] == 2.0
    output = HawkPipeline.from_pretrained(saved_model, "cpu")("A cat, on red!", seed=7)
    assert report["tokens_sha256"] == tokens_sha256(output.tokens[0]) == text["tokens_sha256"]
    assert pixels == output.images[0].tobytes()


def test_generate_never_overwrites_another_picture(saved_model, empty_folder):
    def draw(*more):
        return last_json(hawk_command("generate", "a cat", "-m", saved_model, "--json", "-o", "cat.png", *more))["path"]

    assert draw("--seed", 1) == "cat.png"
    first = Path("cat.png").read_bytes()
    assert draw("--seed", 1) == "cat.png", "the same picture again"
    assert draw("--seed", 2) == "cat-2.png"
    assert draw("--seed", 3) == "cat-3.png"
    assert Path("cat.png").read_bytes() == first
    assert files(empty_folder) == ["cat-2.png", "cat-3.png", "cat.png"]


def test_several_images_equal_single_calls(saved_model, empty_folder):
    call = ("generate", "a cat", "red apple", "-n", 2, "--seed", 7, "-m", saved_model, "-o", "out/new/", "--json")
    report = last_json(hawk_command(*call))
    images = report["images"]
    assert [image["seed"] for image in images] == [7, 8, 9, 10]
    assert [image["prompt"] for image in images] == ["a cat", "a cat", "red apple", "red apple"]
    assert {name: value for name, value in report.items() if name != "images"} == images[0]
    assert files(empty_folder) == sorted(image["path"] for image in images)
    single = last_json(hawk_command("generate", "red apple", "--seed", 9, "-m", saved_model, "--json"))
    assert single["tokens_sha256"] == images[2]["tokens_sha256"]


def test_settings_reach_the_decoder(saved_model, empty_folder):
    settings = ("--cfg-scale", 1.5, "--temperature", 0.5, "--top-k", 4, "--top-p", 0.9, "--height", 16, "--width", 24)
    more = ("--method", "hawk-paper", "--dtype", "bfloat16", "--device", "cpu", "--threads", 1)
    before = torch.get_num_threads()
    try:
        report = last_json(hawk_command("generate", "cat", "--seed", 1, "-m", saved_model, "--json", *settings, *more))
    finally:
        torch.set_num_threads(before)
    wanted = {"cfg_scale": 1.5, "temperature": 0.5, "top_k": 4, "top_p": 0.9, "height": 16, "width": 24}
    assert wanted.items() <= report.items()
    assert (report["method"], report["verifier"], report["dtype"]) == ("hawk-paper", "residual", "bfloat16")


def test_lossy_methods_are_labelled_lossy(saved_model, empty_folder):
    lossy = hawk_command("generate", "cat", "--seed", 1, "-m", saved_model, "--json", "--method", "lantern")
    report = last_json(lossy)
    assert (report["method"], report["verifier"], report["lossless"]) == ("lantern", "relaxed", False)
    assert "LOSSY" in lossy.stdout.splitlines()[0]
    more = ("--method", "eagle", "--verifier", "traversal")
    report = last_json(hawk_command("generate", "cat", "--seed", 1, "-m", saved_model, "--json", *more))
    assert (report["verifier"], report["lossless"]) == ("traversal", True)


def test_without_json_the_paths_are_printed(saved_model, empty_folder):
    lines = hawk_command("generate", "a cat", "-n", 2, "--seed", 3, "-m", saved_model).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["a-cat-3.png", "a-cat-4.png"]
    assert all("accept length" in line for line in lines)


BAD_CALLS = {
    "no prompt": ((), "no prompt given"),
    "prompts twice": (("a cat", "--prompts", "taken"), "not both"),
    "too many images": (("a cat", "-n", "100000000000"), "-n must be 100000 or less"),
    "no file of prompts": (("--prompts", "nowhere.txt"), "cannot read prompts from nowhere.txt"),
    "like no picture": (("--like", "taken"), "taken is no PNG picture"),
    "empty prompt": (("",), "no word in it"),
    "long prompt": (("cat " * 7,), "7 words, at most 6"),
    "second prompt bad": (("a cat", "!!"), "no word in it"),
    "unknown option": (("a cat", "--steps", "3"), "--steps"),
    "unknown method": (("a cat", "--method", "eagel"), "unknown method 'eagel'"),
    "unknown verifier": (("a cat", "--verifier", "loose"), "unknown verifier"),
    "unfit verifier": (("a cat", "--verifier", "residual"), "need the verifier coupled"),
    "not a number": (("a cat", "--seed", "x"), "--seed"),
    "negative seed": (("a cat", "--seed=-1"), "seed must be between"),
    "no images": (("a cat", "-n", "0"), "-n must be 1 or more"),
    "temperature": (("a cat", "--temperature=-1"), "--temperature must be"),
    "top-p": (("a cat", "--top-p", "2"), "--top-p must be"),
    "top-k": (("a cat", "--top-k=-1"), "--top-k must be"),
    "cfg-scale": (("a cat", "--cfg-scale", "nan"), "--cfg-scale must be a finite number"),
    "large cfg-scale": (("a cat", "--cfg-scale", "1e9"), "--cfg-scale must be from 1 (off) to 1000000, not 1000000000"),
    "infinite cfg-scale": (("a cat", "--cfg-scale", "1e39"), "--cfg-scale must lie within"),
    "negative prompt": (("a cat", "--cfg-scale", "1", "--negative-prompt", "red"), "no effect at --cfg-scale 1"),
    "a byte that is no UTF-8": (("a cat", "a \udcff cat"), "'a \\udcff cat' holds a byte that is no text"),
    "a negative byte": (("a cat", "--negative-prompt", "\udcff"), "holds a byte that is no text"),
    "a folder that cannot be printed": (("a cat", "-o", "\udcff/"), "cannot print"),
    "height": (("a cat", "--height", "13"), "multiple of 8"),
    "device": (("a cat", "--device", "npu"), "npu"),
    "absent gpu": (("a cat", "--device", "cuda:77"), "not there"),
    "dtype": (("a cat", "--dtype", "int4"), "unknown dtype"),
    "too many threads": (("a cat", "--threads", "100000"), "--threads"),
    "no threads": (("a cat", "--threads", "0"), "--threads"),
    "drafter": (("a cat", "--drafter", "nowhere"), "no drafter folder at nowhere"),
    "not a png": (("a cat", "-o", "cat.jpg"), "ends in .png"),
    "one name for two": (("a cat", "-n", "2", "-o", "cat.png"), "for 2 images"),
    "output below a file": (("a cat", "-o", "taken/cat.png"), "taken is a file"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_of_generate_end_with_one_line_and_write_nothing(saved_model, empty_folder, case):
    words, message = BAD_CALLS[case]
    Path("taken").write_text("in the way")
    assert message in refused("generate", *words, "-m", saved_model)
    assert files(empty_folder) == ["taken"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "no model folder"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "target.safetensors").write_bytes(b"x" * 100), "damaged or cut short"),
        (lambda f: (f / "tokenizer.safetensors").unlink(), "is missing"),
    ],
)
def test_a_damaged_model_ends_with_one_line(model_copy, empty_folder, damage, message):
    damage(model_copy)
    assert message in refused("generate", "a cat", "-m", model_copy)
    assert files(empty_folder) == []


@pytest.mark.parametrize("command", [("generate", "a cat", "--seed", 1), ("compare", "a cat", "--repeats", 1)])
def test_a_full_disk_ends_with_one_line_and_nothing_half_written(saved_model, empty_folder, monkeypatch, command):
    def full(path, content):
        path.open("wb").write(content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    result = hawk_command(*command, "-m", saved_model, "-o", "out/", code=2)
    assert "No space left on device: out/" in result.stderr
    assert result.stderr.count("\n") == 1
    assert files(empty_folder) == []
    if command[0] == "compare":
        assert last_json(result)["identical"] is True, "what was measured is not lost with the picture"


def test_ctrl_c_keeps_the_finished_images(saved_model, empty_folder, monkeypatch):
    with_pixels, calls = HawkPipeline._with_pixels, []

    def interrupted(self, ended, grid):
        calls.extend(ended)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return with_pixels(self, ended, grid)

    monkeypatch.setattr(HawkPipeline, "_with_pixels", interrupted)
    result = hawk_command("generate", "a cat", "-n", 3, "--seed", 1, "-m", saved_model, code=130)
    assert files(empty_folder) == ["a-cat-1.png"] == [result.stdout.split()[0]]
    assert result.stderr == "hawk: interrupted\n"


def test_a_file_of_prompts_is_drawn_and_a_rerun_keeps_what_is_there(saved_model, empty_folder):
    lines = ["# mine", "a cat", "", '{"prompt": "red apple", "seed": 40, "negative_prompt": "a cat"}', "a cat"]
    Path("mine.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    call = ("generate", "--prompts", "mine.txt", "-m", saved_model, "-o", "out", "--json", "--batch-size", 2)
    images = last_json(hawk_command(*call))["images"]
    assert [image["seed"] for image in images] == [0, 40, 2]
    assert files(empty_folder) == ["mine.txt", "out/a-cat-0.png", "out/a-cat-2.png", "out/red-apple-40.png"]
    single = last_json(hawk_command("generate", "a cat", "--seed", 2, "-m", saved_model, "--json"))
    assert single["tokens_sha256"] == images[2]["tokens_sha256"]

    Path("out/a-cat-0.png").unlink()
    again = hawk_command(*call)
    assert [line for line in again.stdout.splitlines() if line.endswith("kept")] == [
        "out/red-apple-40.png  kept",
        "out/a-cat-2.png  kept",
    ]
    assert last_json(again)["path"] == "out/a-cat-0.png"
    other = last_json(hawk_command(*call, "--temperature", 0.5))
    assert other["images"][0]["path"] == "out/a-cat-0-2.png", "other settings, other pictures"


def test_prompts_come_from_standard_input(saved_model, empty_folder):
    words = ("generate", "--prompts", "-", "-m", saved_model)
    result = runner.invoke(app, list(map(str, words)), input="a cat\nred apple\n")
    assert result.exit_code == 0, result.stderr
    assert files(empty_folder) == ["a-cat-0.png", "red-apple-1.png"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a cat", "size": 3}', "mine.txt, line 2: size"),
        ('{"prompt": 3}', "line 2: prompt"),
        ('{"prompt": " "}', "line 2: the prompt is empty"),
        ('{"prompt": "a cat"', "line 2: Invalid JSON"),
        ('{"prompt": "a cat", "seed": "x"}', "line 2: seed"),
    ],
)
def test_a_bad_line_of_prompts_is_named_before_anything_is_drawn(saved_model, empty_folder, line, message):
    Path("mine.txt").write_text(f"a cat\n{line}\n")
    assert message in refused("generate", "--prompts", "mine.txt", "-m", saved_model)
    assert files(empty_folder) == ["mine.txt"]


def test_a_picture_shows_how_it_was_drawn_and_is_drawn_again(saved_model, empty_folder):
    settings = ("--cfg-scale", 1.5, "--top-k", 5, "--height", 16, "--method", "scd", "--negative-prompt", "a cat")
    hawk_command("generate", "red apple", "--seed", 9, "-m", saved_model, "-o", "first.png", *settings)
    shown = hawk_command("show", "first.png").stdout
    assert re.search(r"^prompt +red apple$", shown, re.M)
    assert re.search(r"^top_k +5$", shown, re.M)
    assert last_json(hawk_command("show", "first.png", "--json"))["settings"]["cfg_scale"] == 1.5

    again = hawk_command("generate", "--like", "first.png", "-m", saved_model, "-o", "again.png")
    assert again.stdout.splitlines()[1] == "the tokens are those of first.png"
    assert Path("again.png").read_bytes() == Path("first.png").read_bytes()
    other = hawk_command("generate", "--like", "first.png", "-m", saved_model, "-o", "other.png", "--seed", 10)
    assert "the tokens differ" in other.stdout
    Image.new("RGB", (8, 8)).save("plain.png")
    assert "does not say how it was drawn" in refused("show", "plain.png")


def png(width: int, height: int, **text: str) -> bytes:
    """A PNG that says it has that size, and holds no pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    parts += [(b"tEXt", f"{name}\0{value}".encode("latin-1")) for name, value in text.items()]
    parts += [(b"IDAT", zlib.compress(bytes(3 * width + 1) * height if width < 9 else b"")), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return FIRST_BYTES + b"".join(chunks)


STRANGE_PICTURES = {
    "bomb": (lambda: png(60_000, 60_000), "is no PNG picture that can be read (Image size (3600000000 pixels)"),
    "deep settings": (lambda: png(1, 1, settings="[" * 100_000), "does not say how it was drawn"),
}


@pytest.mark.parametrize("words", [("show",), ("generate", "--like")])
@pytest.mark.parametrize("case", STRANGE_PICTURES)
def test_strange_pictures_are_refused_in_one_line(empty_folder, case, words):
    make, message = STRANGE_PICTURES[case]
    Path("strange.png").write_bytes(make())
    assert message in refused(*words, "strange.png")


def test_what_a_picture_says_cannot_command_the_terminal(empty_folder):
    settings = json.dumps(dict.fromkeys(SETTINGS, 1))
    text = {"prompt": "a \x1b[2J cat\nseed 5", "seed": "1", "model": "m", "method": "ar", "tokens_sha256": "0"}
    Path("escape.png").write_bytes(png(1, 1, settings=settings, **text))
    lines = hawk_command("show", "escape.png").stdout.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("prompt ")] == [r"a \x1b[2J cat\nseed 5"]
    assert all(line.isprintable() for line in lines)


def test_two_processes_never_claim_one_name(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from hawk.pictures.png import save_png

    pictures = [Image.new("RGB", (4, 4), (i, j, 0)) for i in range(25) for j in range(2)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda picture: save_png(picture, tmp_path / "name.png", {}), pictures))
    assert len(set(paths)) == len(pictures) == len(files(tmp_path))


def test_short_help_and_completion_are_there():
    assert "PROMPT" in hawk_command("generate", "-h").stdout
    assert "--show-completion" in hawk_command("--help").stdout


# --- compare


def test_compare_draws_both_and_the_map(saved_model, empty_folder):
    result = hawk_command("compare", "a red apple", "--seed", 3, "-m", saved_model, "--repeats", 1, "-o", "demo/")
    report = last_json(result)
    assert files(empty_folder) == ["demo/compare.png"]
    assert report["path"] == "demo/compare.png"
    assert report["identical"] is True
    assert report["ar"]["tokens_sha256"] == report["hawk"]["tokens_sha256"]
    assert report["ar"]["nfe"] == 24 > report["hawk"]["nfe"]
    assert sum(report["accepted_by"].values()) == 24
    assert report["speedup"] == pytest.approx(report["ar"]["seconds"] / report["hawk"]["seconds"])
    assert "identical" in result.stdout
    hawk_command("compare", "a cat", "-m", saved_model, "--repeats", 1, "-o", "demo")
    assert files(empty_folder) == ["demo/compare.png"], "the picture of the first call is replaced"


def test_the_picture_shows_both_images_and_colours_each_cell(saved_model):
    from hawk.measure.compare import RECOVERED_COLOUR, acceptance_map, compare, draw_comparison, source_colours

    pipe = HawkPipeline.from_pretrained(saved_model, "cpu")
    seen = []
    result = compare(pipe, "a red apple", 3, repeats=2, on_image=lambda: seen.append(1))
    assert len(seen) == 6
    output = result.hawk.output
    cells = acceptance_map(output)
    side = cells.width // 6
    colours = source_colours(output.source_names)
    for position, origin in enumerate(output.origins[0].tolist()):
        x, y = position % 6 * side + side // 2, position // 6 * side + side // 2
        wanted = RECOVERED_COLOUR if origin == -1 else colours[output.source_names[origin]]
        shades = [got / full for got, full in zip(cells.getpixel((x, y)), wanted, strict=True) if full > 30]
        assert max(shades) - min(shades) < 0.04, "the cell's colour, evenly shaded"
        assert 0.75 < min(shades) <= max(shades) <= 1
    picture = draw_comparison(result, "tiny")
    assert picture.width > 3 * 336
    long = draw_comparison(type(result)("word " * 80, 3, result.plain, result.hawk), "tiny")
    assert long.size == picture.size


# --- bench, train, verify, info


def test_bench_ends_with_json_and_writes_it(saved_model, empty_folder):
    call = ("bench", "--methods", "medusa,hawk", "--prompts", "mine.txt", "--json-out", "new/bench.json")
    Path("mine.txt").write_text("# one prompt\na red apple\n", encoding="utf-8-sig")
    result = hawk_command(*call, "-m", saved_model, "--temperature", 0.7)
    document = last_json(result)
    assert [row["method"] for row in document["rows"]] == ["ar", "medusa", "hawk"]
    settings = document["environment"]["settings"]
    assert (settings["temperature"], settings["prompts"]) == (0.7, 1)
    assert json.loads(Path("new/bench.json").read_text()) == document
    assert files(empty_folder) == ["mine.txt", "new/bench.json"]
    assert "hawk" in result.stdout.splitlines()[-3] + result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "ar,eagel"), "unknown method 'eagel'"),
        (("--prompts", "99"), "32 built-in"),
        (("--prompts", "none.txt"), "no file of prompts"),
        (("--seeds", "0"), "--seeds"),
        (("--seeds", "100000000000"), "--seeds"),
        (("--json-out", "taken/x.json"), "taken is a file"),
        (("--cfg-scale", "1e9"), "--cfg-scale must be from 1 (off) to 1000000"),
    ],
)
def test_bad_calls_of_bench(saved_model, empty_folder, words, message):
    Path("taken").write_text("in the way")
    assert message in refused("bench", "-m", saved_model, *words)
    assert files(empty_folder) == ["taken"]


@pytest.mark.parametrize("command", [("bench", "-m"), ("train", "drafter", "--out", "run", "--target")])
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"# nothing\n\n", "mine.txt holds no prompt: write one a line"), (b"\xff\xfe", "mine.txt is not UTF-8 text")],
)
def test_bench_and_train_refuse_the_same_prompt_files(saved_model, empty_folder, command, content, message):
    Path("mine.txt").write_bytes(content)
    assert message in refused(*command, saved_model, "--prompts", "mine.txt")
    assert files(empty_folder) == ["mine.txt"]


TOKENIZER = ("train", "tokenizer", "--out", "run")
TARGET = ("train", "target", "--out", "run", "--tokenizer", "none")
DRAFTER = ("train", "drafter", "--target", "none", "--out", "run", "--prompts", "none.txt")
BAD_CALLS_OF_TRAIN = {
    "a device of another kind": ((*TARGET, "--device", "xpu"), "device 'xpu' is not supported"),
    "no device": ((*TOKENIZER, "--device", "gpu"), "unknown device 'gpu'"),
    "a seed below 0": ((*TARGET, "--seed", "-3"), "--seed"),
    "a seed past 64 bits": ((*TARGET, "--seed", "9" * 30), "--seed"),
    "an infinite rate": ((*TARGET, "--lr", "inf"), "--lr must be a finite number, not inf"),
    "a batch without end": ((*TARGET, "--batch-size", "100000000000"), "--batch-size"),
    "processes without end": ((*TARGET, "--workers", "100000000000"), "--workers"),
    "no time": ((*TARGET, "--minutes", "0"), "--minutes must be above 0"),
    "time without end": ((*TOKENIZER, "--minutes", "inf"), "--minutes must be a finite number, not inf"),
    "a decay without end": ((*TARGET, "--weight-decay", "inf"), "--weight-decay must be a finite number, not inf"),
    "an average that never changes": ((*TOKENIZER, "--ema", "1"), "--ema must be below 1"),
    "half a token": ((*TOKENIZER, "--side", "100"), "--side must be a multiple of 8, the pixels of a token, not 100"),
    "pictures below a cut-out": ((*TOKENIZER, "--side", "8"), "--side"),
    "half a head": ((*TARGET, "--dim", "100"), "--dim must be a multiple of 64"),
    "a share past all": ((*TARGET, "--blind", "1.5"), "--blind must be 1 or less"),
    "levels that are no numbers": ((*TOKENIZER, "--levels", "8,x"), "--levels must be whole numbers from 2 on"),
    "codes without end": ((*TOKENIZER, "--levels", "8,8,8,8,8,8"), "whose product is at most 65536, not '8,8,8,8,8,8'"),
    "a decoder of no encoder": ((*TOKENIZER, "--decoder-only"), "--decoder-only keeps the codes of --start: give"),
    "no tokenizer": (TARGET, "none holds no tokenizer: give a run folder of `hawk train tokenizer`, or a model folder"),
    "no run": (("train", "model", "--run", "none", "--tokenizer", "none"), "none holds no tokenizer"),
    "a drafter without prompts": (DRAFTER[:-2], "give --prompts FILE (one prompt a line)"),
    "a name that no file takes": ((*TARGET, "--name", "a\udcff"), "holds a byte that is no text"),
    "grids without end": ((*DRAFTER, "--images", "100000000000"), "--images"),
    "a cache without end": ((*DRAFTER, "--cache-gb", "inf"), "--cache-gb must be a finite number, not inf"),
}


@pytest.mark.parametrize("case", BAD_CALLS_OF_TRAIN)
def test_bad_calls_of_train(empty_folder, case):
    words, message = BAD_CALLS_OF_TRAIN[case]
    assert message in refused(*words)
    assert files(empty_folder) == []


@dataclass(frozen=True)
class Proven:
    passed: bool


@pytest.mark.parametrize("holds", [True, False])
def test_verify_ends_with_1_where_a_proof_fails(saved_model, monkeypatch, holds):
    from hawk.measure.methods import bench_prompts as real
    from hawk.proofs import losslessness
    from hawk.proofs import suite as proofs

    check = losslessness.Check("tokens", "medusa", "coupled", "cfg 2", "0 differ", holds)
    monkeypatch.setattr(proofs, "run_in_processes", lambda every, processes: [[check]])
    monkeypatch.setattr(
        "hawk.measure.methods.bench_prompts", lambda wanted: ["a cat", "red apple"][: len(real(wanted))]
    )
    result = hawk_command("verify", "-m", saved_model, "--prompts", 2, code=0 if holds else 1)
    document = last_json(result)
    assert document["passed"] is holds
    assert [each["method"] for each in document["checks"]] in (
        ["medusa", "hawk", "hawk", "hawk"],
        ["medusa", "hawk", "scd", "hawk"],
    )  # by what hawk drafts with
    assert document["checks"][1]["passed"] is document["checks"][2]["passed"] is True
    assert document["level"] == (2 if holds else 0)
    assert ("FAILED" in result.stdout) is not holds
    assert "lossy by design" not in result.stdout
    monkeypatch.setattr(proofs, "prove_on_model", lambda pipe, prompts: [])
    drift = losslessness.Check("drift", "lantern", "relaxed", "delta 0.1", "LOSSY: total variation 0.1", True, False)
    monkeypatch.setattr(proofs, "run_in_processes", lambda every, processes: [[check], [drift]])
    told = hawk_command("verify", "-m", saved_model, "--prompts", 2, code=0 if holds else 1).stdout
    assert "lossy by design, drift measured: lantern" in told
    monkeypatch.setattr(proofs, "run_in_processes", lambda every, processes: [[check]])
    alone = hawk_command("verify", "-m", saved_model, "--prompts", 2, "--json", code=0 if holds else 1)
    assert len(alone.stdout.splitlines()) == 1


def test_verify_fails_where_the_models_own_images_differ(saved_model, monkeypatch):
    from hawk.proofs import suite as proofs

    monkeypatch.setattr(proofs, "run_in_processes", lambda every, processes: [])
    monkeypatch.setattr("hawk.measure.methods.bench_prompts", lambda wanted: ["a cat"] * int(wanted))
    monkeypatch.setattr("hawk.proofs.suite.identical_images", lambda pipe, prompts: 3)
    monkeypatch.setattr("hawk.proofs.suite.identical_in_shape", lambda pipe, prompts, window: 4)
    document = last_json(hawk_command("verify", "-m", saved_model, "--prompts", 4, code=1))
    assert document["checks"][0]["measured"] == "3 of 4 images identical to ar"


def test_verify_refuses_prompts_that_the_model_cannot_read_before_it_proves(saved_model, monkeypatch):
    from hawk.proofs import suite as proofs

    monkeypatch.setattr(proofs, "run_in_processes", None)
    assert "at most 6 fit" in refused("verify", "-m", saved_model)


def test_info_names_sizes_and_drafters(saved_model, model_copy):
    facts = last_json(hawk_command("info", saved_model, "--json"))
    assert facts["name"] == "tiny"
    assert facts["grid"] == "4x6 tokens, 32x48 pixels"
    assert re.match(r"weights \S+ GB, KV cache \S+ GB, noise \S+ GB \(float32, on a GPU\)$", facts["memory"])
    assert facts["drafter"]["heads"]["horizontal"] == 3
    shutil.rmtree(model_copy / "drafters")
    assert "hawk train drafter" in last_json(hawk_command("info", model_copy, "--json"))["drafter"]
    assert "no model folder" in refused("info", "nowhere")


def test_version_help_and_unknown_commands():
    assert hawk_command("--version").stdout == f"hawk {__version__}\n"
    for command in ("generate", "compare", "bench", "verify"):
        assert command in hawk_command(code=2).stdout
    assert "No such command" in refused("draw")
    assert "tokenizer" in hawk_command("train", code=2).stdout


def test_the_help_of_generate_names_every_method():
    option = next(p for p in typer.main.get_command(app).commands["generate"].params if p.name == "method")
    names, lossy = option.help.split(" or ")
    assert lossy.startswith("lantern (LOSSY")
    assert {*re.findall(r"[a-z-]+", names), "lantern"} == set(METHODS)


def test_training_takes_the_device_auto():
    from hawk.cli.train import FitOptions
    from hawk.training.loop import FitConfig

    made = FitOptions(device="auto").applied_to(FitConfig(steps=1, batch_size=1, lr=0.1))
    assert torch.device(made.device).type in ("cpu", "cuda")
