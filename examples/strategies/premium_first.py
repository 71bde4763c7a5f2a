"""Premium requests get the fast endpoints, and other requests leave them a part of their slots.

The gateway marks premium requests with the header ``x-tier: premium``; fast endpoints have the label ``tier: fast`` (in the
endpoints file or on the pod).

    warmroute serve ... --routing-strategy examples/strategies/premium_first.py:premium_first
"""

from collections.abc import Sequence

from warmroute import Candidate, InferenceRequest

DETOUR = 0.5
"""Seconds of waiting that a premium request accepts for a fast endpoint."""
RESERVE_FROM = 8
"""Requests on a fast endpoint from which on other requests avoid it."""


def premium_first(request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
    """The cost, and for endpoints of the other kind the detour beside it."""
    premium = request.headers.get("x-tier") == "premium"
    values = []
    for candidate in candidates:
        fast = candidate.endpoint.spec.labels.get("tier") == "fast"
        avoided = not fast if premium else fast and candidate.waiting + candidate.running >= RESERVE_FROM
        values.append(candidate.cost + DETOUR * avoided)
    return values
