"""Measurements of speed and cost: what `hawk bench` and `hawk compare` run."""
