"""A decision's explanation as text for a terminal: the sentence, then a line for each candidate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from warmroute.routing.decision_record import CACHED_STEP, duration, short_strategy

REASONS = {
    "warm": "the endpoint probably holds more than the threshold of the prompt in its KV cache",
    "partial": "the endpoint probably holds a part of the prompt in its KV cache",
    "spread": "another endpoint holds more of the prompt, but the strategy prefers this one",
    "cold": "no endpoint is known to hold {any} of the prompt",
    "no-prompt": "the request has no prompt to look for; load alone decided",
    "state": "the endpoint keeps the response, conversation or session that the request goes on with",
}
"""What each reason means, for one who reads it for the first time. ``{any}``: the least cached tokens that are shown."""
LEAST_TERM_MS = 0.05
"""Terms of the cost below this are not shown."""


def text(explained: Mapping[str, Any], *, decided: bool = True, exact: bool = False) -> str:
    """The text for an explanation as :meth:`DecisionRecord.explain
    <warmroute.routing.decision_record.DecisionRecord.explain>` gives it. ``decided``: it was made, and is no dry run.
    ``exact``: its cached tokens are, as in a decision log."""
    lines = [_head(explained, decided=decided), f"  {explained['sentence']}"]
    meaning = REASONS.get(explained["reason"])
    if meaning is not None:
        least = "any" if exact else f"{CACHED_STEP:,} tokens or more"
        lines.append(f"  {explained['reason']}: {meaning.format(any=least)}")
    rows = [_row(endpoint) for endpoint in explained["endpoints"]]
    head = ("endpoint", "cached tokens", "predicted TTFT", "waiting", "running", _worth_of(explained))
    lines += ["", *_table(head, rows)]
    more = explained["candidates"] - len(rows)
    if more > 0:
        lines.append(f"and {more} more")
    lines += _terms(explained["endpoints"][0])
    return "\n".join(lines)


def _head(explained: Mapping[str, Any], *, decided: bool) -> str:
    chosen = f"{explained['chosen']} ({explained['targets']})"
    if not decided:
        return f"It would go to {chosen}."
    when = f"{duration(explained['seconds_ago'])} ago" if "seconds_ago" in explained else f"at {explained['ts']}"
    request = explained["request"] or f"(decision {explained['decision']})"
    return f"Request {request} went to {chosen}, {when}."


def _worth_of(explained: Mapping[str, Any]) -> str:
    return "cost" if "cost_ms" in explained["endpoints"][0] else f"value of {short_strategy(explained['strategy'])}"


def _row(endpoint: Mapping[str, Any]) -> Sequence[str]:
    if "cost_ms" in endpoint:
        worth = duration(endpoint["cost_ms"] / 1000)
    else:  # a custom strategy may give infinity, which JSON does not have
        worth = "infinite" if endpoint["value"] is None else f"{endpoint['value']:g}"
    state = endpoint.get("state", "ready")  # decision logs of former versions have none
    return (
        endpoint["endpoint"] if state == "ready" else f"{endpoint['endpoint']}, {state}",
        f"{endpoint['cached_tokens']:,}",
        duration(endpoint["predicted_ttft_ms"] / 1000),
        f"{endpoint['waiting']:g}",
        f"{endpoint['running']:g}",
        worth,
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        (name, width), *others = zip(row, widths, strict=True)
        yield "  ".join((name.ljust(width), *(cell.rjust(width) for cell, width in others)))


def _terms(chosen: Mapping[str, Any]) -> Iterable[str]:
    """What the chosen endpoint's cost is made of, largest first."""
    terms = {name: value for name, value in chosen.get("terms_ms", {}).items() if abs(value) >= LEAST_TERM_MS}
    if terms:
        parts = sorted(terms.items(), key=lambda term: -abs(term[1]))
        yield ""
        yield f"its cost: {', '.join(f'{name} {duration(value / 1000)}' for name, value in parts)} (docs/cost.md)"
