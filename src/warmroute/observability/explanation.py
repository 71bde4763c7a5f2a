"""A decision's explanation as text for a terminal: the sentence, then a line for each candidate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from warmroute.routing.decision_record import duration, short_strategy

REASONS = {
    "warm": "the endpoint probably holds more than the threshold of the prompt in its KV cache",
    "partial": "the endpoint probably holds a part of the prompt in its KV cache",
    "spread": "another endpoint holds more of the prompt, but the strategy prefers this one",
    "cold": "no endpoint is known to hold {any} of the prompt",
    "no-prompt": "the request has no prompt to look for; load alone decided",
    "state": "the endpoint keeps the response, conversation or session that the request goes on with",
}
"""What each reason means, for one who reads it for the first time. ``{any}``: the least cached tokens that are shown."""
CACHE_TERMS = ("prefill", "evict", "delay", "pool_delay")
"""Terms of the cost that depend on the cached tokens."""
LEAST_TERM_MS = 0.05
"""Terms of the cost below this are not shown."""


def text(explained: Mapping[str, Any], *, decided: bool = True) -> str:
    """The text for an explanation as :meth:`DecisionRecord.explain
    <warmroute.routing.decision_record.DecisionRecord.explain>` gives it. ``decided``: it was made, and is no dry run.
    """
    step = explained.get("rounded_to", 1)  # decision logs of former versions have none: they are exact
    lines = [_head(explained, decided=decided), f"  {explained['sentence']}", *_reason(explained, step)]
    rows = [_row(endpoint) for endpoint in explained["endpoints"]]
    ttft, worth = "predicted TTFT", _worth_of(explained)
    if step > 1:
        ttft, worth = "TTFT at most", worth.replace("cost", "cost at most")
    lines += ["", *_table(("endpoint", "cached tokens", ttft, "waiting", "running", worth), rows)]
    more = explained["candidates"] - len(rows)
    if more > 0:
        lines.append(f"and {more} more")
    if step > 1:
        lines.append(f"Cached tokens are rounded down to a multiple of {step:,}; times may be less (docs/security.md).")
        costs = [endpoint["cost_ms"] for endpoint in explained["endpoints"] if "cost_ms" in endpoint]
        if costs and min(costs) < costs[0] and explained["reason"] != "state":
            lines.append(
                "An endpoint that shows a lower cost than the chosen one costs more or was left out (docs/cost.md)."
            )
    lines += _terms(explained, step)
    return "\n".join(lines)


def _reason(explained: Mapping[str, Any], step: int) -> Iterable[str]:
    reason = explained["reason"]
    if reason == "cold" and explained["prompt_tokens"] < step:
        yield f"  shorter than {step:,} tokens: too short to show whether it was cached; --decision-log shows it"
    elif reason in REASONS:
        least = f"{step:,} tokens or more" if step > 1 else "any"
        yield f"  {reason}: {REASONS[reason].format(any=least)}"


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
    if endpoint.get("left_out"):
        worth += ", left out"
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


def _terms(explained: Mapping[str, Any], step: int) -> Iterable[str]:
    """What the chosen endpoint's cost is made of, largest first; without the figures that rounding alone may have made."""
    chosen = explained["endpoints"][0]
    terms = {name: value for name, value in chosen.get("terms_ms", {}).items() if abs(value) >= LEAST_TERM_MS}
    unknown = []
    if explained["prompt_tokens"] - chosen["cached_tokens"] < step:
        unknown = [name for name in CACHE_TERMS if terms.pop(name, 0)]
    parts = [
        f"{name} {duration(value / 1000)}" for name, value in sorted(terms.items(), key=lambda term: -abs(term[1]))
    ]
    if unknown:
        parts.append(f"{' and '.join(unknown)} of fewer than {step:,} tokens")
    if parts:
        bound = ", at most" if step > 1 and terms.keys() & set(CACHE_TERMS) else ""
        yield ""
        yield f"its cost{bound}: {', '.join(parts)} (docs/cost.md)"
