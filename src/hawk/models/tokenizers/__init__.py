"""Image tokenizers: they decode codes to pixels, and the bundled one also encodes pixels to codes."""
