"""Training: the loop and its processes; `drafters` (for any target) and `endless` (the bundled model) use them."""
