"""The built-in prompts of `hawk bench` and `hawk verify`."""

from hawk.models.bundled_prompts import BENCH_PROMPTS

__all__ = ["BENCH_PROMPTS"]
