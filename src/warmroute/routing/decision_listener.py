"""Listeners of decisions: the list of recent ones, the decision log, traces and shared state are some."""

from __future__ import annotations

from typing import Protocol

from warmroute.routing.decision import Decision
from warmroute.routing.decision_record import DecisionRecord


class DecisionListener(Protocol):
    """Called by the router, on its event loop: return at once, and raise nothing."""

    def decided(self, decision: Decision, record: DecisionRecord) -> None:
        """A request was given an endpoint and is booked on it.

        ``decision`` has the prompt's chain and changes later (a retry moves it to another endpoint). ``record`` explains the
        choice, holds no prompt and may be kept.
        """

    def measured(self, decision: Decision) -> None:
        """The response to the decision's request has ended; ``decision.measurement`` is set. Only while responses are
        observed."""
