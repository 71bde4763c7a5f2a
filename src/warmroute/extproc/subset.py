"""The gateway's subset hint: which endpoints a request may go to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_address

from warmroute.extproc.ext_proc_pb2 import Metadata
from warmroute.extproc.headers import SUBSET_KEY, SUBSET_NAMESPACE, number
from warmroute.pool.endpoint import Endpoint

PORT_DIGITS = 5
"""Longest port that is read as one."""


def hinted(metadata: Metadata) -> list[str] | None:
    """The entries of the hint; None where there is no hint. Envoy writes a list, its header-to-metadata filter a string."""
    namespace = metadata.filter_metadata
    if SUBSET_NAMESPACE not in namespace or SUBSET_KEY not in namespace[SUBSET_NAMESPACE].fields:
        return None
    value = namespace[SUBSET_NAMESPACE].fields[SUBSET_KEY]
    if value.WhichOneof("kind") == "list_value":
        return [item.string_value for item in value.list_value.values]
    return value.string_value.split(",")


def members(entries: Iterable[str]) -> Callable[[Endpoint], bool]:
    """A test for membership. Entries are ``ip``, ``ip:port``, ``[v6]`` or ``[v6]:port``; without a port every port counts.

    Entries that are no address allow nothing.
    """
    addresses: set[str] = set()
    sockets: set[tuple[str, int]] = set()
    for entry in entries:
        host, port = _split(entry.strip())
        if not port:
            addresses.add(host)
        elif (known := number(port, digits=PORT_DIGITS)) is not None:
            sockets.add((host, known))

    def allowed(endpoint: Endpoint) -> bool:
        address = _canonical(endpoint.spec.address)
        return address in addresses or (address, endpoint.spec.port) in sockets

    return allowed


def _split(entry: str) -> tuple[str, str]:
    host, port = entry, ""
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        port = rest.removeprefix(":")
    elif entry.count(":") == 1:
        host, _, port = entry.partition(":")
    return _canonical(host), port


def _canonical(address: str) -> str:
    try:
        return str(ip_address(address))
    except ValueError:
        return address
