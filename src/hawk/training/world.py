"""The processes that torchrun started, or this one alone: who it is, and what it does together with the others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from hawk.errors import HawkError

PATIENCE = timedelta(days=2)
"""How long one process waits for the others, who may still have grids to draw."""


@dataclass(frozen=True)
class World:
    """`size` processes, of which this one is number `rank`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str) -> World:
        """Meet the processes that torchrun started (by gloo; by NCCL on GPUs, each process on its own)."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not dist.is_initialized():
            dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process writes files and draws progress bars."""
        return self.rank == 0

    def own(self, batch: int) -> slice:
        """This process's part of a global batch; all parts are of one size, so that the mean of means is the mean."""
        if batch % self.size:
            raise HawkError(f"a batch of {batch} does not split among {self.size} processes: choose a multiple of them")
        part = batch // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over the processes, in place."""
        return self.total(tensor) if self.size == 1 else self.total(tensor).div_(self.size)

    def leave(self) -> None:
        """Part from the others."""
        if self.size > 1:
            dist.destroy_process_group()
