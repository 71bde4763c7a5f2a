"""Load generators that talk to a real server."""
