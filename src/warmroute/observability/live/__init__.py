"""The live page: what the fleet does now, once a second, in a browser or a terminal."""
