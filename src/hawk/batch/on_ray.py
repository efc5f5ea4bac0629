"""Drawing on a Ray cluster: Ray Data hands the blocks to actors, each of which has one model and one engine.

Ray restarts an actor that died, on another machine if need be, and gives its blocks to the actors that are left. A
worker writes the shard and the record of a block itself, and what comes back is the record alone, so a node that dies
loses only what it was drawing. The records are the job's only checkpoint: those of a run with Ray and of one without
are the same, and Ray is given only the blocks that lack one.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch

from hawk import __version__
from hawk.batch.folder import Record
from hawk.batch.job import Block, Settings
from hawk.batch.worker import Worker
from hawk.decoding.arguments import shown
from hawk.errors import HawkError, install, one_line, os_line
from hawk.processes import without_stderr

PATIENCE = 5.0
"""Seconds that a machine has to answer at the cluster's address."""
LAST_PORT = 65535
"""The largest port number."""
FIRST_NODE = 20.0
"""Seconds that a cluster's first node with a CPU or a GPU has to join."""
LOCAL = "local"
"""The address of a cluster that is started on this machine for one command."""


def check_installed() -> None:
    """Raise `HawkError` unless Ray is installed; to import it would take seconds."""
    if find_spec("ray") is None:
        raise HawkError(f"--ray needs Ray: {install('ray')}")


def ray_package() -> Any:
    """Ray with its data library, which keep their progress bars, logs and warnings off the terminal."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it is read when Ray is loaded
    with without_stderr():  # which says so
        import ray
        import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.enable_operator_progress_bars = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"ray\.")
    return ray


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to, and its CPUs and GPUs."""

    address: str
    cpus: int
    gpus: int

    @property
    def device(self) -> str:
        """The kind of device that workers draw on unless the command says otherwise."""
        return "cuda" if self.gpus else "cpu"

    def room(self, needs: dict[str, int]) -> int:
        """How many processes with such needs fit: one for each GPU, or for each `num_cpus` CPUs without GPUs.

        Raises `HawkError` where the cluster has no room for a single one.
        """
        if needs["num_gpus"] > self.gpus:
            raise HawkError(f"the cluster at {self.address} has no GPU: give --device cpu")
        room = self.gpus if needs["num_gpus"] else self.cpus // needs["num_cpus"]
        if not room or needs["num_cpus"] > self.cpus:
            raise HawkError(f"the cluster at {self.address} has {self.cpus} CPUs, and a worker needs {needs}")
        return room


@contextmanager
def cluster_at(address: str) -> Iterator[Cluster]:
    """Connect to the Ray cluster at an address, as HOST:PORT, "auto" or "local"; "local" ends with the body.

    Raises `HawkError` where no cluster can be reached.
    """
    check_installed()
    check_reachable(address)
    ray = ray_package()
    own = {"num_cpus": os.cpu_count(), "include_dashboard": False} if address == LOCAL else {}
    try:
        with without_stderr():  # Ray's core writes its warnings there itself
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise HawkError(
            f"no Ray cluster can be reached at {address} ({one_line(error)}): start one with ray start; a cluster that "
            "asks for a token needs RAY_AUTH_MODE=token here, too"
        ) from error
    try:
        found = first_resources(ray.cluster_resources)
        yield Cluster(address, int(found.get("CPU", 0)), int(found.get("GPU", 0)))
    finally:
        with without_stderr():
            ray.shutdown()


def first_resources(
    found: Callable[[], Mapping[str, float]], patience: float = FIRST_NODE, rest: float = 0.2
) -> Mapping[str, float]:
    """The cluster's resources, once a node with a CPU or a GPU has joined; what there is after `patience` seconds.

    A head alone may have neither, and the nodes of a cluster that has just been started join seconds later.
    """
    ends = time.monotonic() + patience
    while not (there := found()).get("CPU") and not there.get("GPU") and time.monotonic() < ends:
        time.sleep(rest)
    return there


def device_on_ray(name: str, found: Callable[[], Cluster]) -> torch.device:
    """The kind of device that all workers draw on; "auto" is a GPU where the cluster `found` has one.

    Raises `HawkError` for a single GPU by number, and for any other device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise HawkError(f"--ray draws on auto, cpu or cuda, not {name!r}: each worker has a GPU of its own")
    return torch.device(found().device if name == "auto" else name)


def check_reachable(address: str) -> None:
    """Raise `HawkError` where nothing answers at an address HOST:PORT; Ray itself would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address in (LOCAL, "auto"):
        return
    if not colon or not port.isdecimal() or len(port) > len(str(LAST_PORT)) or int(port) > LAST_PORT:
        raise HawkError(f"--ray takes HOST:PORT, auto or local, not {shown(address)}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except OSError as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise HawkError(f"no Ray cluster can be reached at {address} ({reason}): start one with ray start") from error


def resources(settings: Settings) -> dict[str, int]:
    """What of a machine a worker takes."""
    return {"num_cpus": settings.threads or 1, "num_gpus": int(settings.device.startswith("cuda"))}


def drawn_on(
    cluster: Cluster, settings: Settings, blocks: Iterable[Block], wanted: int | None
) -> Generator[Record, None, None]:
    """Draw blocks on a cluster by so many workers; the records come in the order in which blocks end.

    Raises:
        HawkError: the cluster has no room for a worker, or a worker refuses to draw: its disk is full, or its model is
            not that of the job.
    """
    ray = ray_package()
    needs = resources(settings)
    room = cluster.room(needs)
    workers = min(wanted or room, room)
    settings = replace(settings, threads=settings.threads or (1 if settings.device == "cpu" else None))
    items = [{"block": block.to_json()} for block in blocks]
    # One worker is enough to go on: those of a machine that is gone come back where there is room.
    pool = ray.data.ActorPoolStrategy(
        min_size=1, initial_size=workers, max_size=workers, max_tasks_in_flight_per_actor=2
    )
    records = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Drawer,
        fn_constructor_args=(asdict(settings), __version__),
        batch_size=1,
        compute=pool,
        **needs,
    )
    try:
        for answer in records.iter_rows():
            if answer["refusal"]:
                raise HawkError(answer["refusal"])
            yield Record.from_json(json.loads(answer["record"]))
    except ray.exceptions.RayError as error:
        raise HawkError(f"the Ray cluster failed ({one_line(error)}): run the same command again to go on") from error


class Drawer:
    """An actor: it makes a worker, and answers each block with its record or with the reason to end the job."""

    def __init__(self, settings: dict[str, Any], version: str) -> None:
        self.worker: Worker | None = None
        self.refusal = ""
        if version != __version__:
            self.refusal = f"a worker has Hawk {__version__}, and this machine {version}: install one version on all"
            return
        try:
            self.worker = Worker(Settings(**settings))
        except (HawkError, OSError) as error:
            self.refusal = refused(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        if self.worker is None:
            return {"record": [""], "refusal": [self.refusal]}
        try:
            record = self.worker.draw(Block.from_json(str(batch["block"][0])))
        except (HawkError, OSError) as error:
            return {"record": [""], "refusal": [refused(error)]}
        return {"record": [record.to_json()], "refusal": [""]}


def refused(error: HawkError | OSError) -> str:
    """Why a worker ends the job, with the name of its machine."""
    return f"{os_line(error) if isinstance(error, OSError) else error} (a worker on {socket.gethostname()})"
