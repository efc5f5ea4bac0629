"""Ctrl-C ends every command with exit code 130, one line and no process left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

COMMANDS = {
    "an import": ("--help",),
    "verify": ("verify",),
    "generate": ("generate", "a red apple", "-n", "50", "-o", "out/"),
    "bench": ("bench", "--suite", "peers", "--prompts", "8"),
}


def start(*words: str, cwd, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "hawk", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HAWK_CACHE": str(cwd), **environment}
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def left_behind(session: int) -> list[str]:
    """The processes of a session that still run."""
    listed = subprocess.run(["ps", "-o", "args=", "-s", str(session)], capture_output=True, text=True, check=False)
    return [line for line in listed.stdout.splitlines() if "defunct" not in line]


@pytest.mark.parametrize(("name", "after"), [("an import", 0.15), ("verify", 6.0), ("generate", 4.0)])
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


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "an import"])
@pytest.mark.parametrize("moment", range(4))
def test_ctrl_c_at_any_moment(tmp_path, name, moment):
    test_ctrl_c_ends_a_command(tmp_path, name, 0.3 + 3.1 * moment)


def test_python_m_hawk_is_the_command(tmp_path):
    out, _ = start("--version", cwd=tmp_path).communicate(timeout=60)
    assert out.startswith("hawk ")
