"""What measured figures depend on: machine, versions, model and settings."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hawk.machine import machine_facts
from hawk.pipeline import HawkPipeline


def environment(pipe: HawkPipeline, prompts: int, seeds: int, batch: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Everything that the figures of a model depend on."""
    names = {"guidance_scale": "cfg_scale"}
    sampling = asdict(pipe.defaults) | {names.get(name, name): value for name, value in overrides.items()}
    return {
        "model": pipe.model.name,
        "target_parameters": pipe.model.target.parameter_count,
        "grid": [pipe.model.grid.height, pipe.model.grid.width],
        "seed": 0,
        **machine_facts(pipe.device, pipe.dtype),
        "settings": {"prompts": prompts, "seeds": seeds, "batch": batch, **sampling},
    }
