"""Drawn scenes with captions: figures on backgrounds, each a function of its seed and number."""
