"""Which endpoint keeps what clients come back for: responses, conversations, sessions. WITHOUT IO.

An id that was seen in a response belongs to the endpoint that sent it. Any other id belongs to one endpoint by rendezvous
hashing (https://en.wikipedia.org/wiki/Rendezvous_hashing): all pickers agree, and an endpoint that leaves moves only its
own. That finds what a client named in its first request; it finds a response, whose id the engine chose, by luck only.
"""

from __future__ import annotations

from collections import OrderedDict

from xxhash import xxh3_64_intdigest

from warmroute.routing.candidates import Members

MOST_STATES = 20_000
"""Ids that are remembered, about 5 MB; the least recently used are forgotten."""


class StateKeepers:
    """The endpoints of the ids that were seen in responses."""

    def __init__(self) -> None:
        self._endpoints: OrderedDict[str, str] = OrderedDict()

    def remember(self, state: str, endpoint: str) -> None:
        """The endpoint of this id keeps it."""
        self._endpoints[state] = endpoint
        self._endpoints.move_to_end(state)
        if len(self._endpoints) > MOST_STATES:
            self._endpoints.popitem(last=False)

    def keeper(self, state: str, members: Members) -> int:
        """The position of the endpoint that keeps it, or that is to keep it."""
        known = self._endpoints.get(state)
        if known in members.names:
            self._endpoints.move_to_end(state)
            return members.names.index(known)
        weights = [xxh3_64_intdigest(f"{state} {name}".encode("utf-8", "surrogatepass")) for name in members.names]
        return weights.index(max(weights))
