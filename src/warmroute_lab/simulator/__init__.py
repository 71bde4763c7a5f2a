"""A simulated vLLM: an engine without IO, fitted to measurements, and its HTTP server."""
