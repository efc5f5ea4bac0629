"""Files are written whole or not at all: by several processes, and on a full disk, where results are still printed."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from fixtures.long_commands import COMMANDS, Workplace
from hawk import files
from hawk.cli.app import app
from hawk.cli.wanted import SETTINGS
from hawk.errors import HawkError
from hawk.files import new_folder, read_cache, write_bytes, write_new
from hawk.measure import scaling
from hawk.models.folder import HEADS_FOLDER
from hawk.pictures.png import save_png
from hawk.pipeline import HawkPipeline
from hawk.processes import process_pool
from hawk.training import loop

# --- names


WRITER = """
import sys
from pathlib import Path
from PIL import Image
from hawk.pictures.png import save_png
which = int(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(100):
    print(save_png(Image.new("RGB", (4, 4), (number, which, 0)), Path(f"{number}.png"), {}), flush=True)
"""


def test_two_processes_write_100_names_and_lose_none(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(which)],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for which in range(2)
    ]
    assert all(writer.stdout.readline() == "ready\n" for writer in writers)
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    written = {}
    for which, writer in enumerate(writers):
        lines = writer.communicate()[0].split()
        assert writer.returncode == 0
        written |= {name: (number, which, 0) for number, name in enumerate(lines)}
    assert len(written) == 200
    assert {path.name for path in tmp_path.iterdir()} == written.keys()
    for name, colour in written.items():
        with Image.open(tmp_path / name) as image:
            assert image.getpixel((0, 0)) == colour


def test_a_written_file_has_the_usual_permissions_and_the_longest_name(tmp_path):
    longest = "ä" * 120 + ".png"
    assert write_new(tmp_path / longest, b"new")
    assert not write_new(tmp_path / longest, b"newer")
    write_bytes(tmp_path / "replaced", b"")
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    with new_folder(tmp_path / longest[:-4]):
        pass
    (tmp_path / "folder").mkdir()
    for ours, usual in ((longest, plain), ("replaced", plain), (longest[:-4], tmp_path / "folder")):
        assert (tmp_path / ours).stat().st_mode == usual.stat().st_mode
    assert sum(1 for _ in tmp_path.iterdir()) == 5


@pytest.mark.parametrize("fails", [False, True])
def test_a_name_is_claimed_where_the_disk_has_no_links(tmp_path, monkeypatch, fails):
    def refused(*paths):
        raise OSError(1, "no")

    monkeypatch.setattr(os, "link", refused)
    if fails:
        monkeypatch.setattr(os, "replace", refused)
        with pytest.raises(OSError, match="no"):
            write_new(tmp_path / "name", b"content")
        assert list(tmp_path.iterdir()) == [], "the empty file that reserved the name is gone"
        return
    assert write_new(tmp_path / "name", b"content")
    assert not write_new(tmp_path / "name", b"other")
    assert (tmp_path / "name").read_bytes() == b"content"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_bytes(tmp_path / "pipe", b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals are blocked on POSIX only")
def test_processes_of_a_pool_never_hear_ctrl_c():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with process_pool(1, int) as pool:
        assert signal.SIGINT in pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


# --- a full disk


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """In the body, a file that grows past `size` bytes fails to be written, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL = os.strerror(27)
"""What the system says of a file that is too large."""


@pytest.fixture(scope="module")
def place(saved_model, tmp_path_factory) -> Workplace:
    return Workplace.fill(tmp_path_factory.mktemp("place"), saved_model)


CONVERTERS = ("convert llamagen", "convert janus")
AXES = ("step", "window", "tokens", "batch")

WHOLE = {".json": lambda path: json.loads(path.read_text()), ".safetensors": load_file, ".png": Image.open}
"""How a file of each kind is read, to see that it is whole."""


def command(words: list[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result.exit_code, result.stdout, result.stderr


def check_refusal(stderr: str, folder: Path) -> None:
    """The last line says what was not written, and nothing half written is there."""
    assert stderr.splitlines()[-1].startswith("hawk: "), stderr
    assert "Traceback" not in stderr
    assert not list(folder.rglob("*.tmp"))
    for path in folder.rglob("*"):
        if path.suffix in WHOLE:
            WHOLE[path.suffix](path)


def check_refused(words: str, folder: Path, size: int = 100) -> str:
    """Run a command with room for files of `size` bytes, which it must find too small; return its standard output."""
    with room_for(size):
        code, out, err = command(words.split())
    assert code == 2, err
    check_refusal(err, folder)
    return out


WRITERS = {
    "generate": ("generate cat -m {model} --seed 1 -o out/", ""),
    "compare": ("compare cat -m {model} --repeats 1 -o out", '"identical": true'),
    "bench": ("bench --methods ar --prompts 1 -m {model} --json-out out/bench.json", '"rows"'),
    "study": ("study settings -m {model} -n 1 -o out", '"study": "settings"'),
    "info": ("info {model} --measure --json", '"reach": 63'),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("generate", "compare"))) for name in WRITERS],
)
def test_on_a_full_disk_the_result_is_printed_and_no_half_file_is_left(
    name, saved_model, empty_folder, tmp_path, monkeypatch
):
    model = Path(shutil.copytree(saved_model, tmp_path / "model"))
    shutil.rmtree(model / HEADS_FOLDER)
    monkeypatch.setenv("HAWK_CACHE", str(empty_folder))
    seconds = "hawk.drafters.settings.step_seconds"
    monkeypatch.setattr(seconds, lambda target, widths, repeats, engine: dict.fromkeys(widths, 1.0))
    words, printed = WRITERS[name]
    assert printed in check_refused(words.format(model=model), empty_folder)
    assert [path for path in empty_folder.rglob("*") if path.is_file()] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train tokenizer", "train drafter", *CONVERTERS])
