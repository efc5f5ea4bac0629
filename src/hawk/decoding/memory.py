"""Out of memory: which errors mean it, and the one line that says what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hawk.errors import CallersFunction, HawkError, one_line

SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What a `RuntimeError` of PyTorch says where memory ends; on a CPU no class of its own tells it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a GPU's or the machine's memory is too small."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextmanager
def refused_where_memory_ends(lower: str, told: CallersFunction | None = None) -> Iterator[None]:
    """Turn an out-of-memory error into a `HawkError` of one line that ends with what to `lower`.

    An error that the caller's function `told` raised in the body stays as it is.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or (told is not None and error is told.error):
            raise
        on_gpu = isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error) or "CUBLAS" in str(error)
        whose, reason = "GPU" if on_gpu else "machine", one_line(error) or type(error).__name__
        raise HawkError(f"the {whose}'s memory is too small ({reason}): {lower}") from error
