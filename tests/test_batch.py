"""`hawk batch`: each row is drawn once or named with a reason; the images do not depend on how they are drawn."""

import csv
import errno
import io
import json
import shutil
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from hawk import HawkPipeline
from hawk.batch import shards
from hawk.batch.job import Block, seeds_of
from hawk.batch.on_ray import first_resources
from hawk.batch.rows import Failure, Row, derived_id, read_rows
from hawk.batch.worker import Worker
from hawk.cli.app import app
from hawk.errors import HawkError
from hawk.evaluation.run import seed_of
from hawk.pipeline import tokens_sha256

runner = CliRunner()
needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="the extra ray is not installed")
LINES = [
    {"id": "one", "prompt": "a red apple", "source": "web"},
    {"prompt": "blue cat", "seed": 5},
    {"prompt": "green cat on red", "negative_prompt": "blue"},
    {"prompt": "cat"},
]
SMALL = ("--height", 16, "--width", 16, "--device", "cpu", "--dtype", "float32", "--method", "scd")


def hawk_batch(*words: object, code: int = 0):
    result = runner.invoke(app, ["batch", *map(str, words)])
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result


def refused(*words: object) -> str:
    """Run a command that must end with exit code 2 and one line on standard error; return that line."""
    line = hawk_batch(*words, code=2).stderr
    assert line.startswith("hawk: ")
    assert line.count("\n") == 1, line
    return line


def summary(result) -> dict:
    return json.loads(result.stdout.splitlines()[-1])


