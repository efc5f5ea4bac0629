"""Picture files: PNGs with metadata, and contact sheets."""
