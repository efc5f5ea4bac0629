"""Evaluation: whether generated images are what plain AR decoding would have drawn, and how good they are."""
