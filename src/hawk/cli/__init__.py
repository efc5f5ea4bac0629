"""Command line: what a person types; each command imports what it needs when it is called."""
