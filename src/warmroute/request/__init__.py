"""Requests of clients: HTTP bodies to inference requests, and errors in OpenAI's shape."""
