"""The fingerprint of a target: a short hash by which a drafter's folder says which target it was trained for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def fingerprint(shape: Mapping[str, Any], head: Iterable[Tensor]) -> str:
    """The first 16 digits of the sha256 of a target's shape (plain JSON values) and its head's weights in bfloat16."""
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for weight in head:
        digest.update(weight.detach().cpu().to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
