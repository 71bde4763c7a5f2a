"""Prompt prefixes: the chain of checkpoints of a prompt, and which engine holds which chain. WITHOUT IO."""
