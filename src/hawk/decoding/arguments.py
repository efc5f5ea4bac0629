"""Checks of numbers, texts, names and paths that callers pass; an error names the argument and shows its value."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from torch import Tensor

from hawk.errors import HawkError

Number: TypeAlias = int | float | np.number | np.ndarray | Tensor
"""A number as callers have it: of Python, of numpy or of torch; an array or a tensor without dimensions is a number."""

MOST_SHOWN = 60
"""Characters of a refused value that an error message shows."""

LARGEST = float(np.finfo(np.float32).max)
"""The largest real number that is taken, about 3.4e38: logits are float32, where a larger number is infinite."""


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """The value of the argument `name` as an `int`; a float must be whole.

    Raises:
        HawkError: the value is no whole number (a boolean and a string are none), or it is below `least`.
    """
    number = _plain(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not isinstance(number, int):
        raise HawkError(f"{name} must be a whole number, not {shown(value)}")
    if least is not None and number < least:
        raise HawkError(f"{name} must be {least} or more, not {shown(number)}")
    return number


def real_number(name: str, value: Any) -> float:
    """The value of the argument `name` as a `float`.

    Raises:
        HawkError: the value is no finite number, or infinite in float32; a boolean and a string are no numbers.
    """
    number = _plain(value)
    if number is None:
        raise HawkError(f"{name} must be a number, not {shown(value)}")
    try:
        real = float(number)
    except OverflowError:  # an int that is too large for a float
        real = math.inf
    if not math.isfinite(real):
        raise HawkError(f"{name} must be a finite number, not {shown(value)}")
    if abs(real) > LARGEST:
        raise HawkError(f"{name} must lie within +-{LARGEST:.1e} (float32), not {shown(value)}")
    return real


def name_of(argument: str, value: Any, names: Iterable[str]) -> str:
    """The value of the argument `argument`, which must be one of `names`.

    Raises:
        HawkError: the value is another name, or no name; the message lists the names.
    """
    choices = list(names)
    if isinstance(value, str) and value in choices:
        return value
    raise HawkError(f"unknown {argument} {shown(value)}: choose one of {', '.join(choices)}")


def path_of(argument: str, value: Any, wanted: str) -> Path:
    """The value of the argument `argument` as a path; `wanted` says in an error what the argument must be.

    Raises:
        HawkError: the value is neither text nor a path, or the system does not look at such a path.
    """
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or "\0" in path:
        raise HawkError(f"{argument} must be {wanted}, not {shown(value)}")
    try:
        Path(path).exists()
    except OSError as error:  # a name that is too long, or a folder that may not be read
        raise HawkError(f"{argument} must be {wanted}, not {shown(value)} ({error.strerror})") from error
    return Path(path)


def boolean(argument: str, value: Any) -> bool:
    """The value of the argument `argument`, which must be True or False; `HawkError` for any other value."""
    if isinstance(value, bool):
        return value
    raise HawkError(f"{argument} must be True or False, not {shown(value)}")


def check_function(argument: str, value: Any) -> None:
    """Raise `HawkError` where the value of `argument` is neither None nor a function."""
    if not (value is None or callable(value)):
        raise HawkError(f"{argument} must be a function, not {shown(value)}")


def texts_of(prompts: str | Sequence[str] | None) -> list[str]:
    """One prompt or several as a list; `HawkError` for what is no text, or holds bytes that were no UTF-8.

    Python turns such a byte of a command line into half of a surrogate pair, which no file and no tokenizer takes.
    """
    texts = [] if prompts is None else [prompts] if isinstance(prompts, str) else items_of("prompts", prompts, "text")
    for text in texts:
        if not isinstance(text, str):
            raise HawkError(f"prompts must be text, not {shown(text)}")
        try:
            text.encode()
        except UnicodeEncodeError:
            wanted = "give UTF-8 text, in a UTF-8 locale as LC_ALL=C.UTF-8"
            raise HawkError(f"the prompt {shown(text)} holds a byte that is no text: {wanted}") from None
    return texts


def items_of(argument: str, value: Any, wanted: str = "a list") -> list[Any]:
    """The items of the value of `argument`; `wanted` says in an error what the argument must be.

    Raises:
        HawkError: the value has no items, or raises an error of any class where its items are asked for.
    """
    try:
        return list(value)
    except Exception as error:
        raise HawkError(f"{argument} must be {wanted}, not {shown(value)}") from error


def is_several(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a list, a tuple, a range, or an array or a tensor that has a dimension."""
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) > 0


def shown(value: Any) -> str:
    """A refused value for an error message: its repr in one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python prints no integer of more than 4300 digits
        if isinstance(value, int):
            return f"a number of {type(value).__name__} that is too long to print"
        return f"an object of {type(value).__name__} that cannot be printed"
    except Exception:  # a class of the caller's may raise anything
        return f"an object of {type(value).__name__} that cannot be printed"
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."


def _plain(value: Any) -> int | float | None:
    """A value as a number of Python; None if it is no real number."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # scalars of numpy and torch
        try:
            value = value.item()
        except Exception:  # a tensor on the device "meta" holds no number
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
