"""The training loop of everything in Hawk: seeded per step, resumable after a kill, on a CPU or GPUs (torchrun)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hawk.errors import HawkError
from hawk.files import read_json, replacing, write_json
from hawk.training.stopping import saved_first, stop_asked
from hawk.training.world import World


@dataclass(frozen=True)
class FitConfig:
    """How a module is fitted: sizes, optimiser, and how often to save. One step is one optimiser update.

    `batch_size` counts the images of a step in all processes together; each process takes an equal part (`World.own`).
    With `muon`, Muon fits the matrices inside a module's `layers` and AdamW fits the other parameters. Both use the
    learning rate `lr`: Muon's updates are scaled to the size of AdamW's. `ema` is the decay of the averaged weights.
    `save_every`, `keep_every` and `evaluate_every` count steps; `keep_every` 0 keeps only the newest weights.
    With `minutes`, the run also ends when so much time has passed, its earlier parts included, and the learning rate
    falls with time where that is faster than with steps. Two such runs do not have the same weights.
    """

    steps: int
    batch_size: int
    minutes: float = math.inf
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
"""(module, step, generator) -> named scalars, one of them called `loss`.

Each scalar is a mean over this process's part of the batch. The generator has the same seed in all processes, so that
they agree on the batch. The scalars must depend on the three arguments alone, so that a resumed run repeats them.
"""


@dataclass(frozen=True)
class Fitted:
    """The result of a fit: the averaged weights, the last value of each scalar, and the seconds that it took."""

    averaged: dict[str, Tensor]
    scalars: dict[str, float]
    seconds: float


def learning_rate(step: int, config: FitConfig, seconds: float = 0.0) -> float:
    """Linear warm-up, then cosine decay to `final_lr_fraction` of the peak; the run has taken `seconds` so far."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = max((step - config.warmup) / max(1, config.steps - config.warmup), seconds / 60 / config.minutes)
    floor = config.final_lr_fraction
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """The random generator of a step in the process `rank`; a resumed run draws what the killed run would have drawn.

    The generator of rank 0 is the one that all processes share.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % (1 << 63)
    return torch.Generator().manual_seed(mixed)


@saved_first()
def fit(
    module: nn.Module,
    batch_loss: BatchLoss,
    config: FitConfig,
    out: Path,
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
) -> Fitted:
    """Minimise `batch_loss` in `config.steps` updates; at the end `module` holds the averaged weights, in eval mode.

    The state is saved in `out/state.pt`, so that the same call after a kill resumes the run and ends with the same
    weights. Under torchrun every process calls this: gradients are averaged, rank 0 writes. `evaluate(module, step)`
    is called with the averaged weights every `evaluate_every` steps and at the end.

    Raises:
        HawkError: `out` holds a run with other settings.
        TerminatedError: SIGTERM came to one of the processes (`heeding_sigterm`). All of them have ended the same step,
            rank 0 has saved the state, and they have left their process group.
    """
    from torch.utils.tensorboard import SummaryWriter

    world = World.join(config.device)
    module.to(config.device).train()
    optimizers = optimizers_of(module, config)
    averaged = {name: value.detach().clone().float() for name, value in module.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    done = _resume(out / "state.pt", module, optimizers, averaged, config)
    runner: nn.Module = torch.compile(module) if config.compile else module  # type: ignore[assignment]
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=done.steps) if world.first else None
    scalars = done.scalars
    started = time.monotonic() - done.seconds
    remaining = range(done.steps, config.steps if done.seconds < 60 * config.minutes else done.steps)

    def save(steps: int) -> None:
        progress = Progress(steps, time.monotonic() - started, scalars)
        save_atomically(_state(module, optimizers, averaged, progress, config), out / "state.pt")

    bar = tqdm(remaining, initial=done.steps, total=config.steps, disable=not world.first, desc=out.name)
    for step in bar:
        passed, stops = world.agreed((time.monotonic() - started, float(stop_asked())), config.device)
        if stops:  # asked of one process at least; all of them know it at the same step
            if world.first:
                save(step)
            world.stop_together(True, config.device)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(step, config, passed)
        own = step_generator(config.seed, step, world.rank)
        torch.manual_seed(own.initial_seed())  # dropout masks follow from the step as well
        with torch.autocast(config.device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            losses = batch_loss(runner, step, step_generator(config.seed, step))
        module.zero_grad(set_to_none=True)
        losses["loss"].backward()
        for parameter in module.parameters():
            if parameter.grad is not None:
                world.mean(parameter.grad)
        norm = nn.utils.clip_grad_norm_(module.parameters(), config.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        _update_average(averaged, module, min(config.ema, (step + 1) / (step + 10)))
        steps = step + 1
        last = steps == config.steps or passed >= 60 * config.minutes
        if step % 20 == 0 or last:
            means = world.mean(torch.stack([value.detach().float() for value in losses.values()]))
            scalars = dict(zip(losses, means.tolist(), strict=True)) | {"grad_norm": float(norm)}
            bar.set_postfix({name: f"{value:.3f}" for name, value in scalars.items()})
            if writer:
                for name, value in scalars.items():
                    writer.add_scalar(f"train/{name}", value, step)
        if evaluate and writer and (steps % config.evaluate_every == 0 or last):
            measured = _evaluate(module, averaged, evaluate, steps)
            scalars |= measured
            for name, value in measured.items():
                writer.add_scalar(f"held-out/{name}", value, steps)
            line = {"step": steps, **scalars}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if world.first and (steps % config.save_every == 0 or last):
            save(steps)
            if config.keep_every and steps % config.keep_every == 0:
                save_atomically({"averaged": averaged, "step": steps}, out / f"averaged-{steps:07d}.pt")
        if last:
            break
    if writer:
        writer.close()
    module.load_state_dict(averaged)
    module.eval()
    return Fitted(averaged, scalars, time.monotonic() - started)


def weighted_means(measured: list[dict[str, Tensor]], counts: list[int]) -> dict[str, float]:
    """The mean of each scalar over several batches; batch i counts `counts[i]` times."""
    return {
        name: sum(float(scalars[name]) * n for scalars, n in zip(measured, counts, strict=True)) / sum(counts)
        for name in measured[0]
    }


def optimizers_of(module: nn.Module, config: FitConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters (vectors without decay); with `config.muon`, Muon for the matrices inside `layers`."""
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
    """`torch.save` through a temporary file, so that a kill never leaves half a file. Raises OSError (disk full)."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch fails to close its archive after the write that failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def keep_settings(run: Path, name: str, settings: dict[str, Any], world: World) -> None:
    """Write settings to the file `name` of a run folder, beside the state. Every process calls this, rank 0 writes.

    Raises `HawkError` if the folder holds the state of a run with other settings.
    """
    path = run / name
    if (run / "state.pt").is_file() and path.is_file():
        kept = read_json(path)
        for key, value in settings.items():
            if _as_list(kept.get(key)) != _as_list(value):
                raise HawkError(f"{path} says {key}={kept.get(key)}, not {value}: use it or another folder")
    elif world.first:
        run.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)


def load_averaged(path: Path) -> dict[str, Tensor]:
    """Averaged weights from a run's `state.pt` or `averaged-*.pt`; only tensors are read, no pickled code is run."""
    if not path.is_file():
        raise HawkError(f"no training state at {path}: give the file that `hawk train` wrote")
    return torch.load(path, map_location="cpu", weights_only=True)["averaged"]


