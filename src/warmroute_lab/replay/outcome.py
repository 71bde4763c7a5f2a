"""The result of one replay: latencies, cache hits, and load of the pods over time."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, pstdev

from warmroute_lab.load.distribution import Distribution


@dataclass(frozen=True, slots=True)
class Sample:
    """The number of requests on each pod at one time."""

    at: float
    requests: tuple[int, ...]


@dataclass(slots=True)
class Outcome:
    """The measurements of one replay. Times are in seconds; lists have one entry per request, in the order of the trace."""

    strategy: str
    scenario: str
    speedup: float
    ttft: list[float]
    e2e: list[float]
    pods: list[int]
    prompt_tokens: int
    cached_tokens: int
    retries: int
    samples: list[Sample]
    planned_seconds: float = 0.0
    """Time of the last request by the trace and the speedup."""
    sent_seconds: float = 0.0
    """Time at which the last request was sent: a request that follows an answer is sent when the answer is complete."""

    failed: int = 0
    """Requests for which the strategy failed, and the router's fallback chose."""

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens found in the chosen engine's cache."""
        return self.cached_tokens / self.prompt_tokens

    @property
    def imbalance(self) -> float:
        """Coefficient of variation of the pods' requests: standard deviation over mean, both averaged over time."""
        mean = sum(fmean(sample.requests) for sample in self.samples)
        return sum(pstdev(sample.requests) for sample in self.samples) / mean if mean else 0.0

    def figures(self) -> dict[str, str | float]:
        """The figures for tables and JSON, in seconds and fractions."""
        ttft = Distribution.of(self.ttft)
        return {
            "strategy": self.strategy,
            "scenario": self.scenario,
            "speedup": self.speedup,
            "requests": len(self.ttft),
            "ttft_mean": ttft.mean,
            "ttft_p50": ttft.p50,
            "ttft_p90": ttft.p90,
            "ttft_p99": ttft.p99,
            "e2e_mean": fmean(self.e2e),
            "hit_rate": self.hit_rate,
            "imbalance": self.imbalance,
        }
