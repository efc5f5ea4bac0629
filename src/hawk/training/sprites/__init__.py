"""Training of the bundled model: its captioned images, its image tokenizer and its target."""
