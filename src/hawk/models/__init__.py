"""Everything that can draw an image: targets with their text encoders and image tokenizers, read from disk or hub."""
