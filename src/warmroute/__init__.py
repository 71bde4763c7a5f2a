"""Warmroute: an endpoint picker for LLM inference behind Envoy."""

from importlib.metadata import version

__version__ = version("warmroute")
