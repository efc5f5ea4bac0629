"""Training: the loop and its processes; `drafters` (for any target) and `sprites` (the bundled model) use them."""
