"""What the picker itself costs, measured beside a server that does nothing."""
