"""The one training loop: seeded by step, resumable after a kill, on CPU, one GPU or several under torchrun."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from hawk.errors import HawkError
from hawk.files import replacing


@dataclass(frozen=True)
class FitConfig:
    """How to fit: sizes, optimiser, and how often to save. One `step` is one optimiser update.

    `muon`: the matrices inside a module's `layers` are fitted by Muon, at AdamW's learning rate (its update matched in
    size), the other parameters by AdamW.
    """

    steps: int
    batch_size: int
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int = 200
    final_lr_fraction: float = 0.02
    grad_clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    dtype: str = "bfloat16"
    device: str = "cpu"
    compile: bool = False
    muon: bool = False
    save_every: int = 200
    keep_every: int = 0
    evaluate_every: int = 1000


BatchLoss = Callable[[nn.Module, int, torch.Generator], dict[str, Tensor]]
"""(module, step, generator) -> named scalars, `loss` among them; depends on nothing else, so a resume repeats it."""


@dataclass(frozen=True)
class Fitted:
    """What a finished fit leaves: the averaged weights, and the last value of each scalar."""

    averaged: dict[str, Tensor]
    scalars: dict[str, float]
    seconds: float


def learning_rate(step: int, config: FitConfig) -> float:
    """Linear warm-up, then cosine decay to `final_lr_fraction` of the peak."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    floor = config.final_lr_fraction
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """All randomness of a step follows from (seed, step, rank): a resumed run draws what the killed one would have."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % (1 << 63)
    return torch.Generator().manual_seed(mixed)


def fit(
    module: nn.Module,
    batch_loss: BatchLoss,
    config: FitConfig,
    out: Path,
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
) -> Fitted:
    """Minimise `batch_loss` for `config.steps` updates; `out/state.pt` lets a killed run go on with the same curve.

    Under torchrun every rank calls this; gradients are averaged, rank 0 writes. `evaluate(averaged module, step)` is
    called every `evaluate_every` steps and at the end. Raises `HawkError` if `out` holds a run of other settings.
    """
    from torch.utils.tensorboard import SummaryWriter

    rank, world = _join_group()
    module.to(config.device).train()
    optimizers = optimizers_of(module, config)
    averaged = {name: value.detach().clone().float() for name, value in module.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    first, elapsed = _resume(out / "state.pt", module, optimizers, averaged, config)
    runner: nn.Module = torch.compile(module) if config.compile else module  # type: ignore[assignment]
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=first) if rank == 0 else None
    scalars: dict[str, float] = {}
    started = time.monotonic() - elapsed
    bar = tqdm(range(first, config.steps), initial=first, total=config.steps, disable=rank != 0, desc=out.name)
    for step in bar:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(step, config)
        generator = step_generator(config.seed, step, rank)
        torch.manual_seed(generator.initial_seed())  # dropout masks, too, follow from the step
        with torch.autocast(config.device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            losses = batch_loss(runner, step, generator)
        module.zero_grad(set_to_none=True)
        losses["loss"].backward()
        _average_gradients(module, world)
        norm = nn.utils.clip_grad_norm_(module.parameters(), config.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        _update_average(averaged, module, min(config.ema, (step + 1) / (step + 10)))
        if writer and (step % 20 == 0 or step == config.steps - 1):
            scalars = {name: float(value.detach()) for name, value in losses.items()} | {"grad_norm": float(norm)}
            bar.set_postfix({name: f"{value:.3f}" for name, value in scalars.items()})
            for name, value in scalars.items():
                writer.add_scalar(f"train/{name}", value, step)
        done = step + 1
        if rank == 0 and (done % config.save_every == 0 or done == config.steps):
            state = _state(module, optimizers, averaged, done, time.monotonic() - started, config)
            save_atomically(state, out / "state.pt")
            if config.keep_every and done % config.keep_every == 0:
                save_atomically({"averaged": averaged, "step": done}, out / f"averaged-{done:07d}.pt")
        if evaluate and writer and (done % config.evaluate_every == 0 or done == config.steps):
            measured = _evaluate(module, averaged, evaluate, done)
            scalars |= measured
            for name, value in measured.items():
                writer.add_scalar(f"held-out/{name}", value, done)
            line = {"step": done, **scalars}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
    if writer:
        writer.close()
    return Fitted(averaged, scalars, time.monotonic() - started)


def optimizers_of(module: nn.Module, config: FitConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters (no decay for vectors), or Muon for the matrices of `layers` and AdamW for the rest."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    inner = {name for name, p in trained if config.muon and p.ndim == 2 and "layers." in name}
    groups = [
        {"params": [p for n, p in trained if p.ndim >= 2 and n not in inner], "weight_decay": config.weight_decay},
        {"params": [p for _, p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    if not inner:
        return [adamw]
    if not hasattr(torch.optim, "Muon"):
        raise HawkError(f"Muon needs PyTorch 2.9 or newer, this is {torch.__version__}: train without --muon")
    matrices = [p for name, p in trained if name in inner]
    muon = torch.optim.Muon(matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw]


def save_atomically(value: Any, path: Path) -> None:
    """`torch.save` through a temporary file: a kill leaves the old file or the new one, never half of one."""
    with replacing(path) as temporary:
        torch.save(value, temporary)


def load_averaged(path: Path) -> dict[str, Tensor]:
    """Averaged weights from a run's `state.pt` or `averaged-*.pt` (tensors only; no pickled code is run)."""
    if not path.is_file():
        raise HawkError(f"no training state at {path}: give the file that `hawk train` wrote")
    return torch.load(path, map_location="cpu", weights_only=True)["averaged"]


def _state(
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    averaged: dict[str, Tensor],
    step: int,
    seconds: float,
    config: FitConfig,
) -> dict[str, Any]:
    return {
        "model": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "averaged": averaged,
        "step": step,
        "seconds": seconds,
        "config": asdict(config),
    }


def _resume(
    path: Path,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    averaged: dict[str, Tensor],
    config: FitConfig,
) -> tuple[int, float]:
    """Load a killed run into place; (step to do next, seconds already spent)."""
    if not path.is_file():
        return 0, 0.0
    state = torch.load(path, map_location=config.device, weights_only=True)
    free = ("save_every", "keep_every", "evaluate_every", "compile", "device")
    for name, value in asdict(config).items():
        saved = state["config"].get(name)
        if name not in free and saved != value and list(_listed(saved)) != list(_listed(value)):
            raise HawkError(f"{path} was written with {name}={saved}, not {value}: use it or another folder")
    module.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    for name, value in state["averaged"].items():
        averaged[name].copy_(value)
    return int(state["step"]), float(state["seconds"])


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _update_average(averaged: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for name, value in module.state_dict().items():
            averaged[name].lerp_(value.float(), 1 - decay)


def _evaluate(
    module: nn.Module,
    averaged: dict[str, Tensor],
    evaluate: Callable[[nn.Module, int], dict[str, float]],
    step: int,
) -> dict[str, float]:
    """Run `evaluate` with the averaged weights in place, then put the live ones back."""
    live = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(averaged)
    module.eval()
    with torch.no_grad():
        measured = evaluate(module, step)
    module.load_state_dict(live)
    module.train()
    return measured


def _join_group() -> tuple[int, int]:
    """(rank, world size); joins the process group when torchrun started us."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size()


def _average_gradients(module: nn.Module, world: int) -> None:
    if world == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world
