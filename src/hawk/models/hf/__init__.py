"""Models of the transformers library: one description a family, one target for all of them."""
