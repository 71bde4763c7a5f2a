"""An endpoint's load, and a table with this one candidate."""

from __future__ import annotations

from tests.factories import idle_load, routing_constants
from warmroute.routing.candidate_table import CandidateTable
from warmroute.routing.endpoint_load import EndpointLoad

ROUTING = routing_constants(prefill_rate=1000.0)
CONSTANTS = ROUTING.load


def make(now: float = 0.0) -> tuple[EndpointLoad, CandidateTable]:
    load = idle_load("a", 3, now)
    return load, CandidateTable([load], CONSTANTS, now)


def assign(load: EndpointLoad, *works: float, at: float = 0.0) -> None:
    """Requests of that much work go to the endpoint."""
    for work in works:
        load.assign(work, load.drain_rate(CONSTANTS), at)
