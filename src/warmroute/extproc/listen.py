"""Listening ports of gRPC servers."""

from __future__ import annotations

import grpc

from warmroute.errors import ConfigurationError


def bind(server: grpc.aio.Server, host: str, port: int, flag: str, credentials: grpc.ServerCredentials | None) -> int:
    """Let ``server`` listen on ``host`` (empty: all interfaces, IPv6 and IPv4). Returns the port in use.

    Without ``credentials`` there is no TLS. Raises ConfigurationError, which names ``flag``, if the port is unavailable.
    """
    hosts = (f"[{host}]" if ":" in host else host,) if host else ("[::]", "0.0.0.0")
    for candidate in hosts:  # without IPv6 the first cannot be bound
        address = f"{candidate}:{port}"
        try:
            bound = (
                server.add_insecure_port(address)
                if credentials is None
                else server.add_secure_port(address, credentials)
            )
        except RuntimeError:
            bound = 0
        if bound:
            return bound
    raise ConfigurationError(f"cannot listen on port {port} ({flag}): is it in use?")
