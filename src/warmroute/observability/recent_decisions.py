"""The latest decisions, for the debug pages."""

from __future__ import annotations

from collections import deque

from warmroute.routing.decision import Decision
from warmroute.routing.decision_listener import DecisionListener
from warmroute.routing.decision_record import DecisionRecord


class RecentDecisions(DecisionListener):
    """The records of the last ``most`` decisions."""

    def __init__(self, most: int) -> None:
        self._records: deque[DecisionRecord] = deque(maxlen=most)

    def decided(self, decision: Decision, record: DecisionRecord) -> None:
        """Keep the record; the oldest one goes."""
        self._records.append(record)

    def measured(self, decision: Decision) -> None:
        """Nothing: the pages show what was predicted."""

    def newest_first(self) -> list[DecisionRecord]:
        """The records, the last decision's first."""
        return list(reversed(self._records))
