"""Ctrl-C ends every command with exit code 130, one line and no process left behind."""

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from fixtures.long_commands import COMMANDS as LONG
from fixtures.long_commands import Workplace
from hawk.cli.interrupts import Interrupts, was_interrupted

SOURCE = Path(__file__).parents[1] / "src"

COMMANDS = {
    "an import": ("--help",),
    "verify": ("verify",),
    "generate": ("generate", "a red apple", "-n", "50", "-o", "out/"),
}


def start(*words: str, cwd, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "hawk", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HAWK_CACHE": str(cwd), **environment}
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def left_behind(session: int) -> list[str]:
    """The processes of a session that still run; the system may take a second to end those that were killed."""
    for _ in range(20):
        listed = subprocess.run(["ps", "-o", "args=", "-s", str(session)], capture_output=True, text=True, check=False)
        running = [line for line in listed.stdout.splitlines() if "defunct" not in line]
        if not running:
            break
        time.sleep(0.05)
    return running


@pytest.mark.parametrize(
    ("name", "after"),
    [("an import", 0.15), pytest.param("verify", 6.0, marks=pytest.mark.proofs), ("generate", 4.0)],
)
def test_ctrl_c_ends_a_command(tmp_path, name, after):
    process = start(*COMMANDS[name], cwd=tmp_path)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # pressed twice
    _, errors = process.communicate(timeout=30)
    if process.returncode == 0:
        pytest.skip("the command was quicker")
    if process.returncode != 130 and name == "an import" and "__main__.py" not in errors:
        pytest.skip("Python itself had not started the command yet")
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1:] == ["hawk: interrupted"]
    assert "Traceback" not in errors
    assert not left_behind(process.pid)


LEAVES_SEMAPHORES = """
import multiprocessing
import os
from hawk.processes import process_pool

def nothing():
    pass

if __name__ == "__main__":
    with process_pool(1, nothing) as pool:
        pool.submit(nothing).result()
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        os._exit(7)
"""


def test_nothing_is_said_of_what_an_ended_pool_leaves_behind(tmp_path):
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES_SEMAPHORES)
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (7, "")


MOMENTS = 10
LONGEST = 15.0
"""Seconds of a command in which the moments fall."""
PATIENCE = 15.0
"""Seconds to end in that the test allows on a busy machine; the most that it took is printed."""


@dataclass(frozen=True)
class Ended:
    """How a command ended after Ctrl-C: the exit code, its output, and the seconds from Ctrl-C to the end."""

    code: int
    output: str
    errors: str
    seconds: float


@pytest.fixture(scope="module")
def place(saved_model, tmp_path_factory) -> Workplace:
    """What all the commands read."""
    return Workplace.fill(tmp_path_factory.mktemp("place"), saved_model)


def interrupted(words: Sequence[str], folder: Path, after: float | None, at_terminal: bool = False) -> Ended:
    """Run a command in a folder, and send Ctrl-C to it after some seconds (None: never).

    Ctrl-C reaches the command's own process, or, as from a terminal, its child processes as well.
    """
    folder.mkdir(exist_ok=True)
    env = {"OMP_NUM_THREADS": "1", "HAWK_CACHE": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "hawk", *words],
        cwd=folder,
        env={**os.environ, **env, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # the test itself may run without Ctrl-C
    )
    pressed = time.monotonic()
    try:
        output, errors = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        pressed = time.monotonic()
        (os.killpg if at_terminal else os.kill)(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    ended = Ended(process.returncode, output, errors, time.monotonic() - pressed)
    assert not left_behind(process.pid), (words, after)
    return ended


def began(ended: Ended) -> bool:
    """Whether the command had begun when Ctrl-C came: before that, Python itself ends in its own way."""
    return ended.code == 130 or "hawk/__main__.py" in ended.errors or bool(ended.output)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_at_ten_random_moments(tmp_path, place, name, record_property):
    command, words = LONG[name], LONG[name].arguments(place)
    begun = time.monotonic()
    whole = interrupted(words, tmp_path / "whole", None if command.resumes else LONGEST)
    assert whole.code in (0, 130), whole.errors
    seconds = min(time.monotonic() - begun, LONGEST)
    moments = random.Random(name)
    longest, kept, pressed = 0.0, 0, 0
    for i in range(MOMENTS):
        after, folder = moments.uniform(0.3, seconds), tmp_path / str(i)
        ended = interrupted(words, folder, after, at_terminal=i % 2 == 1)
        here = f"{name} after {after:.2f} s: {ended.errors}"
        if ended.code == 0 or not began(ended):
            continue  # the command was quicker than Ctrl-C, or slower than Python
        assert "Traceback" not in ended.errors, here
        assert (ended.code, ended.errors.splitlines()[-1:]) == (130, ["hawk: interrupted"]), here
        assert ended.seconds < PATIENCE, here
        longest, kept = max(longest, ended.seconds), max(kept, len(command.finished(folder)))
        pressed += 1
        assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")], here
        if command.resumes and len(command.finished(folder)) == kept:
            furthest = folder
    record_property("longest", longest)
    print(f"\n{name}: {pressed} times Ctrl-C; ended within {longest:.2f} s; {kept} things finished")
    assert pressed, "no moment fell into the command"
    if command.resumes:
        assert interrupted(words, furthest, None).code == 0
        assert command.finished(furthest) == command.finished(tmp_path / "whole")


def test_ctrl_c_waits_for_an_import_to_finish(tmp_path, monkeypatch):
    """Where an import of torch is cut short, the process may be ended by a signal."""
    lines = [
        "import os, signal, time",
        "os.kill(os.getpid(), signal.SIGINT)",
        "time.sleep(0.1)",
        "finished, wait = True, lambda: time.sleep(5)",
    ]
    (tmp_path / "interrupted_module.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    handlers = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGALRM)]
    signal.signal(signal.SIGINT, Interrupts())
    try:
        with pytest.raises(KeyboardInterrupt):
            importlib.import_module("interrupted_module").wait()
        assert sys.modules["interrupted_module"].finished
        assert was_interrupted()
    finally:
        for kind, handler in zip((signal.SIGINT, signal.SIGALRM), handlers, strict=True):
            signal.signal(kind, handler)


def test_python_m_hawk_is_the_command(tmp_path):
    out, _ = start("--version", cwd=tmp_path).communicate(timeout=60)
    assert out.startswith("hawk ")