def write_lines(path: Path, lines: list[dict | str]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def members(out: Path) -> dict[str, bytes]:
    """The files in all tar shards of a folder, by name; no name is there twice."""
    found: dict[str, bytes] = {}
    for path in sorted((out / "shards").glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                assert member.name not in found
                found[member.name] = archive.extractfile(member).read()
    return found


def hashes(out: Path) -> dict[tuple[str, int], str]:
    """The hash of the tokens of each image in the tar shards, by id and index; no image is there twice."""
    facts = [json.loads(content) for name, content in members(out).items() if name.endswith(".json")]
    found = {(each["id"], each["index"]): each["tokens_sha256"] for each in facts}
    assert len(found) == len(facts)
    return found


def failures(out: Path) -> list[dict]:
    path = out / "failures.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def drawn(saved_model, tmp_path_factory) -> Path:
    """A folder with a file of prompts, and with its images in `out`; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("drawn")
    prompts = write_lines(folder / "p.jsonl", LINES)
    result = hawk_batch(prompts, "-o", folder / "out", "-m", saved_model, "-k", 2, "--block-size", 2, *SMALL)
    found = summary(result)
    assert {name: found[name] for name in ("images", "failed", "skipped")} == {"images": 8, "failed": 0, "skipped": 0}
    assert found["images_per_second"] > 0
    assert found["accept_length"] >= 1
    return folder


# --- rows


def rows_of(path: Path) -> list[Row | Failure]:
    return list(read_rows(path, 1))


def test_a_row_is_the_same_from_every_kind_of_file(tmp_path):
    lines = [{"id": "7", "prompt": "a cat", "seed": 3, "note": "x"}, {"id": "8", "prompt": "red, apple"}]
    expected = [("7", "a cat", "", 3, {"note": "x"}), ("8", "red, apple", "", None, {})]
    write_lines(tmp_path / "p.jsonl", ["", *lines])
    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "prompt", "seed", "note"])
        writer.writeheader()
        writer.writerows(lines)
    files = ["p.jsonl", "p.csv"]
    if find_spec("pyarrow") is not None:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([{**lines[0], "seed": 3}, lines[1]]), tmp_path / "p.parquet")
        files.append("p.parquet")
    for name in files:
        found = rows_of(tmp_path / name)
        assert [(row.id, row.prompt, row.negative, row.seed, row.columns) for row in found] == expected, name


def test_an_id_that_is_not_given_depends_on_the_prompt_alone(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n# a remark\n\na dog\na cat\n")
    first, second, third = rows_of(tmp_path / "p.txt")
    assert (first.id, first.line, second.line) == (derived_id("a cat", ""), 1, 4)
    assert third.id == f"{first.id}-2"
    (tmp_path / "q.txt").write_text("a dog\na cat\n")
    assert {row.id for row in rows_of(tmp_path / "q.txt")} == {first.id, second.id}


WRONG = [
    ("not json", "the line is malformed"),
    ('{"prompt": "cut"', "line 1 column 17"),
    ('["a cat"]', "it is no JSON object"),
    ({"id": "x"}, "there is no prompt"),
    ({"prompt": " \t"}, "the prompt is empty"),
    ({"prompt": 7}, "prompt must be text, not 7"),
    ('{"prompt": "\\ud800"}', "prompt is not UTF-8 text"),
    ({"prompt": "a cat", "seed": -1}, "seed must be a whole number from 0 to 2^63 - 1, not -1"),
    ({"prompt": "a cat", "seed": True}, "seed must be"),
    ({"prompt": "a cat", "id": 1.5}, "id must be text or a whole number"),
    ({"prompt": "a cat", "id": "a\nb"}, "printable"),
    ('{"prompt": "a cat", "weight": NaN}', "JSON has no NaN: write null or a finite number"),
    ('{"prompt": "a cat", "weight": [-Infinity]}', "JSON has no -Infinity"),
    ('{"prompt": "a cat", "weight": 1e400}', "JSON has no '1e400'"),
    ({"id": "one", "prompt": "a dog"}, "the id one is that of row 1, too"),
]


def test_a_wrong_row_is_named_with_its_reason_and_the_others_are_read(tmp_path):
    lines = [LINES[0], *(line for line, _ in WRONG), {"prompt": "the last"}]
    found = rows_of(write_lines(tmp_path / "p.jsonl", lines))
    assert [type(row) for row in found] == [Row, *[Failure] * len(WRONG), Row]
    for row, (_, reason) in zip(found[1:-1], WRONG, strict=True):
        assert reason in row.reason
        json.dumps(row.document)
    (tmp_path / "p.csv").write_bytes(b'prompt,seed\na cat,1\na,b,c\n"a "x,2\n\xff\xfe,3\nred,x\nblue,4\n')
    found = rows_of(tmp_path / "p.csv")
    assert [type(row) for row in found] == [Row, *[Failure] * 4, Row]
    assert [row.line for row in found] == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.yaml", "", "a file of prompts ends in .parquet, .jsonl, .csv, .txt"),
        ("none.txt", None, "there is no file of prompts"),
        ("p.csv", "text\na cat\n", "has no column prompt: its columns are text"),
        ("p.txt", "\n# nothing\n", "holds no prompt"),
        pytest.param("p.parquet", "PAR1", "no parquet file that can be read", marks=needs_pyarrow),
    ],
)
def test_a_file_that_holds_no_rows_is_refused(saved_model, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert message in refused(tmp_path / name, "-o", tmp_path / "out", "-m", saved_model)
    assert not (tmp_path / "out").exists()


def test_seeds_come_from_the_id_and_the_number_alone():
    row = Row(3, "one", "a cat")
    assert seeds_of(row, 2) == [seed_of("one", 0), seed_of("one", 1)]
    assert seeds_of(Row(9, "one", "a dog"), 3)[:2] == seeds_of(row, 2)
    assert seeds_of(Row(3, "one", "a cat", seed=5), 2) == [5, 6]


def test_a_block_travels_as_text():
    block = Block(3, (Row(1, "é", "a\u2028cat", "no", 7, {"x": [1, None]}), Row(2, "b", "b")))
    assert Block.from_json(block.to_json()) == block


# --- images


def test_images_are_those_of_the_pipeline(drawn, saved_model):
    files = members(drawn / "out")
    assert len(files) == 3 * 8
    pipe = HawkPipeline.from_pretrained(saved_model, "cpu", "float32")
    for name, prompt, negative, seed in (
        ("000000001-0001", "a red apple", None, seed_of("one", 1)),
        ("000000002-0000", "blue cat", None, 5),
        ("000000003-0001", "green cat on red", "blue", seed_of(derived_id("green cat on red", "blue"), 1)),
    ):
        facts = json.loads(files[f"{name}.json"])
        output = pipe(prompt, negative_prompt=negative, seed=seed, height=16, width=16, method="ar")
        assert facts["tokens_sha256"] == tokens_sha256(output.tokens[0])
        assert (facts["seed"], facts["prompt"], facts["negative_prompt"]) == (seed, prompt, negative or "")
        assert files[f"{name}.txt"].decode() == prompt
        with Image.open(io.BytesIO(files[f"{name}.png"])) as image:
            assert image.tobytes() == output.images[0].tobytes()
            assert image.text["tokens_sha256"] == facts["tokens_sha256"]
    assert json.loads(files["000000001-0000.json"])["columns"] == {"source": "web"}


def test_images_do_not_depend_on_blocks_and_batches(drawn, saved_model, tmp_path):
    turned = write_lines(tmp_path / "turned.jsonl", LINES[::-1])
    words = ("-m", saved_model, "-k", 2, *SMALL, "--block-size", 3, "--batch-size", 4)
    assert summary(hawk_batch(turned, "-o", tmp_path / "out", *words))["images"] == 8
    assert hashes(tmp_path / "out") == hashes(drawn / "out")


@needs_pyarrow
def test_parquet_shards_hold_the_same_images(drawn, saved_model, tmp_path):
    from pyarrow import parquet

    words = ("-o", tmp_path / "out", "-m", saved_model, "-k", 2, "--format", "parquet", *SMALL)
    hawk_batch(drawn / "p.jsonl", *words)
    rows = parquet.read_table(tmp_path / "out" / "shards").to_pylist()
    assert {(row["id"], row["index"]): row["tokens_sha256"] for row in rows} == hashes(drawn / "out")
    files = members(drawn / "out")
    first = next(row for row in rows if (row["id"], row["index"]) == ("one", 1))
    assert first["image"] == files["000000001-0001.png"]
    assert json.loads(first["columns"]) == {"source": "web"}


# --- stops, and what is there


def test_a_complete_job_ends_at_once(drawn, saved_model, monkeypatch):
    monkeypatch.setattr("hawk.batch.local.Worker", None)  # no model is loaded
    words = ("-o", drawn / "out", "-m", saved_model, "-k", 2, "--block-size", 2, *SMALL)
    result = hawk_batch(drawn / "p.jsonl", *words)
    assert "is complete: 8 images are there" in result.stdout
    assert (summary(result)["images"], summary(result)["skipped"]) == (0, 8)


def test_a_run_that_is_stopped_goes_on_with_the_next_block(drawn, saved_model, tmp_path, monkeypatch):
    draw, drawn_blocks = Worker.draw, []

    def stops(self, block, on_image=None):
        if block.number == 1 and len(drawn_blocks) == 1:
            raise KeyboardInterrupt
        drawn_blocks.append(block.number)
        return draw(self, block, on_image)

    monkeypatch.setattr(Worker, "draw", stops)
    words = (drawn / "p.jsonl", "-o", tmp_path / "out", "-m", saved_model, "-k", 2, "--block-size", 2, *SMALL)
    assert hawk_batch(*words, code=130).stderr == "hawk: interrupted\n"
    (tmp_path / "out" / "shards" / ".000001.tar.x.tmp").write_bytes(b"a writer that was killed left this")
    first = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert (first["blocks"], first["images"]) == (1, 4)
    drawn_blocks.append(-1)
    result = summary(hawk_batch(*words))
    assert (result["images"], result["skipped"]) == (4, 4)
    assert drawn_blocks == [0, -1, 1]
    assert hashes(tmp_path / "out") == hashes(drawn / "out")
    assert not [*(tmp_path / "out").rglob("*.tmp")]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "{",
        lambda text: text.replace('"images": 4', '"images": "four"'),
        lambda text: text.replace('"block": 0', '"block": 1'),
    ],
)
def test_a_damaged_shard_or_record_is_drawn_again(drawn, saved_model, tmp_path, change):
    shutil.copytree(drawn / "out", tmp_path / "out")
    (tmp_path / "out" / "shards" / "000001.tar").write_bytes(b"")
    record = tmp_path / "out" / "blocks" / "000000.json"
    record.write_text(change(record.read_text()))
    words = ("-o", tmp_path / "out", "-m", saved_model, "-k", 2, "--block-size", 2, *SMALL)
    assert summary(hawk_batch(drawn / "p.jsonl", *words))["images"] == 8
    assert hashes(tmp_path / "out") == hashes(drawn / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("-k", 3), "(images of a prompt: 2 there, 3 asked for)"),
        (("--temperature", 0.5), "(temperature: 0.8 there, 0.5 asked for)"),
        (("--dtype", "float64"), "(dtype: float32 there, float64 asked for)"),
        (("--method", "ar"), "(method: scd there, ar asked for)"),
    ],
)
def test_the_folder_of_another_job_is_refused(drawn, saved_model, change, message):
    words = ("-o", drawn / "out", "-m", saved_model, "-k", 2, "--block-size", 2, *SMALL)
    assert message in refused(drawn / "p.jsonl", *words, *change)


def test_folders_of_other_prompts_and_other_files_are_refused(drawn, saved_model, tmp_path):
    other = write_lines(tmp_path / "other.jsonl", LINES[:3])
    words = ("-m", saved_model, "-k", 2, "--block-size", 2, *SMALL)
    assert "images of another job (prompts' sha256:" in refused(other, "-o", drawn / "out", *words)
    assert "holds other files" in refused(other, "-o", tmp_path, *words)


# --- failures


def test_rows_that_fail_are_listed_and_the_others_drawn(saved_model, tmp_path, monkeypatch):
    """A negative prompt without guidance is refused as the block is drawn, an empty prompt as it is read."""
    lines = [*LINES[:3], {"prompt": "", "source": "x"}]
    words = (write_lines(tmp_path / "p.jsonl", lines), "-o", tmp_path / "out", "-m", saved_model, *SMALL)
    result = hawk_batch(*words, "--cfg-scale", 1, code=1)
    assert "2 rows failed" in result.stdout
    found = summary(result)
    assert (found["images"], found["failed"]) == (2, 2)
    third, fourth = failures(tmp_path / "out")
    assert "a negative prompt has no effect" in third["reason"]
    assert {name: third[name] for name in ("line", "prompt", "negative_prompt")} == {**lines[2], "line": 3}
    assert fourth == {"prompt": "", "source": "x", "line": 4, "reason": "the prompt is empty"}
    again = hawk_batch(*words, "--cfg-scale", 1, code=1)
    assert (summary(again)["failed"], len(failures(tmp_path / "out"))) == (2, 2)


def test_the_file_of_failures_is_a_file_of_prompts(saved_model, tmp_path):
    words = ("-m", saved_model, *SMALL)
    lines = write_lines(tmp_path / "p.jsonl", [{"id": "x", "prompt": "cat", "negative_prompt": "red"}, LINES[0]])
    hawk_batch(lines, "-o", tmp_path / "out", *words, "--cfg-scale", 1, code=1)
    hawk_batch(tmp_path / "out" / "failures.jsonl", "-o", tmp_path / "again", *words)
    hawk_batch(lines, "-o", tmp_path / "whole", *words)
    again, whole = hashes(tmp_path / "again"), hashes(tmp_path / "whole")
    assert again.items() <= whole.items()
    assert [*again] == [("x", 0)]


@pytest.mark.parametrize("rows", [1, 4])
def test_a_fault_that_is_not_the_rows_ends_the_job(saved_model, tmp_path, monkeypatch, rows):
    def no_memory(self, some, on_image=None):
        raise HawkError("the machine's memory is too small") from (MemoryError() if rows == 1 else None)

    monkeypatch.setattr(Worker, "_pictures", no_memory)
    lines = write_lines(tmp_path / "p.jsonl", LINES[:rows])
    line = refused(lines, "-o", tmp_path / "out", "-m", saved_model, *SMALL)
    none = "none of the 4 prompts of block 0 is drawn: " if rows == 4 else ""
    assert line == f"hawk: {none}the machine's memory is too small\n"
    assert not (tmp_path / "out" / "blocks").exists()
    assert failures(tmp_path / "out") == []


def test_a_full_disk_ends_the_job_in_one_line_and_a_rerun_goes_on(drawn, saved_model, tmp_path, monkeypatch):
    write, written = shards._write_webdataset, []

    def full(path, pictures):
        written.append(path)
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, pictures)

    monkeypatch.setitem(shards.WRITERS, "webdataset", full)
    words = ("-o", tmp_path / "out", "-m", saved_model, "-k", 2, "--block-size", 2, *SMALL)
    line = refused(drawn / "p.jsonl", *words)
    assert line == f"hawk: No space left on device: {tmp_path / 'out' / 'shards' / '000001.tar'}\n"
    assert summary(hawk_batch(drawn / "p.jsonl", *words))["skipped"] == 4
    assert hashes(tmp_path / "out") == hashes(drawn / "out")


def test_wrong_options_are_refused_before_anything_is_written(drawn, saved_model, tmp_path):
    words = (drawn / "p.jsonl", "-o", tmp_path / "out", "-m", saved_model)
    assert "unknown --format 'zip'" in refused(*words, "--format", "zip")
    assert "a block has at most 4096 images" in refused(*words, "--block-size", 5000)
    assert "unknown method" in refused(*words, "--method", "eagel")
    assert "--temperature" in refused(*words, "--temperature", -1)
    assert "--num-workers must be at most" in refused(*words, "--num-workers", 10_000)
    assert "no drafter folder at /nowhere" in refused(*words, "--drafter", "/nowhere")
    assert "unknown verifier 'loose'" in refused(*words, "--verifier", "loose")
    assert "engine 'graph' is for GPUs" in refused(*words, "--device", "cpu", "--engine", "graph")
    (tmp_path / "out").symlink_to(tmp_path / "lost")
    assert f"the link {tmp_path / 'out'} leads to nothing: name another folder" in refused(*words)
    (tmp_path / "out").unlink()
    assert not (tmp_path / "out").exists()


@pytest.mark.proofs
def test_several_processes_draw_the_same_images(drawn, saved_model, tmp_path):
    words = ("-o", tmp_path / "out", "-m", saved_model, "-k", 2, "--block-size", 1, "--num-workers", 2, *SMALL)
    assert summary(hawk_batch(drawn / "p.jsonl", *words))["images"] == 8
    assert hashes(tmp_path / "out") == hashes(drawn / "out")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([{"CPU": 2.0}], {"CPU": 2.0}),
        ([{}, {"memory": 1.0}, {"GPU": 1.0}, {"CPU": 1.0}], {"GPU": 1.0}),
        ([{"CPU": 0.0}] * 1000, {"CPU": 0.0}),
    ],
)
def test_a_cluster_is_given_time_until_its_first_node_joins(answers, expected):
    coming = iter(answers)
    assert first_resources(lambda: next(coming), patience=0.05, rest=0.001) == expected
