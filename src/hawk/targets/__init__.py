"""Target adapters: models whose output distribution Hawk keeps, and their image tokenizers."""
