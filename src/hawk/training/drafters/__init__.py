"""Training of drafters for any target: the grids it draws, one file per kind of drafter, the pool, the recipes."""
