"""The gateway's subset hint: which endpoints a request may go to."""

from __future__ import annotations

from collections.abc import Iterable

from warmroute.extproc.ext_proc_pb2 import Metadata
from warmroute.extproc.headers import SUBSET_KEY, SUBSET_NAMESPACE, number
from warmroute.pool.endpoint import canonical_address, canonical_target

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


def members(entries: Iterable[str]) -> frozenset[str]:
    """The hint as :meth:`Router.pick <warmroute.routing.router.Router.pick>` takes it: canonical targets and addresses.

    Entries are ``ip``, ``ip:port``, ``[v6]`` or ``[v6]:port``; without a port every port counts. Entries that are no address
    match no endpoint.
    """
    return frozenset(member for entry in entries if (member := _member(entry.strip())) is not None)


def _member(entry: str) -> str | None:
    host, port = entry, ""
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        port = rest.removeprefix(":")
    elif entry.count(":") == 1:
        host, _, port = entry.partition(":")
    address = canonical_address(host)
    if not port:
        return address
    known = number(port, digits=PORT_DIGITS)
    return None if known is None else canonical_target(address, known)
