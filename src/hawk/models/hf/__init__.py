"""Models of the transformers library: one description for each family, and one target that serves all families."""
