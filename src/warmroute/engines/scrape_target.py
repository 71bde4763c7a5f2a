"""One endpoint as the scraper sees it: which scrape is next, and whether an engine that does not answer is slow or gone."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from math import inf

from warmroute.engines.probe import Probe
from warmroute.pool.endpoint import Endpoint

BACKOFF = (0.5, 1.0, 2.0)
"""Seconds until an engine that does not answer is tried again; the last value repeats."""
TIMEOUTS_ALLOWED = 1
"""Consecutive attempts to connect without an answer after which an engine still counts as reachable, and consecutive
timeouts of an engine that has never answered. A long step of the engine may cause one."""
LONGEST_SILENCE = 30.0
"""Seconds without an answer, on connections that are accepted, after which an engine that answered before counts as
unreachable. Its page may be slow while it serves: the API server answers between other work (tokenizing long prompts,
loading an adapter), and collecting the metrics of many processes takes seconds. Meanwhile its figures age and cost more."""
LONGEST_PATIENCE = 10.0
"""Upper bound of the factor on ``--metrics-timeout`` for a slow page. It doubles with each timeout."""


class ScrapeOutcome(StrEnum):
    """How a scrape ended: a label of the metrics."""

    OK = "ok"
    UNREACHABLE = "unreachable"
    """The connection was refused or broken."""
    NO_CONNECTION = "no-connection"
    """The attempt to connect got no answer."""
    TIMEOUT = "timeout"
    """The engine accepted the connection and did not answer in time."""
    STATUS = "status"
    """The engine answered with another status than 200."""
    PAGE = "page"
    """The engine answered with a page that cannot be used."""
    INTERNAL = "internal"
    """A bug in the picker."""


class ScrapeTarget:
    """One endpoint as the scraper sees it: when its page is read next, and how long an answer is awaited."""

    __slots__ = (
        "answered_at",
        "asked_at",
        "due",
        "endpoint",
        "engine",
        "models_due",
        "models_url",
        "outcome",
        "patience",
        "phased",
        "probe",
        "reading",
        "silent",
        "soonest",
        "taken_over",
        "task",
        "url",
    )

    def __init__(self, endpoint: Endpoint, due: float) -> None:
        self.endpoint = endpoint
        self.engine = endpoint.engine
        self.url = ""
        self.probe: Probe
        self.due = due
        """When its page is read next, unless a request goes to it before (:meth:`awaited`)."""
        self.asked_at = -inf
        """When its latest page was asked for."""
        self.soonest = due
        """When the page may be read again at all."""
        self.task: asyncio.Task[None] | None = None
        self.outcome = ScrapeOutcome.OK
        self.silent = 0
        """Consecutive scrapes without an answer."""
        self.answered_at: float | None = None
        """When the engine answered last, with whatever status."""
        self.patience = 1.0
        """Factor on the timeout: above 1 for a page that took longer before."""
        self.models_url: str | None = None
        self.models_due = 0.0
        self.reading = 0.0
        """Seconds that reading the latest pages took."""
        self.taken_over = False
        """Whether another picker scraped it until now."""
        self.phased = False
        """Whether its scrapes were moved apart from those of endpoints added at the same time."""

    def begin(self, url: str, models_url: str | None, probe: Probe) -> None:
        """Start again, with the endpoint's present address and engine."""
        self.engine = self.endpoint.engine
        self.url, self.models_url, self.probe = url, models_url, probe
        self.silent, self.answered_at, self.patience = 0, None, 1.0
        self.models_due = 0.0

    def awaited(self, now: float, interval: float) -> bool:
        """Whether a request was sent to the engine ``interval`` seconds ago or more that no page shows yet.

        An idle engine, whose page is read seldom, may have answered it already.
        """
        sent_at = self.endpoint.sent_at
        return sent_at > self.asked_at and now >= max(sent_at + interval, self.soonest)

    @property
    def hangs(self) -> bool:
        """Whether its latest scrapes got no answer, or a late one."""
        return self.patience > 1 or self.silent > 0

    @property
    def busy(self) -> bool:
        """Whether the engine had requests by its last page."""
        return any(state.running + state.waiting > 0 for state in self.probe.states)

    def abandon(self) -> None:
        """Cancel the scrape in flight: its answer would be of the endpoint before a change."""
        if self.task is not None:
            self.task.cancel()
            self.task = None

    def unanswered(self, outcome: ScrapeOutcome, now: float) -> bool:
        """Count a scrape that got no answer. Returns whether the engine is gone, rather than slow to answer."""
        self.silent += 1
        if outcome is ScrapeOutcome.TIMEOUT:
            self.patience = min(2 * self.patience, LONGEST_PATIENCE)
        if outcome is ScrapeOutcome.UNREACHABLE:
            return True
        if outcome is ScrapeOutcome.TIMEOUT and self.answered_at is not None:
            return now - self.answered_at > LONGEST_SILENCE
        return self.silent > TIMEOUTS_ALLOWED

    @property
    def backoff(self) -> float:
        """Seconds until an engine that did not answer is tried again."""
        return BACKOFF[min(self.silent, len(BACKOFF)) - 1]
