"""Each session stays on one endpoint, unless that costs far more than another one.

For clients that send ``x-session-id``. PREFIX_CACHE does this by itself for conversations that grow; take this where the
prompt does not show the session, for example with tools that keep files on the engine's machine.

    warmroute up ... --routing-strategy examples/strategies/session_affinity.py:session_affinity
"""

from collections.abc import Sequence
from zlib import crc32

from warmroute import Candidate, InferenceRequest

DETOUR = 2.0
"""Seconds of extra cost that a request accepts to stay with its session."""


def session_affinity(request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
    """The cost, and for every endpoint but the session's own the detour beside it."""
    if not request.session_id:
        return [candidate.cost + DETOUR * candidate.left_out for candidate in candidates]
    # Rendezvous hashing: endpoints that come and go move only their own sessions.
    ranks = [crc32(f"{request.session_id} {candidate.endpoint.id}".encode()) for candidate in candidates]
    home = ranks.index(max(ranks))
    return [candidate.cost + (0.0 if k == home else DETOUR) for k, candidate in enumerate(candidates)]
