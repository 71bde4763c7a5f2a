"""The header and metadata names of the endpoint picker protocol, and the reading of headers."""

from __future__ import annotations

from warmroute.gateway.ext_proc_pb2 import HeaderMap

DESTINATION = "x-gateway-destination-endpoint"
"""Request header and metadata key with the chosen endpoints."""
SERVED = "x-gateway-destination-endpoint-served"
"""Metadata key with the endpoint that served the request."""
LB_NAMESPACE = "envoy.lb"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
SUBSET_KEY = "x-gateway-destination-endpoint-subset"

DROPPED_REASON = "x-warmroute-dropped-reason"
OBJECTIVE = "x-gateway-inference-objective"
FAIRNESS_ID = "x-gateway-inference-fairness-id"
CONSUMED = (OBJECTIVE, FAIRNESS_ID)
"""Request headers that are meant for the picker and do not go to the engine."""

TEST_SELECTION = "test-epp-endpoint-selection"
TEST_SERVED = "x-conformance-test-served-endpoint"
TEST_ECHO = "x-echo-set-header"

_WANTED = frozenset(
    (":path", ":method", ":status", "content-type", "content-length", "x-request-id", TEST_SELECTION, *CONSUMED)
)


def read(headers: HeaderMap) -> dict[str, str]:
    """The few headers that matter; of duplicates the last. Envoy fills ``raw_value``, other proxies may fill ``value``."""
    return {
        header.key: header.raw_value.decode("utf-8", "replace") if header.raw_value else header.value
        for header in headers.headers
        if header.key in _WANTED
    }
