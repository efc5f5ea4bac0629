"""What two processes of a training run do together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
from hawk.errors import HawkError
from hawk.training.world import World
world = World.join("cpu")
try:
    world.check_shared(Path(sys.argv[1]), "cpu")
    print("shared")
except HawkError as error:
    print(error)
world.leave()
"""


@pytest.mark.parametrize(
    ("folders", "answer"),
    [
        (("one", "one"), "shared"),
        (("one", "other"), "1 of 2 processes do not see the folder "),
    ],
)
def test_a_folder_that_not_all_processes_see_is_told_to_all(tmp_path: Path, folders: tuple[str, str], answer: str):
    for name in folders:
        (tmp_path / name).mkdir(exist_ok=True)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    meeting = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    run = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / name)],
            env={**meeting, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, name in enumerate(folders)
    ]
    said = [process.communicate(timeout=120)[0] for process in run]
    assert all(text.startswith(answer) for text in said), said
    assert not [*tmp_path.glob("*/.shared-*")]
