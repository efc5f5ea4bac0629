"""Drafters: anything that proposes future image tokens."""