@dataclass(frozen=True)
class Progress:
    """How far a run has come: the steps done, the seconds they took, and the last value of each scalar."""

    steps: int = 0
    seconds: float = 0.0
    scalars: dict[str, float] = field(default_factory=dict)


def _state(
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    averaged: dict[str, Tensor],
    progress: Progress,
    config: FitConfig,
) -> dict[str, Any]:
    return {
        "model": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "averaged": averaged,
        "step": progress.steps,
        "seconds": progress.seconds,
        "scalars": progress.scalars,
        "config": asdict(config),
    }


def _resume(
    path: Path,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    averaged: dict[str, Tensor],
    config: FitConfig,
) -> Progress:
    """Load the state of a killed run, if there is one, into the arguments; return how far that run had come."""
    if not path.is_file():
        return Progress()
    state = torch.load(path, map_location=config.device, weights_only=True)
    may_change = ("minutes", "save_every", "keep_every", "evaluate_every", "compile", "device")
    for name, value in asdict(config).items():
        saved = state["config"].get(name)
        if name not in may_change and _as_list(saved) != _as_list(value):
            raise HawkError(f"{path} was written with {name}={saved}, not {value}: use it or another folder")
    try:
        module.load_state_dict(state["model"])
    except RuntimeError as error:
        raise HawkError(f"{path} holds a module of another shape: use another folder") from error
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    for name, value in state["averaged"].items():
        averaged[name].copy_(value)
    return Progress(int(state["step"]), float(state["seconds"]), dict(state.get("scalars", {})))


def _as_list(value: Any) -> list[Any]:
    """The value as a list: a state may hold a tuple of the config as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _update_average(averaged: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    with torch.no_grad():
        values = [value.float() for value in module.state_dict().values()]
        torch._foreach_lerp_(list(averaged.values()), values, 1 - decay)


def _evaluate(
    module: nn.Module,
    averaged: dict[str, Tensor],
    evaluate: Callable[[nn.Module, int], dict[str, float]],
    step: int,
) -> dict[str, float]:
    """Call `evaluate` on the module with the averaged weights, then put its own weights back."""
    live = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(averaged)
    module.eval()
    with torch.no_grad():
        measured = evaluate(module, step)
    module.load_state_dict(live)
    module.train()
    return measured
