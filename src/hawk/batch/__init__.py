"""Images of many prompts, in blocks that are drawn once each: by this process, by several, or by a Ray cluster."""
