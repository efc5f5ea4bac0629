"""How the processes that torchrun started form their group, also after a restart.

PyTorch's torchrun keeps one store for all its restarts, so the store still has the addresses of dead processes. A
process that reads such an address either cannot connect, or waits for a connection that never comes. Here the
processes of one start first agree on a name that no earlier start had, and exchange their addresses under this name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store, _set_pg_timeout
from torch.distributed.rendezvous import rendezvous

from hawk.errors import HawkError, one_line

FORMING = timedelta(minutes=5)
"""How long the processes of one start wait for each other until all have met."""
TURN = 0.05
"""Seconds between two looks into the store."""


def form_group(backend: str, patience: timedelta, forming: timedelta = FORMING) -> None:
    """Form the default group of the processes that torchrun started; their operations then wait for `patience`.

    Raises `HawkError` where the processes have not met within `forming`. torchrun then starts them again.
    """
    try:
        shared, rank, size = next(rendezvous("env://", timeout=forming))
        name = agreed_name(shared, rank, size, forming)
        dist.init_process_group(backend, store=PrefixStore(name, shared), rank=rank, world_size=size, timeout=forming)
        dist.barrier()  # NCCL connects in the first operation
        _set_pg_timeout(patience)
    except (RuntimeError, TimeoutError) as error:
        raise HawkError(
            f"the processes of this run did not form a group ({one_line(error)}): see that every one of them runs and "
            "reaches MASTER_ADDR, then give the same command again, or let torchrun do so (--max-restarts 3)"
        ) from error


def agreed_name(shared: Store, rank: int, size: int, forming: timedelta) -> str:
    """A name that all processes of this start get, and no others, whatever earlier starts left in the store.

    Every process calls this function, and all return once all have the name. Rank 0 makes the name. Each other process
    asks with a random key and gets its answer under that key, so it takes no answer that was for an earlier process.
    Rank 0 may answer a process that is dead; it answers again when the living one asks. All wait in Python, where
    SIGTERM is heeded.
    Raises `TimeoutError` where they have not met within `forming`.
    """
    store, mine = PrefixStore("hawk", shared), uuid4().hex
    answered: dict[int, str] = {}

    def answer() -> bool:
        """Tell the name to each process that asks; whether all have it."""
        for other in range(1, size):
            if store.check([f"asks/{other}"]):
                key = store.get(f"asks/{other}").decode()
                if answered.get(other) != key:
                    store.set(f"name/{key}", mine)
                    answered[other] = key
        return all_have(mine)

    def all_have(name: str) -> bool:
        return store.add(f"have/{name}", 0) == size - 1

    deadline = time.monotonic() + forming.total_seconds()
    if rank == 0:
        wait_until(answer, deadline)
        return mine
    store.set(f"asks/{rank}", mine)
    wait_until(lambda: store.check([f"name/{mine}"]), deadline)
    name = store.get(f"name/{mine}").decode()
    store.add(f"have/{name}", 1)
    wait_until(lambda: all_have(name), deadline)
    return name


def wait_until(true: Callable[[], bool], deadline: float) -> None:
    """Wait until a condition is true. Raises `TimeoutError` at the deadline, in seconds of `time.monotonic`."""
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError("not all of them came in time")
        time.sleep(TURN)
