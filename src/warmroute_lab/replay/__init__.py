"""Replays of traces and scenarios through routing policies and simulated engines, in virtual time."""
