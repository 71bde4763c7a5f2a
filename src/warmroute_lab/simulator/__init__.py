"""A vLLM stand-in: an engine without IO, fitted to measurements, and the HTTP server around it."""
