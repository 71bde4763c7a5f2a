"""What an operator is told at a glance."""

from __future__ import annotations

from typing import Any

import pytest

from warmroute.observability.live.notices import bypassed, notices

FINE: dict[str, Any] = {
    "states": {"ready": 5},
    "stale": 0,
    "is_bypassed": False,
    "error_share": 0.0,
    "seconds_without_requests": 0.0,
    "failures": {},
}


@pytest.mark.parametrize(
    ("figures", "level", "text"),
    [
        ({}, "ok", "Serving"),
        ({"seconds_without_requests": 59.0}, "ok", "Serving"),
        ({"seconds_without_requests": 60.0}, "ok", "Ready; no request in the last minute"),
        (
            {"seconds_without_requests": 60.0, "is_bypassed": True},
            "critical",
            "Engines compute, but no request has reached this picker for a minute: is it bypassed?",
        ),
        ({"states": {}}, "critical", "No endpoint is known: every request gets 503"),
        ({"states": {"gone": 2}}, "critical", "No endpoint is known: every request gets 503"),
        ({"states": {"unreachable": 1}}, "critical", "None of 1 endpoint is ready"),
        ({"error_share": 0.06}, "critical", "6% of the last minute's requests got an error from the picker"),
        ({"error_share": 0.05}, "ok", "Serving"),
        ({"states": {"ready": 4, "unreachable": 1}}, "warning", "1 endpoint unreachable"),
        ({"states": {"ready": 4, "ejected": 2}}, "warning", "2 endpoints ejected by passive health"),
        ({"states": {"ready": 2, "unreachable": 3}}, "critical", "3 endpoints unreachable"),
        ({"states": {"ready": 3, "unreachable": 3}}, "warning", "3 endpoints unreachable"),
        (
            {"failures": {"a/my.py:late": 1}},
            "warning",
            "my.py:late failed for 1 request of the last minute; PREFIX_CACHE chose",
        ),
        (
            {"failures": {"MINE": 12}},
            "warning",
            "MINE failed for 12 requests of the last minute; PREFIX_CACHE chose",
        ),
        ({"stale": 1}, "warning", "Metrics of 1 endpoint are older than 15 s or never came"),
    ],
)
def test_the_worst_comes_first(figures: dict[str, Any], level: str, text: str) -> None:
    first = notices(**(FINE | figures))[0]
    assert (first.level, first.text) == (level, text)


def test_all_that_is_wrong_is_told() -> None:
    found = notices(**(FINE | {"states": {"ready": 2, "ejected": 1, "unreachable": 1}, "stale": 1, "error_share": 0.5}))
    assert [notice.level for notice in found] == ["critical", "warning", "warning", "warning"]


def test_engines_that_compute_without_requests_are_bypassed() -> None:
    assert bypassed(computing=True, seconds_without_requests=60.0, waiting=0.0)
    assert not bypassed(computing=False, seconds_without_requests=60.0, waiting=0.0)
    assert not bypassed(computing=True, seconds_without_requests=59.0, waiting=0.0)
    assert not bypassed(computing=True, seconds_without_requests=60.0, waiting=1.0), "the engines begin that one"
