"""State and load of the pool's members at one time: what ``/metrics``, ``/debug/endpoints`` and the live page show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from warmroute.pool.endpoint import Endpoint, endpoint_state
from warmroute.routing.confirmation import Confirmation
from warmroute.routing.decision_record import duration
from warmroute.routing.prediction import Compared


@dataclass(frozen=True, slots=True)
class EndpointReading:
    """State and load of one member of the pool at one time, as the router sees them."""

    endpoint: Endpoint
    waiting: float
    """Requests waiting for their first token."""
    running: float
    """Requests being decoded."""
    pending_tokens: float
    """Prompt tokens assigned and not prefilled yet."""
    slowness: float
    """The pool's median speed divided by the endpoint's."""
    prefill_rate: float
    """Prefill tokens per second that the router assumes."""
    checkpoints: int
    """Checkpoints in the prefix index."""
    index_tokens: float
    """Tokens that the prefix index holds for the endpoint."""
    confirmation: Confirmation
    """Expected against measured cache hits."""
    ttft: Compared | None = None
    """Predicted against measured time to first token; None if unknown."""

    def page_age(self, now: float) -> float:
        """Age of the engine's last metrics page; until there is one, time since the endpoint joined or its engine restarted.

        ``now`` is in the seconds that stamp the engines' states.
        """
        endpoint, engine = self.endpoint, self.endpoint.state
        since = max(endpoint.added_at, endpoint.restarted_at) if engine is None else engine.observed_at
        return max(0.0, now - since)

    def plain(self, now: float) -> dict[str, Any]:
        """The reading as data for JSON; ``now`` as in :meth:`page_age`."""
        endpoint, engine = self.endpoint, self.endpoint.state
        window = self.confirmation.last_window
        return {
            "endpoint": endpoint.id,
            "target": endpoint.target,
            "state": endpoint_state(endpoint),
            "health": endpoint.health.value,
            "engine": endpoint.engine,
            "member_for_seconds": round(now - endpoint.added_at, 3),
            "router": {
                "waiting": round(self.waiting, 3),
                "running": round(self.running, 3),
                "pending_prefill_tokens": round(self.pending_tokens, 1),
                "slowness": round(self.slowness, 3),
                "prefill_tokens_per_second": round(self.prefill_rate, 1),
            },
            "time_to_first_token": None if self.ttft is None else _ttft(self.ttft),
            "index": {
                "checkpoints": _coarse(self.checkpoints),
                "tokens": _coarse(self.index_tokens),
                "trust": round(self.confirmation.trust, 2),
                "factor": round(self.confirmation.factor, 2),
                "expected_hit_ratio": None if window is None else round(window.expected, 2),
                "measured_hit_ratio": None if window is None else round(window.measured, 2),
            },
            "scrape": None
            if engine is None
            else {
                "age_seconds": round(self.page_age(now), 3),
                "waiting": engine.waiting,
                "running": engine.running,
                "kv_usage": engine.kv_usage,
                "capacity_tokens": engine.capacity_tokens,
                "block_size": engine.block_size,
                "caches_prompts": engine.caches_prompts,
                "max_num_seqs": engine.max_num_seqs,
                "loaded_adapters": sorted(engine.loaded_adapters),
                "max_adapters": engine.max_adapters,
                "sleeping": engine.sleeping,
            },
        }


def _ttft(compared: Compared) -> dict[str, Any]:
    predicted, measured, requests = compared
    return {
        "predicted_ms": round(1000 * predicted, 1),
        "measured_ms": round(1000 * measured, 1),
        "requests": requests,
        "sentence": f"predicted {duration(predicted)}, measured {duration(measured)} over the last minute",
    }


def _coarse(count: float) -> int:
    """Two significant digits: from exact counts a reader of the debug page could infer how much of a prompt was new."""
    return int(float(f"{count:.2g}"))
