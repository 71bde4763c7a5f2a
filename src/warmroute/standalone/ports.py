"""TCP ports: check whether one is free, or find one; how this machine reaches one."""

from __future__ import annotations

import errno
import random
import socket
from ipaddress import ip_address

from warmroute.errors import ConfigurationError

FIRST_PORT, LAST_PORT = 12_000, 32_767
"""Range that is searched: below the ports that Linux gives to outgoing connections (ip_local_port_range)."""
ATTEMPTS = 1000

_next_port = random.randrange(FIRST_PORT, LAST_PORT)
"""The port that this process tries next."""


def reachable(host: str) -> str:
    """The address, as in a URL, under which this machine reaches what listens on the IP address ``host``."""
    address = ip_address(host)
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if address.version == 4 else f"[{host}]"


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


def require_address(host: str, flag: str) -> None:
    """Raise ConfigurationError if nothing can listen on the IP address ``host``, which ``flag`` gives."""
    with _socket(host) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            missing = error.errno == errno.EADDRNOTAVAIL
            why = "this machine has no such address" if missing else error.strerror
            raise ConfigurationError(f"{flag} {host}: {why}") from error


def is_free(host: str, port: int) -> bool:
    """Whether nothing listens on the port."""
    try:
        require_free(host, port, "a listener")
    except ConfigurationError:
        return False
    return True


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free just now, for a process that does not report the port it chose."""
    return free_range(1, host)


def free_range(count: int, host: str = "127.0.0.1") -> int:
    """The first of ``count`` consecutive ports that were free just now. Raises ConfigurationError if none is found.

    A process goes through the range from a place of its own, and gives no port twice before it has been through: a port that
    it has given is not in use yet.
    """
    for _ in range(ATTEMPTS):
        first = _next_first(count)
        if all(is_free(host, port) for port in range(first, first + count)):
            return first
    what = "free port" if count == 1 else f"{count} consecutive free ports"
    raise ConfigurationError(f"no {what} found on {host}")


def _next_first(count: int) -> int:
    global _next_port  # noqa: PLW0603
    if _next_port + count - 1 > LAST_PORT:
        _next_port = FIRST_PORT
    first, _next_port = _next_port, _next_port + count
    return first


def _socket(host: str) -> socket.socket:
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # As servers do: connections in TIME_WAIT do not block the port, a listener does.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return probe
