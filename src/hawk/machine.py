"""The machine that Hawk runs on: its name, and a clock that waits for the GPU."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hawk import __version__
from hawk.errors import CallersFunction, HawkError, one_line


def machine_facts(device: torch.device, dtype: str) -> dict[str, Any]:
    """What measured figures depend on besides model and settings: device, threads and versions, and the date."""
    return {
        "dtype": dtype,
        "device": device.type,
        "processor": processor(device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "hawk": __version__},
        "date": time.strftime("%Y-%m-%d"),
    }


def machine_name(device: torch.device, dtype: torch.dtype) -> str:
    """Processor, threads and dtype in one string: what the cost of a step depends on besides the model."""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{processor(device)}{threads}, {str(dtype).removeprefix('torch.')}"


def processor(device: torch.device) -> str:
    """The name of the GPU or CPU behind a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"GPU of {cpu_model()}" if device.type == "mps" else cpu_model()


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; Apple GPUs ("mps") do not, and every other device does."""
    return device.type != "mps"


CPU_INFO = Path("/proc/cpuinfo")


def cpu_model(path: Path = CPU_INFO) -> str:
    """The CPU's name; the architecture (such as "x86_64") where the system does not tell the name."""
    return cpu_fact("model name", path) or platform.processor() or platform.machine()


def made_by_intel(path: Path = CPU_INFO) -> bool:
    """Whether the CPU's vendor is Intel."""
    return "intel" in (cpu_fact("vendor_id", path) or platform.processor()).lower()


def cpu_fact(name: str, path: Path) -> str | None:
    """A field of /proc/cpuinfo (`path`), such as "model name"; None if the file or the field is missing."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(name):
                return line.partition(":")[2].strip()
    return None


@contextmanager
def lacking_operations_refused(device: torch.device, told: CallersFunction | None = None) -> Iterator[None]:
    """Turn PyTorch's error for an operation that it lacks on an Apple GPU into a `HawkError` of one line.

    An error that the caller's function `told` raised in the body stays as it is.
    """
    try:
        yield
    except NotImplementedError as error:
        if device.type != "mps" or (told is not None and error is told.error):
            raise
        raise HawkError(
            f"this PyTorch lacks an operation on Apple GPUs ({one_line(error)}): set PYTORCH_ENABLE_MPS_FALLBACK=1, or "
            "choose the device cpu"
        ) from error


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queue, so that a clock read next covers all of its work; no-op on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of one call; a GPU's queue is empty before the call and finished after it."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started
