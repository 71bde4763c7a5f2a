"""Which header fields a client may send (RFC 9113, section 8.2 and 8.3). WITHOUT IO."""

from __future__ import annotations

from collections.abc import Iterable

PSEUDO = frozenset((":method", ":scheme", ":path", ":authority"))
"""Fields of the request line."""
NEEDED = (":method", ":scheme", ":path")
FORBIDDEN = frozenset(("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"))
"""Fields of HTTP/1.1 that concern one connection."""


def checked(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str] | None:
    """The fields of a request or of its trailers by name, of duplicates the last, in Latin-1; None if they are malformed.

    Trailers have no pseudo-header field; a request has each of :data:`NEEDED`.
    """
    headers: dict[str, str] = {}
    regular = False
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name[:1] == ":":
            if regular or name not in PSEUDO or name in headers:
                return None
        else:
            regular = True
            if name in FORBIDDEN or name != name.lower() or not name or (name == "te" and value != "trailers"):
                return None
        headers[name] = value
    if not PSEUDO.isdisjoint(headers) and not all(map(headers.get, NEEDED)):
        return None
    return headers
