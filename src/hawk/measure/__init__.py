"""Measurements: `hawk bench` and `hawk compare`."""
