"""Decoding: one step of speculative decoding, and everything that a step reads or writes."""