def test_a_full_disk_stops_a_training_run_or_a_conversion_in_one_line(name, place, empty_folder):
    words = " ".join(COMMANDS[name].arguments(place)).replace("--steps 210", "--steps 2")
    sizes = [0, 300, 3000, 30_000] if name.startswith("train") else [0, 300, 3000]
    for size in sizes:
        check_refused(words, empty_folder, size)
        if name in CONVERTERS:
            assert not Path("out").exists()
    if name != "train drafter":  # its pool takes minutes; tests/test_interrupts.py completes such a run
        code, _, err = command(words.split())
        assert code == 0, err


@pytest.mark.parametrize("size", [100, 5000])
def test_a_copy_that_does_not_fit_is_one_error_and_no_folder(size, saved_model, tmp_path):
    pipe = HawkPipeline.from_pretrained(saved_model, "cpu", "float32")
    with (
        room_for(size),
        pytest.raises(HawkError, match=f"cannot be saved to .*{FULL}.*name another") as caught,
    ):
        pipe.save_pretrained(tmp_path / "copy")
    assert "\n" not in str(caught.value)
    assert "('" not in str(caught.value), "no list of Python is shown"
    assert list(tmp_path.iterdir()) == []


# --- standard output that takes no more


NOTHING_MORE = f"hawk: {os.strerror(errno.ENOSPC)}: standard output\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize(
    "words",
    ["generate cat -m {model} --seed 1", "bench -m {model} --prompts 1 --methods ar", "info {model}", "show {picture}"],
)
def test_a_full_standard_output_ends_a_command_in_one_line_and_keeps_pictures(
    words, saved_model, empty_folder, monkeypatch, capsys, tmp_path
):
    picture = tmp_path / "shown.png"
    text = dict.fromkeys(("prompt", "seed", "model", "method", "tokens_sha256"), "1")
    save_png(Image.new("RGB", (4, 4)), picture, {**text, "settings": json.dumps(dict.fromkeys(SETTINGS, 1))})
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full)
        code = app(words.format(model=saved_model, picture=picture).split(), standalone_mode=False)
        assert sys.stdout is not full, "Python would write to it once more at its end"
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), full.fileno())  # so that it can be closed
    assert code == 2
    assert capsys.readouterr().err == NOTHING_MORE
    assert [path.name for path in empty_folder.iterdir()] == (["cat-1.png"] if words.startswith("generate") else [])


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("closed", [False, True], ids=["full", "closed"])
def test_a_process_whose_output_is_full_or_closed_ends_quietly(closed, unbuffered):
    source = str(Path(files.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "PYTHONUNBUFFERED": unbuffered}
    reading, writing = os.pipe() if closed else (None, os.open("/dev/full", os.O_WRONLY))
    if closed:
        os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "hawk", "--version"], stdout=writing, stderr=subprocess.PIPE, text=True, env=environment
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == ((1, "") if closed else (2, NOTHING_MORE))


@pytest.mark.parametrize("content", [None, b"{", b"[1]", b"\xff"])
def test_a_cache_that_cannot_be_read_is_empty(content, tmp_path):
    if content is not None:
        (tmp_path / "cache.json").write_bytes(content)
    assert read_cache(tmp_path / "cache.json") == {}


def test_state_of_a_training_run_that_does_not_fit_is_an_error_of_the_disk(tmp_path):
    loop.save_atomically({"weights": torch.zeros(9)}, tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()
    with room_for(50_000), pytest.raises(OSError, match=f"{FULL}.*state.pt"):
        loop.save_atomically({"weights": torch.zeros(100_000)}, tmp_path / "state.pt")
    assert (tmp_path / "state.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.proofs
def test_plots_that_do_not_fit_leave_no_half_picture(tmp_path):
    costs = [scaling.Cost(axis, "hawk", at, 1.0, "step") for axis in AXES for at in (1, 2)]
    result = scaling.ScalingResult(costs, [], {}, {"processor": "any", "threads": 1})
    with room_for(1000), pytest.raises(OSError, match=f"{FULL}.*scaling-step.png"):
        scaling.draw_plots(result, tmp_path / "plots")
    assert list((tmp_path / "plots").iterdir()) == []
    assert len(scaling.draw_plots(result, tmp_path / "plots")) == len(AXES)
