"""The endpoint that holds most of the prompt; of equal ones the one with the fewest requests.

Simple, but it knows no times: an endpoint that holds 2,000 tokens more gets up to 20 requests more than another one. Compare
it with PREFIX_CACHE:

    warmroute bench replay hot-prefix --strategy examples/strategies/most_cached.py:most_cached --strategy PREFIX_CACHE
"""

from collections.abc import Sequence

from warmroute import Candidate, InferenceRequest

REQUEST_TOKENS = 100.0
"""Cached tokens that outweigh one request more."""


def most_cached(request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
    """Requests in flight, less what the cached tokens outweigh."""
    return [
        candidate.waiting + candidate.running - candidate.cached_tokens / REQUEST_TOKENS for candidate in candidates
    ]
