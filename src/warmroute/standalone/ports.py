"""TCP ports: whether one is free, and which one is."""

from __future__ import annotations

import random
import socket

from warmroute.errors import ConfigurationError

FIRST_PORT, LAST_PORT = 12_000, 32_767
"""Where free ports are looked for: below those that Linux gives to outgoing connections, which come and go at any time."""
ATTEMPTS = 1000


def require_free(host: str, port: int, purpose: str) -> None:
    """Raise ConfigurationError if something else listens on the port. Port 0 is always free."""
    if port == 0:
        return
    with _socket(host) as probe:
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else "there is no such port"
            raise ConfigurationError(f"port {port} for {purpose} cannot be had on {host}: {why}") from error


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free just now, for a process that cannot be asked which one it took."""
    return free_range(1, host)


def free_range(count: int, host: str = "127.0.0.1") -> int:
    """The first of ``count`` consecutive ports that were free just now. Raises ConfigurationError if none is found."""
    for _ in range(ATTEMPTS):
        first = random.randrange(FIRST_PORT, LAST_PORT + 1 - count)
        try:
            for port in range(first, first + count):
                require_free(host, port, "a range of ports")
        except ConfigurationError:
            continue
        return first
    raise ConfigurationError(f"there are no {count} consecutive free ports on {host}")


def _socket(host: str) -> socket.socket:
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # As servers do: connections of an earlier one in TIME_WAIT are no hindrance, a listener is.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return probe
