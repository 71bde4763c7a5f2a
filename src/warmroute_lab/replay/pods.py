"""One pod of a replay: its engine and the requests on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from warmroute.engines.figures import Constants, Figures
from warmroute_lab.simulator.engine import Engine
from warmroute_lab.simulator.profile import Profile
from warmroute_lab.simulator.request import Request


@dataclass(slots=True)
class FinishedTotals:
    """Totals of the finished requests of one engine, as its metrics page has them in the sums of its histograms."""

    prompt_tokens: int = 0
    computed_tokens: int = 0
    """Prompt tokens that were not cached."""
    prefill_seconds: float = 0.0
    """From the first step to the first token."""
    later_tokens: int = 0
    """Output tokens after the first of each request."""
    later_token_seconds: float = 0.0
    """From the first token to the last."""

    def add(self, request: Request, finished_at: float) -> None:
        """Count a request."""
        self.prompt_tokens += request.prompt_tokens
        if request.scheduled_at is not None and request.first_token_at is not None:
            self.computed_tokens += request.prompt_tokens - request.cached_tokens
            self.prefill_seconds += request.first_token_at - request.scheduled_at
            self.later_tokens += request.output_tokens - 1
            self.later_token_seconds += finished_at - request.first_token_at


@dataclass(slots=True, eq=False)
class Pod:
    """One pod. ``engine`` is None while it is down."""

    number: int
    engine: Engine | None = None
    incarnation: int = 0
    """Number of starts of the engine."""
    finished: FinishedTotals = field(default_factory=FinishedTotals)
    in_flight: set[int] = field(default_factory=set)
    """Numbers of the requests on the engine."""
    serving: bool = True
    """False after scaling in: it gets no new requests."""
    due: float = inf
    """Time of the engine's next event. An event of the replay for another time is void."""

    def boot(self, profile: Profile) -> None:
        """Start a new engine with an empty cache."""
        self.incarnation += 1
        self.finished = FinishedTotals()
        self.engine = Engine(profile, every_token=False, seed=self.number)

    def stop(self) -> None:
        """The engine dies."""
        self.engine = None
        self.due = inf


def figures_of(engine: Engine, finished: FinishedTotals) -> tuple[Figures, Constants]:
    """What a scraper reads from the engine's metrics page; ``finished`` are the pod's totals."""
    counters = engine.counters
    figures = Figures(
        running=engine.running,
        waiting=engine.waiting,
        kv_usage=engine.kv_usage,
        counters={
            "first_tokens": counters.first_tokens,
            "first_token_seconds": counters.first_token_seconds,
            "prompt_tokens": finished.prompt_tokens,
            "prompt_requests": counters.finished,
            "prefix_queries": counters.prefix_queries,
            "prefix_hits": counters.prefix_hits,
            "external_queries": counters.tier_queries,
            "external_hits": counters.tier_hits,
            "computed_tokens": counters.prompt_tokens - counters.cached_tokens,
            "request_computed_tokens": finished.computed_tokens,
            "request_prefill_seconds": finished.prefill_seconds,
            "later_tokens": finished.later_tokens,
            "later_token_seconds": finished.later_token_seconds,
        },
    )
    profile = engine.profile
    return figures, Constants(
        capacity_tokens=profile.kv_cache_tokens,
        block_size=profile.block_size,
        prefix_caching=profile.prefix_caching,
    )
