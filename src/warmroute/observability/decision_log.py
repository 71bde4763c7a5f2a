"""The decision log: a JSON line for each decision, and one for what was measured where responses are observed.

Its figures are exact, unlike those of the debug pages: a reader can tell which prompts are cached. It has no prompt
text.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from warmroute.observability.log_writer import LogWriter
from warmroute.observability.rotating_file import RotatingFile
from warmroute.routing.decision import Decision, Measurement
from warmroute.routing.decision_listener import DecisionListener
from warmroute.routing.decision_record import DecisionRecord

STDOUT = "stdout"
"""In place of a file's name: the process's standard output."""
MOST_CANDIDATES = 4
"""Candidates of a line: the chosen one and the next best. A line takes 0.1 to 0.2 ms of the thread (5 and 100 endpoints)."""

_Entry = DecisionRecord | tuple[str, str, float, Measurement]
"""A decision, or the id, the request's id and the time of one whose response was measured, and the measurement."""


class DecisionLog(DecisionListener):
    """Writes to ``target``, a file's name or :data:`STDOUT`, in a thread of its own.

    A file is rotated (:class:`RotatingFile`) at ``most_bytes``. If the thread cannot keep up, lines are dropped and
    counted. Raises ConfigurationError if the file cannot be opened. ``clock`` is the one that stamps decisions.
    """

    def __init__(self, target: str, most_bytes: int, *, clock: Callable[[], float]) -> None:
        self._file = None if target == STDOUT else RotatingFile(Path(target), most_bytes)
        self._clock = clock
        self._writer: LogWriter[_Entry] = LogWriter(
            self._line, self._file or sys.stdout, line_of_loss=lambda lines: _json({"dropped": lines})
        )

    @property
    def dropped(self) -> int:
        """Lines lost so far."""
        return self._writer.dropped

    def decided(self, decision: Decision, record: DecisionRecord) -> None:
        """Have the record written."""
        self._writer.add(record)

    def measured(self, decision: Decision) -> None:
        """Have the measurement written."""
        if decision.measurement is not None:
            self._writer.add((decision.id, decision.request_id, decision.at, decision.measurement))

    def close(self) -> None:
        """Write what waits, for a bounded time, and close the file."""
        written = self._writer.close()
        if self._file is not None and written:
            self._file.close()

    def _line(self, entry: _Entry) -> str:
        now = self._clock()
        if isinstance(entry, DecisionRecord):
            explained = entry.explain(now, MOST_CANDIDATES, exact=True, all_terms=False)
            del explained["seconds_ago"]
            return _json({"ts": _time(now, entry.at)} | explained)
        id, request_id, at, measured = entry
        return _json(
            {
                "ts": _time(now, at + measured.seconds),
                "decision": id,
                "request": request_id,
                "measured": {
                    "served": measured.served,
                    "status": measured.status,
                    "headers_ms": _milliseconds(measured.headers_seconds),
                    "end_ms": _milliseconds(measured.seconds),
                },
            }
        )


def _time(now: float, at: float) -> str:
    """UTC with milliseconds of the moment ``at`` of the clock that says ``now``."""
    moment = datetime.fromtimestamp(time.time() - (now - at), UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _json(data: dict[str, Any]) -> str:
    return orjson.dumps(data).decode()
