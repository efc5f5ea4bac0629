"""Proofs of losslessness, exact and by test: what `hawk verify` runs."""
