"""LlamaGen and the bundled model, which has the same architecture: the target and the text encoders."""
