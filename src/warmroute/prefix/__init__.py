"""Prompt prefixes: a prompt to a chain of checkpoints, and who holds which chain."""
