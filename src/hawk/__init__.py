"""Hawk: autoregressive text-to-image models made faster without changing what they generate.

The public names are loaded when they are first asked for (PEP 562), so that `import hawk` is quick and
does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hawk.decoding.sampling import SamplingParams
    from hawk.errors import HawkError
    from hawk.pipeline import HawkPipeline
    from hawk.wrapping import accelerate, hawk_generate

__version__ = "0.1.0"

__all__ = ["HawkError", "HawkPipeline", "SamplingParams", "__version__", "accelerate", "hawk_generate"]

_HOMES = {
    "HawkError": "hawk.errors",
    "HawkPipeline": "hawk.pipeline",
    "SamplingParams": "hawk.decoding.sampling",
    "accelerate": "hawk.wrapping",
    "hawk_generate": "hawk.wrapping",
}


def __getattr__(name: str) -> Any:
    """Return the public name `name` from the module it lives in; AttributeError for any other."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
