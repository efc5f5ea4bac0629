"""Captioned cut-outs of freely licensed photographs, to train a target whose tokens are as hard as real ones."""
