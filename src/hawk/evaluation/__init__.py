"""Evidence on the images that a method draws: prompt sets, image features, metrics, and their intervals."""
