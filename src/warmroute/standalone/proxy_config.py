"""The options of a standalone Envoy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from warmroute.errors import ConfigurationError
from warmroute.extproc import envoy_policy


class Picking(StrEnum):
    """How Envoy obeys the endpoint picker."""

    OVERRIDE_HOST = "override_host"
    """The picked endpoint if Envoy knows it, else least requests. Allows lists, retries and fail-open."""
    ORIGINAL_DST = "ORIGINAL_DST"
    """Connect to the address in the destination header: Envoy knows no endpoints, so it needs the picker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """The options of :func:`warmroute.standalone.bootstrap.bootstrap`.

    Addresses are ``address:port``, IPv6 in brackets; port 0 takes any free port. Times are seconds.
    """

    epp: tuple[str, ...]
    """Endpoint pickers (ext_proc servers); several are used in turn."""
    endpoints: tuple[str, ...] = ()
    """The engines. Exactly one of this and ``endpoints_file`` is given."""
    endpoints_file: Path | None = None
    """A file written by :func:`~warmroute.standalone.bootstrap.endpoint_discovery`; Envoy reloads it when another file is
    renamed over it."""
    host: str = "127.0.0.1"
    """Address that the listeners bind. The admin page, which can stop Envoy, is always on loopback."""
    port: int = 0
    """Port of the picked listener: HTTP/1.1 and HTTP/2 without TLS."""
    plain_port: int | None = 0
    """Port of the listener that balances by least requests; None: no such listener."""
    admin_port: int = 0

    picking: Picking = Picking.OVERRIDE_HOST
    retry_on: str = envoy_policy.ENGINE_RETRY_ON
    """When another endpoint is tried; the words of Envoy's ``x-envoy-retry-on``."""
    retries: int = envoy_policy.ENGINE_RETRIES

    request_timeout: float = 60.0
    """Seconds for a request to arrive whole, until the response begins: slow uploads get 408. Answers may take any time."""
    request_headers_timeout: float = 10.0
    """Seconds for a request's headers to arrive; the client gets 408."""
    name_endpoint: bool = False
    """Name the engine's address in the response header ``x-warmroute-endpoint``, and the request in ``x-request-id``."""
    access_log: str = ""
    """File that gets a JSON line for each request, with the picker's reason (it needs ``--decision-metadata``); empty: none.
    ``/dev/stdout`` is one."""
    client_headers: tuple[str, ...] = ()
    """Headers out of :data:`warmroute.extproc.headers.CONTROL` that clients may send; the others are removed."""

    epp_tls: bool = False
    """Speak TLS to the picker; its certificate is not verified, as pickers sign their own."""
    epp_retries: int = 3
    """How often a stream to the picker is opened again, on another picker if there is one, after a failed connection or
    UNAVAILABLE."""
    epp_health_check: bool = False
    """Ask the pickers' gRPC health service twice a second. A picker that hangs or dies gets no more requests within 2 s; one
    that is slow to answer twice in a row counts as absent, too. For several pickers."""
    failure_mode_allow: bool = True
    """FailOpen: without an answer from the picker go on without it."""
    message_timeout: float = envoy_policy.MESSAGE_TIMEOUT
    """Seconds that the picker has for each answer."""

    response_headers: bool = False
    """Show response headers to the picker."""

    connection_buffer_bytes: int = 1 << 20
    request_body_buffer_bytes: int = 32 << 20
    """Largest body of a request; Envoy answers 413 to larger ones."""

    def __post_init__(self) -> None:
        if bool(self.endpoints) == (self.endpoints_file is not None):
            raise ConfigurationError("Envoy needs either a list of endpoints or a file of them")
