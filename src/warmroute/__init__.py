"""Warmroute: an endpoint picker for LLM inference behind Envoy."""

__version__ = "0.1.0"
"""The version of both distributions and of the image; written here only."""
