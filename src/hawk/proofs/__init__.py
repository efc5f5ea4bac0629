"""Proofs of losslessness: `hawk verify`."""
