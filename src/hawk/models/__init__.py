"""Models: everything that can draw an image, read from folders, checkpoints and hub ids."""
