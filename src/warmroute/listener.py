"""Listening sockets of the picker's and the extension's ports."""

from __future__ import annotations

import socket

from warmroute.errors import ConfigurationError


def listen(host: str, port: int, flag: str, *, backlog: int | None = None) -> socket.socket:
    """A listening socket on ``host`` and ``port`` (0: any free one); for the empty host one that takes IPv4 and IPv6.

    Raises ConfigurationError, which names ``flag``, if the address is unavailable.
    """
    if host:
        attempts = [(host, socket.AF_INET6 if ":" in host else socket.AF_INET, False)]
    else:  # without IPv6 the first cannot be bound
        attempts = [("::", socket.AF_INET6, True), ("0.0.0.0", socket.AF_INET, False)]
    why = ""
    for address, family, dual_stack in attempts:
        try:
            return socket.create_server((address, port), family=family, backlog=backlog, dualstack_ipv6=dual_stack)
        except OSError as error:
            # create_server appends the address to the system's text
            why = (error.strerror or str(error)).split(" (while attempting")[0]
        except ValueError as error:  # a platform whose IPv6 sockets take no IPv4
            why = str(error)
    raise ConfigurationError(f"cannot listen on {host or 'all interfaces'}, port {port} ({flag}): {why}")
