"""The machine at hand: its name, and a clock that a GPU does not deceive."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def machine_name(device: torch.device, dtype: torch.dtype) -> str:
    """What the cost of a step depends on beside the model: processor, threads, dtype."""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{processor(device)}{threads}, {str(dtype).removeprefix('torch.')}"


def processor(device: torch.device) -> str:
    """The device's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


CPU_INFO = Path("/proc/cpuinfo")


def cpu_model(path: Path = CPU_INFO) -> str:
    """The CPU's name where the system tells it."""
    return cpu_fact("model name", path) or platform.processor() or platform.machine()


def made_by_intel(path: Path = CPU_INFO) -> bool:
    """Whether the CPU says that Intel made it."""
    return "intel" in (cpu_fact("vendor_id", path) or platform.processor()).lower()


def cpu_fact(name: str, path: Path) -> str | None:
    """What Linux tells of the CPU under that name; None where it does not."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(name):
                return line.partition(":")[2].strip()
    return None


def synchronize(device: torch.device) -> None:
    """Wait for a GPU's queue, so that the clock sees all of its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of one call, a GPU's queue waited for before and after it."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started
