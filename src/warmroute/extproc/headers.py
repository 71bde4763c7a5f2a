"""The header and metadata names of the endpoint picker protocol, and the reading of headers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from sys import getsizeof
from types import MappingProxyType

from warmroute.extproc.ext_proc_pb2 import HeaderMap, HeaderValue

DATA_PARALLEL_RANK = "x-data-parallel-rank"
"""Request header: the data-parallel engine behind the port that serves the request (vLLM's OpenAI server)."""
DESTINATION = "x-gateway-destination-endpoint"
"""Request header and metadata key with the chosen endpoints."""
SERVED = "x-gateway-destination-endpoint-served"
"""Metadata key with the endpoint that served the request."""
LB_NAMESPACE = "envoy.lb"
DECISION_NAMESPACE = "warmroute"
"""Dynamic metadata with :data:`REASON` and :data:`CACHED_SHARE` of a decision (``--decision-metadata``)."""
REASON = "reason"
CACHED_SHARE = "cached_share"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
SUBSET_KEY = "x-gateway-destination-endpoint-subset"

DROPPED_REASONS = ("x-warmroute-dropped-reason", "x-llm-d-request-dropped-reason")
"""Response headers with the reason of a rejection: our own name and llm-d's."""
OBJECTIVES = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
"""Request headers that name the InferenceObjective; the first one present counts."""
FAIRNESS_IDS = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
"""Request headers with the tenant or user for fairness; the first one present counts."""
MODEL_REWRITES = ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite")
"""Request headers with a model name that replaces the body's; the first one present counts."""
MODEL_NAME = "x-gateway-model-name"
"""Request header with the body's model name, if the gateway routes by it (body-based routing)."""
TRACEPARENT = "traceparent"
"""Request header with the W3C trace context (https://www.w3.org/TR/trace-context/#traceparent-header)."""
CONSUMED = (*sorted(OBJECTIVES), *sorted(FAIRNESS_IDS), *sorted(MODEL_REWRITES))
"""Request headers for the picker; they are removed before the request goes to the engine."""
CONTROL = (DESTINATION, SERVED, SUBSET_KEY, *CONSUMED, MODEL_NAME)
"""Request headers that only a gateway may write; the shipped Envoy configurations remove them from clients' requests."""

TEST_SELECTION = "test-epp-endpoint-selection"
TEST_SERVED = "x-conformance-test-served-endpoint"
TEST_ECHO = "x-echo-set-header"

MAX_DIGITS = 18
"""Most digits of a number in a header."""
MAX_REQUEST_ID = 128
"""Characters of ``x-request-id`` that are kept; it is for logs and debug pages only."""
MOST_READ = 1000
"""Headers of a message that are looked at: each takes two microseconds on the event loop, and 512 KiB have room for 260,000
empty ones. Envoy accepts 100 by default."""
MOST_VISIBLE = 100
"""Headers of a request that custom strategies see; Envoy accepts 100 by default."""
MOST_VISIBLE_BYTES = 16 << 10
"""Bytes of memory of these headers, names included; further ones are left out."""
MAX_VALUE = 4096
"""Longest value of any other header, in characters. A longer one counts as absent: a cut name would be another name."""
MAX_NAME = 1024
"""Longest value, in characters, of a header that names a model, an objective or a tenant."""
MAX_WORD = 256
"""Longest value, in characters, of a header that has a form of its own, such as a method or a media type."""
WIDTH = 4
"""Bytes of memory of a character in a text with characters beyond ASCII, at most: such a value may have 1/WIDTH of the
characters."""

_LONGEST = {
    ":path": MAX_VALUE,
    "x-request-id": MAX_REQUEST_ID,
    **dict.fromkeys((":method", ":status", "content-type", "content-length", "content-encoding"), MAX_WORD),
    **dict.fromkeys(("upgrade", TRACEPARENT), MAX_WORD),
    **dict.fromkeys((MODEL_NAME, TEST_SELECTION, *CONSUMED), MAX_NAME),
}
"""The headers that the picker uses, with the longest value of each in characters."""
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def read(headers: HeaderMap, also: str = "") -> dict[str, str]:
    """The headers that the picker uses, and ``also``, of the first :data:`MOST_READ`; of duplicates the last. Envoy fills
    ``raw_value``, other proxies may fill ``value``.

    Names are lower case. Values are bounded (:data:`MAX_VALUE`, :data:`MAX_NAME`, :data:`MAX_WORD`), the request id is
    :func:`printable`.
    """
    found = {}
    for header in headers.headers[:MOST_READ]:
        name = header.key.lower()
        longest = MAX_VALUE if name == also else _LONGEST.get(name, 0)
        if longest:
            value = _text(header)
            if name == "x-request-id":
                found[name] = printable(value, MAX_REQUEST_ID)
            elif _fits(value, longest):
                found[name] = value
            else:
                found.pop(name, None)  # of duplicates the last counts
    return found


def memory(known: Mapping[str, str]) -> int:
    """Bytes of memory of headers, those of the dictionary apart."""
    size = 0
    for name, value in known.items():
        size += getsizeof(name) + getsizeof(value)
    return size


def _text(header: HeaderValue) -> str:
    raw = header.raw_value
    return raw.decode("utf-8", "replace") if raw else header.value


def _fits(value: str, longest: int) -> bool:
    """Whether a text takes no more memory than ``longest`` characters of ASCII."""
    return len(value) <= (longest if value.isascii() else longest // WIDTH)


def is_two_way(known: dict[str, str]) -> bool:
    """Whether the request's body may not end before its response begins: an upgrade (WebSocket), CONNECT, gRPC.

    Proxies answer ``Upgrade: h2c`` themselves or drop it; the request after it is an ordinary one.
    """
    upgrade = known.get("upgrade")
    return (
        (upgrade is not None and upgrade.lower() != "h2c")
        or known.get(":method") == "CONNECT"
        or known.get("content-type", "").startswith("application/grpc")
    )


def visible(headers: HeaderMap) -> Mapping[str, str]:
    """The headers for custom strategies, read-only, names in lower case: the first :data:`MOST_VISIBLE`, without those whose
    value is longer than :data:`MAX_VALUE` or that go beyond :data:`MOST_VISIBLE_BYTES`; of duplicates the last."""
    found: dict[str, str] = {}
    left = MOST_VISIBLE_BYTES
    for header in headers.headers[:MOST_VISIBLE]:
        name, value = header.key.lower(), _text(header)
        size = getsizeof(name) + getsizeof(value)
        if size <= left and _fits(value, MAX_VALUE):
            left -= size
            found[name] = value
    return MappingProxyType(found)


def printable(text: str, length: int) -> str:
    """``text`` cut to ``length`` characters, with escapes in place of control and format characters.

    These are the C0 and C1 controls, bidirectional marks, line separators and whatever else is not printable in Unicode. In
    a log they could forge lines or change what a terminal displays.
    """
    if len(text) <= length and text.isprintable():
        return text
    return "".join([c if c.isprintable() else ascii(c)[1:-1] for c in text[:length]])[:length]


def trace_context(text: str) -> str:
    """``text`` if it is a ``traceparent`` of version 00, else an empty string."""
    return text if text and _TRACEPARENT.fullmatch(text) else ""


def trace_context_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The ``traceparent`` of a stream's gRPC metadata: Envoy puts that of its own span there. Empty without a valid one."""
    for name, value in metadata or ():
        if name == TRACEPARENT and isinstance(value, str):
            return trace_context(value)
    return ""


def number(text: str, *, digits: int = MAX_DIGITS) -> int | None:
    """A header's value as an unsigned integer; None if it is not one or has more than ``digits`` digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits else None
