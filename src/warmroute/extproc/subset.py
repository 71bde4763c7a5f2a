"""The gateway's subset hint: which endpoints a request may go to."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from google.protobuf.struct_pb2 import Value

from warmroute.extproc.ext_proc_pb2 import Metadata
from warmroute.extproc.headers import SUBSET_KEY, SUBSET_NAMESPACE, number
from warmroute.pool.endpoint import canonical_address, canonical_target

PORT_DIGITS = 5
"""Most digits of a port."""
MAX_ENTRIES = 1024
"""Entries of a hint that are read; further ones are ignored. An IPv6 address takes 11 us on the event loop."""
MAX_ENTRY = 64
"""Characters of an entry: an IPv6 address in brackets has 47 with its port. Longer entries match no endpoint."""
LONGEST_REMEMBERED = 256 << 10
"""Longest hint, in bytes, whose members are remembered."""


def hint_of(metadata: Metadata) -> bytes | None:
    """The hint, serialised; None without one. A part of the message would hold all of it."""
    namespace = metadata.filter_metadata
    if SUBSET_NAMESPACE not in namespace or SUBSET_KEY not in namespace[SUBSET_NAMESPACE].fields:
        return None
    return namespace[SUBSET_NAMESPACE].fields[SUBSET_KEY].SerializeToString()


def hinted(hint: bytes) -> frozenset[str]:
    """The members of a serialised hint.

    They are remembered by the hint's bytes, since a gateway sends the hint with every request: reading 100 entries takes
    95 us, serialising them 4 us (``warmroute bench cost``, the figure of the subset hint).
    """
    return read(hint) if len(hint) <= LONGEST_REMEMBERED else read.__wrapped__(hint)


@lru_cache(maxsize=32)
def read(hint: bytes) -> frozenset[str]:
    """The members of a serialised hint. Envoy writes a list, its header-to-metadata filter a string."""
    value = Value.FromString(hint)
    if value.WhichOneof("kind") == "list_value":
        return members([item.string_value for item in value.list_value.values[:MAX_ENTRIES]])
    return members(split(value.string_value))


def split(text: str) -> list[str]:
    """The entries of a hint that is one string."""
    return text.split(",", MAX_ENTRIES)[:MAX_ENTRIES]


def members(entries: Iterable[str]) -> frozenset[str]:
    """The hint for :meth:`Router.pick <warmroute.routing.router.Router.pick>`: canonical targets and addresses.

    Entries are ``ip``, ``ip:port``, ``[v6]`` or ``[v6]:port``. An entry without a port allows every port of the address. One
    that is not an address matches no endpoint.
    """
    return frozenset(member for entry in entries if (member := _member(entry.strip())) is not None)


def _member(entry: str) -> str | None:
    if len(entry) > MAX_ENTRY:
        return None
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
