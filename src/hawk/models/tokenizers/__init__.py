"""Image tokenizers: codes to pixels, and pixels to codes."""
