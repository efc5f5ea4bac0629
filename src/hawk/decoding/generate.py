"""The decoder's door: a request, a target and a drafter in, images as tokens out."""

from __future__ import annotations

import torch

from hawk.decoding import recording, trees
from hawk.decoding.forward import Target
from hawk.decoding.memory import refused_where_memory_ends
from hawk.decoding.recording import Recordings
from hawk.decoding.request import Request
from hawk.decoding.stats import Generation, OnStep
from hawk.decoding.tree import Window
from hawk.decoding.trees import Drafter
from hawk.errors import CallersFunction

SMALLER = "draw smaller images, fewer of them at once (batch_size), or load the model in bfloat16"
"""What to lower where memory ends while images are drawn."""


def generate(
    target: Target,
    request: Request,
    drafter: Drafter | Window,
    on_step: OnStep | None = None,
    recordings: Recordings | None = None,
) -> Generation:
    """Draw one image for each seed of the request.

    Args:
        drafter: proposes draft trees; a `Window` proposes chains, whose steps need neither trees nor the host.
        on_step: called after every target forward; an error that it raises passes through as it is.
        recordings: how the steps of a window are run, and what a GPU has recorded of them in earlier calls.

    Raises:
        HawkError: the drafts do not carry what the request's verifier needs, the target's logits are not finite, or
            the memory is too small.
    """
    request.check_drafts(drafter.lossless_with)
    told = None if on_step is None else CallersFunction(on_step)
    with torch.inference_mode(), refused_where_memory_ends(SMALLER, told):
        if isinstance(drafter, Window):
            return recording.draw(target, request, drafter, told, recordings)
        return trees.draw(target, request, drafter, told)
