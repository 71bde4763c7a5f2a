"""Free TCP ports: check one, or find one."""

from __future__ import annotations

import random
import socket

from warmroute.errors import ConfigurationError

FIRST_PORT, LAST_PORT = 12_000, 32_767
"""Range that is searched: below the ports that Linux gives to outgoing connections (ip_local_port_range)."""
ATTEMPTS = 1000


def require_free(host: str, port: int, purpose: str) -> None:
    """Raise ConfigurationError if something else listens on the port. Port 0 is always free."""
    if port == 0:
        return
    with _socket(host) as probe:
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else "the last port is 65535"
            raise ConfigurationError(f"port {port} for {purpose} is unavailable on {host}: {why}") from error


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free just now, for a process that does not report the port it chose."""
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
    raise ConfigurationError(f"no {count} consecutive free ports found on {host}")


def _socket(host: str) -> socket.socket:
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # As servers do: connections in TIME_WAIT do not block the port, a listener does.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return probe
