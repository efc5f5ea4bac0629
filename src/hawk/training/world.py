"""The processes that torchrun started: this process's rank, its part of a batch, and what they do together."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from hawk.errors import HawkError, TerminatedError, one_line

PATIENCE = timedelta(days=2)
"""How long a process of a group waits for the others, which may still be drawing grids."""


@dataclass(frozen=True)
class World:
    """The `size` processes that train together, of which this one has the number `rank`; by default it is alone."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str) -> World:
        """Join the processes that torchrun started: through NCCL on GPUs (one per process), else through gloo.

        Raises `HawkError` where they do not find each other within minutes.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not dist.is_initialized():
            from hawk.training.forming import form_group  # not every build of PyTorch has what this module imports

            form_group("nccl" if on_gpu else "gloo", PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process writes files and draws progress bars."""
        return self.rank == 0

    def own(self, batch: int) -> slice:
        """This process's part of a batch. All parts have one size, so the mean over processes is the batch's mean.

        Raises `HawkError` if the batch does not split evenly.
        """
        if batch % self.size:
            raise HawkError(f"a batch of {batch} does not split among {self.size} processes: choose a multiple of them")
        part = batch // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def wait(self) -> None:
        """Wait until all processes have reached this call. Raises `HawkError` if one of them is gone."""
        if self.size > 1:
            with named_where_one_is_gone():
                dist.barrier()

    def check_shared(self, folder: Path, device: str | torch.device) -> None:
        """Make `folder`, and raise `HawkError` in all processes unless each of them sees it as rank 0 does.

        A process with a folder of its own would resume at another step than the others, or wait for shards that never
        come.
        """
        if self.size == 1:
            return
        # The mark's name is new: a mark that a killed run left in another folder is no sign of this one.
        name = torch.zeros(16, device=device, dtype=torch.int64)
        if self.first:
            name = torch.tensor([*uuid4().bytes], device=device)
        mark = folder / f".shared-{bytes(self.total(name).tolist()).hex()}"
        if self.first:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        try:
            self.wait()
            blind = int(self.total(torch.tensor(int(not mark.is_file()), device=device)))
        finally:
            if self.first:
                mark.unlink(missing_ok=True)
        if blind:
            raise HawkError(
                f"{blind} of {self.size} processes do not see the folder {folder} of rank 0: name a folder for --out "
                "that all machines share, by its whole path"
            )

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place. Raises `HawkError` if one of them is gone."""
        if self.size > 1:
            with named_where_one_is_gone():
                dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over the processes, in place."""
        return self.total(tensor) if self.size == 1 else self.total(tensor).div_(self.size)

    def agreed(self, values: Sequence[float], device: str | torch.device) -> list[float]:
        """The means of numbers of the host over the processes, which all of them get."""
        return list(values) if self.size == 1 else self.mean(torch.tensor(values, device=device)).tolist()

    def stop_together(self, asked: bool, device: str | torch.device) -> None:
        """Leave the process group and raise `TerminatedError` in all processes, if one of them is asked to stop.

        Every process calls this function at the same point of its work. A process that is done waits for the others:
        torchrun ends them as soon as the first one has ended.
        """
        if self.agreed([float(asked)], device)[0]:
            self.leave()
            raise TerminatedError

    def leave(self) -> None:
        """Wait for the other processes, then leave the process group; do not wait while an exception is under way."""
        if self.size == 1 or not dist.is_initialized():
            return
        # A process that leaves closes its connections. Another process may still be in its last collective operation,
        # and then aborts (SIGABRT) because a connection is gone. After an exception the others may never arrive.
        if sys.exc_info()[0] is None:
            dist.barrier()
        dist.destroy_process_group()


@contextmanager
def named_where_one_is_gone() -> Iterator[None]:
    """Raise `HawkError` where an operation of all processes fails, as it does when one of them was killed."""
    try:
        yield
    except RuntimeError as error:
        raise HawkError(
            f"another process of this run is gone ({one_line(error)}): give the same command again, or let torchrun do "
            "so (--max-restarts 3); it goes on from what is saved"
        ) from error
