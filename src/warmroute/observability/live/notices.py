"""What an operator should know at a glance: one line each, the worst first. WITHOUT IO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from warmroute.routing.decision_record import short_strategy
from warmroute.routing.strategies import FALLBACK

Level = Literal["critical", "warning", "ok"]

BYPASSED_SECONDS = 60
"""Seconds without a request after which computing engines mean that requests go past the picker. Requests that were routed
before have begun by then, except behind a queue of a minute."""
COMPUTING_SECONDS = 10
"""Seconds in which an engine's counters must have grown to count as computing."""
STALE_SECONDS = 15.0
"""Age of an engine's last metrics page from which it is stale; the alert WarmrouteStaleScrapes has it too."""
ERROR_SHARE = 0.05
"""Share of requests with an error above which it is told; the alert WarmrouteErrorRate has it too."""


class Notice(NamedTuple):
    """One line for the operator."""

    level: Level
    text: str


def notices(
    *,
    states: Mapping[str, int],
    stale: int,
    is_bypassed: bool,
    error_share: float,
    seconds_without_requests: float,
    failures: Mapping[str, int],
) -> list[Notice]:
    """The notices for a fleet.

    ``states`` counts the endpoints by state, ``stale`` those whose metrics are old or never came. ``is_bypassed``: requests
    go past the picker (:func:`bypassed`). ``failures`` counts the last minute's requests by the name of the strategy that
    failed.
    """
    found: list[Notice] = []
    listed = sum(count for state, count in states.items() if state != "gone")
    if not listed:
        found.append(Notice("critical", "No endpoint is known: every request gets 503"))
    elif not states.get("ready"):
        found.append(Notice("critical", f"None of {_count(listed, 'endpoint')} is ready"))
    if is_bypassed:
        found.append(
            Notice("critical", "Engines compute, but no request has reached this picker for a minute: is it bypassed?")
        )
    if error_share > ERROR_SHARE:
        found.append(
            Notice("critical", f"{error_share:.0%} of the last minute's requests got an error from the picker")
        )
    level: Level = "critical" if 2 * states.get("ready", 0) < listed else "warning"
    for state, meaning in (("unreachable", "unreachable"), ("ejected", "ejected by passive health")):
        if states.get(state):
            found.append(Notice(level, f"{_count(states[state], 'endpoint')} {meaning}"))
    for strategy, count in failures.items():
        text = f"{short_strategy(strategy)} failed for {_count(count, 'request')} of the last minute; {FALLBACK} chose"
        found.append(Notice("warning", text))
    if stale:
        text = f"Metrics of {_count(stale, 'endpoint')} are older than {STALE_SECONDS:.0f} s or never came"
        found.append(Notice("warning", text))
    if not found:
        text = "Serving" if seconds_without_requests < BYPASSED_SECONDS else "Ready; no request in the last minute"
        found.append(Notice("ok", text))
    return sorted(found, key=lambda notice: ("critical", "warning", "ok").index(notice.level))


def bypassed(*, computing: bool, seconds_without_requests: float, waiting: float) -> bool:
    """Whether requests go past the picker. ``computing``: an engine began requests within :data:`COMPUTING_SECONDS`.

    ``waiting`` requests are queued on the engines by the picker's own count: they may be what the engines begin.
    """
    return computing and seconds_without_requests >= BYPASSED_SECONDS and waiting < 1


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
