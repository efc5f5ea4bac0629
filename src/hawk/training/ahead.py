"""Batches that processes make in advance, while the model is fitted on those before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

from hawk.training.stopping import ignore_sigterm

Batch = TypeVar("Batch")


class Made(Dataset[Batch], Generic[Batch]):
    """The batches by the numbers of their steps."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Batch:
        return self.make(step)


class Ahead(Generic[Batch]):
    """The batch of each of `steps` steps: `make(step)`, which must depend on its argument alone.

    `workers` processes make batches in advance and end with this object; with 0 each is made when it is asked for.
    """

    def __init__(self, make: Callable[[int], Batch], steps: int, workers: int = 0) -> None:
        self.make, self.steps, self.workers = make, steps, workers
        self.made: Iterator[Batch] | None = None

    def at(self, step: int) -> Batch:
        """The batch of a step. The first call may ask for any step; later calls must ask for the steps that follow."""
        if not self.workers:
            return self.make(step)
        if self.made is None:
            order = range(step, self.steps)
            # `Made`, not this object: in a circle of references the processes would end at some later time only.
            loader = DataLoader(
                Made(self.make),
                batch_size=None,
                sampler=order,
                num_workers=self.workers,
                worker_init_fn=ignore_sigterm,  # the last step before the end needs its batch
            )
            self.made = iter(loader)
        return next(self.made)
