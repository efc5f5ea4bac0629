"""LlamaGen: the target, its caption encoders, and the bundled model's static word vectors."""
