"""Traces and scenarios replayed through routing policies and simulated engines, in virtual time."""
