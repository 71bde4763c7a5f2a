"""`warmroute explain`: explanations of decisions from a debug port or a decision log, as text."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from warmroute.errors import ConfigurationError, WarmrouteError
from warmroute.observability import explanation
from warmroute.observability.debug_client import DebugPortError, ask

MOST_CANDIDATES = 10
"""Candidates that are shown: the chosen one and the next best."""
MOST_DECISIONS = 10
"""Decisions of one request id that are shown: retries of clients may repeat it."""
STANDARD_INPUT = Path("-")
"""In place of a file's name."""
HEADER = re.compile(r"([\w!#$%&'*+.^`|~-]+): *([\x20-\x7e]*)", re.ASCII)
"""A header as curl takes it."""
LONGEST_LINE = 1 << 20
"""Bytes of a decision log's line that are read."""


class UnknownDecisionError(WarmrouteError):
    """There is no such decision; the message says where it was looked for."""


def remembered(request_id: str, debug_urls: Sequence[str], *, as_json: bool = False) -> str:
    """Why the request went where it went, as the pickers with these debug ports remember it.

    Raises UnknownDecisionError, and DebugPortError if a picker cannot be asked and no other one remembers the request.
    """
    query: dict[str, str | int] = {"request": request_id, "candidates": MOST_CANDIDATES, "limit": MOST_DECISIONS}
    found: list[Any] = []
    failures: list[DebugPortError] = []
    for url in debug_urls:
        try:
            found += ask(url, "/debug/decisions", query)
        except DebugPortError as error:
            failures.append(error)
    if not found:
        if failures:
            raise failures[0]
        raise UnknownDecisionError(
            f"no picker at {' or '.join(debug_urls)} remembers a request {request_id!r}: each keeps its own last "
            "--debug-decisions requests, without those that it rejected; --debug-url names another picker"
        )
    return _json(found) if as_json else _text(found)


def dry_run(
    body: Path, path: str, debug_url: str, *, headers: Sequence[str] = (), as_json: bool = False
) -> tuple[str, bool]:
    """Where a request with the body in a file would go, and whether it would be routed at all: it may be rejected.

    ``headers`` are the request's, each as ``NAME: VALUE``. Raises ConfigurationError, DebugPortError.
    """
    sent = {"content-type": "application/json"} | dict(map(_header, headers))
    try:
        content = sys.stdin.buffer.read() if body == STANDARD_INPUT else body.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {body}: {error.strerror}") from error
    query: dict[str, str | int] = {"path": path, "candidates": MOST_CANDIDATES}
    explained = ask(debug_url, "/debug/explain", query, body=content, headers=sent)
    rejected = explained.get("rejected")
    if as_json:
        text = _json(explained)
    elif rejected:
        text = f"It would be rejected: {rejected['status']} {rejected['reason']}: {rejected['message']}"
    else:
        text = explanation.text(explained, decided=False)
    return text, not rejected


def _header(text: str) -> tuple[str, str]:
    """Name, in lower case, and value."""
    match = HEADER.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"--header {text!r} is not NAME: VALUE")
    return match[1].lower(), match[2]


def logged(request_id: str, decision_logs: Sequence[Path], *, as_json: bool = False) -> str:
    """Why the request went where it went, by the pickers' decision logs. Raises UnknownDecisionError, ConfigurationError."""
    entries = [entry for decision_log in decision_logs for entry in _entries(decision_log, request_id)]
    entries.sort(key=lambda entry: str(entry.get("ts", "")))
    decisions = [entry for entry in entries if "measured" not in entry]
    measured = [entry for entry in entries if "measured" in entry]
    if not decisions:
        where = ", ".join(map(str, decision_logs))
        raise UnknownDecisionError(f"no request {request_id!r} in {where}; each picker writes a file of its own")
    if as_json:
        return _json(decisions[-MOST_DECISIONS:] + measured[-MOST_DECISIONS:])
    text = _text(decisions[-MOST_DECISIONS:])
    for entry in measured[-MOST_DECISIONS:]:
        text += f"\nmeasured: {_measured(entry['measured'])}"
    return text


def _measured(was: dict[str, Any]) -> str:
    end = f"ended after {was['end_ms']:,.0f} ms"
    if was["status"] is None:
        return f"no response headers from the gateway; {end}"
    served = f" from {was['served']}" if was["served"] else ""
    return f"status {was['status']}{served}, {end}"


def _entries(decision_log: Path, request_id: str) -> Iterator[dict[str, Any]]:
    """The lines of a decision log for a request. Raises ConfigurationError."""
    wanted = json.dumps(request_id, ensure_ascii=False).encode()
    try:
        with decision_log.open("rb") as lines:
            while line := lines.readline(LONGEST_LINE):
                entry = _entry(line) if wanted in line else {}
                if entry.get("request") == request_id:
                    yield entry
    except OSError as error:
        raise ConfigurationError(f"cannot read {decision_log}: {error.strerror}") from error


def _entry(line: bytes) -> dict[str, Any]:
    """The decision or measurement in a line; empty for others: `--decision-log=stdout` may share a file with the log."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # cut off
        return {}
    return entry if isinstance(entry, dict) and ("endpoints" in entry or "measured" in entry) else {}


def _text(decisions: list[Any]) -> str:
    return "\n\n".join(explanation.text(decision) for decision in decisions)


def _json(data: object) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)
