"""The processes that torchrun started form their group, also where its store has the addresses of dead ones."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from fixtures import killed_together
from hawk.errors import HawkError
from hawk.training import forming
from hawk.training.forming import agreed_name, form_group

SOON = timedelta(seconds=20)


def names(store: dist.Store, size: int, late: int | None = None) -> set[str]:
    """The names that the ranks of one start agree on; one of them may come after the others have begun to wait."""

    def name(rank: int) -> str:
        if rank == late:
            time.sleep(0.1)
        return agreed_name(store, rank, size, SOON)

    with ThreadPoolExecutor(size) as pool:
        return set(pool.map(name, range(size)))


@pytest.mark.parametrize("late", [0, 1, 2])
@pytest.mark.parametrize("came", [(), (0,), (1,), (1, 2), (0, 1)], ids=str)
def test_all_ranks_of_a_start_agree_on_a_new_name(came: tuple[int, ...], late: int) -> None:
    """Earlier starts in the same store: a whole one, and one that ended when only some ranks had come."""
    store = dist.HashStore()
    (first,) = names(store, 3)
    with ThreadPoolExecutor(3) as pool:
        ended = [pool.submit(agreed_name, store, rank, 3, timedelta(seconds=0.1)) for rank in came]
    assert all(isinstance(future.exception(), TimeoutError) for future in ended)
    (second,) = names(store, 3, late)
    assert second != first


def test_a_group_that_does_not_form_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forming, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 1, 2)]))
    with pytest.raises(HawkError, match=r"did not form a group \(not all of them came in time\): see that every one"):
        form_group("gloo", SOON, forming=timedelta(seconds=0.1))
    assert not dist.is_initialized()


@pytest.mark.proofs
def test_each_restart_after_a_kill_forms_its_group(tmp_path: Path) -> None:
    """Three restarts, in which one rank or the other comes late; none may be lost to a group that does not form."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "3"]
    done = subprocess.run(
        [sys.executable, *launch, killed_together.__file__, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in tmp_path.iterdir()} == {f"{start}-{rank}" for start in range(4) for rank in range(2)}
