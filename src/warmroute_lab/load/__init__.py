"""Load generators for OpenAI-compatible servers."""
