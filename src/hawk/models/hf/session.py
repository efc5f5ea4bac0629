"""What Hawk keeps of a caller's transformers model between two calls of its `generate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary, proxy

from hawk.decoding.recording import Engine, Recordings
from hawk.drafters.acceptance import Skills
from hawk.drafters.parts import DraftParts
from hawk.drafters.settings import FusedSettings, settings_for
from hawk.models.hf.family import Family
from hawk.models.hf.model import family_fingerprint
from hawk.models.hf.target import TransformersTarget
from hawk.models.moving import weight_places

SESSION_RECORDINGS = 2
"""Recordings that a session keeps: they hold memory of the GPU that the caller may not expect to be in use."""


@dataclass
class Session:
    """What Hawk keeps of a model between two calls of `hawk_generate`: its target, its recordings and its step costs.

    The session refers to the model weakly, and to the model's parts as usual, so it does not keep the model alive.
    `layout` is the model's `layout_of` at the time of the first recording. `at_costs` are the settings `fitted` with
    the step costs of this machine. `warned` tells whether the caller knows that the drafter is slow (`slow_drafts`).
    """

    target: TransformersTarget
    recordings: Recordings
    layout: tuple[Any, ...]
    fitted: FusedSettings | None = None
    at_costs: FusedSettings | None = None
    warned: bool = False
    busy: Lock = field(default_factory=Lock, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the model, by which its step costs are kept on disk."""
        return family_fingerprint(self.target.family)

    def priced(self, parts: DraftParts) -> DraftParts:
        """The parts of `hawk`, with node cost and window set for this machine; may time steps once (`settings_for`)."""
        if self.at_costs is None or self.fitted != parts.fused:
            engine = self.recordings.engine
            self.fitted, self.at_costs = parts.fused, settings_for(parts.fused, self.target, self.fingerprint, engine)
        return replace(parts, fused=self.at_costs)

    @cached_property
    def skills(self) -> Skills:
        """How good the drafts of `hawk` were in earlier images, by their sampling parameters."""
        return Skills(self.fingerprint)

    @contextmanager
    def own_recordings(self) -> Iterator[Recordings | None]:
        """The recordings, for one call at a time: None (each step is launched) while another thread uses them."""
        free = self.busy.acquire(blocking=False)
        try:
            yield self.recordings if free else None
        finally:
            if free:
                self.busy.release()


SESSIONS: WeakKeyDictionary[Any, Session] = WeakKeyDictionary()
"""The last session of each model that is alive. transformers calls a plain function, so they are kept here."""


def session_of(model: Any, described: Family, engine: Engine) -> Session:
    """The session of a model: that of the call before, unless family, engine or the places of its weights changed.

    `described` is the model's family as it is now.
    """
    layout = (type(described), engine, *layout_of(model))
    session = SESSIONS.get(model)
    if session is None or session.layout != layout:
        described.model = proxy(model)
        session = Session(TransformersTarget(described), Recordings(engine, most=SESSION_RECORDINGS), layout)
        SESSIONS[model] = session
    return session


def layout_of(model: Any) -> tuple[Any, ...]:
    """Where a model's weights lie in memory and how they are used: what must not change under a recording."""
    return (model.config.get_text_config()._attn_implementation, *weight_places(model))
