"""The scrapes of one pod by one picker, in virtual time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from math import ceil

from warmroute.engines.scrape_target import BACKOFF
from warmroute.engines.scraper import JITTER
from warmroute.engines.state_builder import StateBuilder
from warmroute.pool.endpoint import EngineState
from warmroute_lab.replay.pods import Pod, figures_of
from warmroute_lab.replay.policy import Policy

RESPONSE_DELAY = 0.005
"""Seconds from a scrape until its state reaches the policy."""


@dataclass(slots=True, eq=False)
class Scrapes:
    """Scrapes ``pod`` for ``policy``, at the intervals of the product's scraper."""

    pod: Pod
    policy: Policy
    incarnation: int = 0
    """Incarnation of the engine that answered last; 0: none yet."""
    failures: int = 0
    """Scrapes without an answer since the last answer."""
    state: EngineState | None = None
    """The state of the last scrape."""
    due: float = 0.0
    """Time of the next scrape. An event of the replay for another time is void."""
    _builder: StateBuilder = field(default_factory=StateBuilder)

    def fail(self, now: float) -> float:
        """A scrape without an answer; the seconds until the next one."""
        backoff = BACKOFF[min(self.failures, len(BACKOFF) - 1)]
        self.failures += 1
        self.policy.unreachable(self.pod.number, now)
        return backoff

    def greet(self, now: float) -> None:
        """An engine answers. Tell the policy if it is a new process."""
        if self.incarnation == self.pod.incarnation:
            return
        if self.incarnation:
            self.policy.restarted(self.pod.number, now)
            self._builder.interrupt()
        self.incarnation, self.failures = self.pod.incarnation, 0

    def read(self, now: float) -> float:
        """Build the state of the running engine; the seconds until the next scrape."""
        assert self.pod.engine is not None
        self.state = self._builder.build(*figures_of(self.pod.engine, self.pod.finished), now)
        busy = self.state.running + self.state.waiting > 0
        return self.policy.busy_interval if busy else self.policy.idle_interval

    def deliver(self, now: float) -> None:
        """Pass the state to the policy, unless the engine has died since the scrape."""
        if self.state is not None and self.pod.engine is not None and self.incarnation == self.pod.incarnation:
            self.policy.observed(self.pod.number, self.state, now)

    def sooner(self, now: float, rng: random.Random) -> float | None:
        """A request goes to the engine: when it is scraped for that; None: as planned before."""
        if not self.policy.scrapes_after_requests:
            return None
        soon = self.next_at(now, self.policy.busy_interval, rng)
        return soon if not self.failures and soon < self.due else None

    def next_at(self, now: float, interval: float, rng: random.Random) -> float:
        """Time of the next scrape: ``interval`` with jitter, rounded up to the policy's tick."""
        due = now + interval * rng.uniform(1 - JITTER, 1 + JITTER)
        return ceil(due / self.policy.tick) * self.policy.tick if self.policy.tick else due
