"""A frozen target whose layers are spread over the processes of torchrun (FSDP2), where one device cannot hold them.

Each process holds an equal part of each layer. A forward gathers one layer at a time, and drops it when it has run: so
every process must take part in every forward of every other one. Processes do not have the same number of forwards: a
process that has none to make gathers the layers for those of the others (`Spread.rest`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from hawk.training.world import World


class SpreadLayer(Protocol):
    """What `fully_shard` makes of a layer: it can be gathered, and dropped again but for this process's part."""

    def unshard(self) -> Any: ...

    def reshard(self) -> None: ...


@dataclass(frozen=True)
class Spread:
    """Layers that are spread over the processes of `world`, with their parts on `device`."""

    layers: tuple[SpreadLayer, ...]
    world: World
    device: torch.device

    @classmethod
    def over(cls, layers: nn.ModuleList, world: World, device: torch.device) -> Spread:
        """Spread frozen layers, in place, one after another: a device holds its parts and one whole layer at a time.

        Every process calls this function with the same layers; there are two processes at least.
        """
        # not every build of PyTorch has these, and only spread targets need them
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (world.size,))
        # A layer without parent modules would stay gathered after its first forward, unless it is told not to.
        parts = tuple(fully_shard(layer, mesh=mesh, reshard_after_forward=True) for layer in layers)
        spread = cls(parts, world, device)
        # FSDP makes a layer's buffers once. If decoding made them, in inference mode, no other forward could fill them.
        spread._gather()
        layers[0].register_forward_pre_hook(spread._announce, prepend=True)
        return spread

    def rest(self) -> None:
        """Take part in the forwards of the other processes until none of them makes any more.

        Every process calls this function when it is done; all of them return together.
        """
        while self._forwards(mine=False):
            self._gather()

    def _gather(self) -> None:
        """Gather the layers one after another, as a forward does."""
        for layer in self.layers:
            layer.unshard()
            layer.reshard()

    def _announce(self, module: nn.Module, arguments: Any) -> None:
        """Tell the processes that rest of a forward that begins here.

        A process that begins a forward at the same time makes the same call.
        """
        self._forwards(mine=True)

    def _forwards(self, mine: bool) -> int:
        """How many processes begin a forward now."""
        begun = self.world.total(torch.tensor(int(mine), device=self.device))
        return 1 if mine else int(begun)


def bytes_held(module: nn.Module) -> int:
    """Bytes of a module's parameters that this process holds."""
    from torch.distributed.tensor import DTensor

    return sum((held.to_local() if isinstance(held, DTensor) else held).nbytes for held in module.parameters())
