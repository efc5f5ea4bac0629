"""Training: captioned images, the image tokenizer, the target and the drafters."""
