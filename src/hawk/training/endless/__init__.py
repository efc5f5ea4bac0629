"""Train a tokenizer and a target on pictures that never end: each is made when its turn comes, with its caption."""
