"""A decision: where a request goes and why."""

from __future__ import annotations

from dataclasses import dataclass

from warmroute.routing.sent_request import SentRequest


@dataclass(slots=True, kw_only=True)
class Decision(SentRequest):
    """Where a request goes and why. Its explanation is the :class:`~warmroute.routing.decision_record.DecisionRecord`."""

    targets: str
    """``ip:port``, or several separated by commas, best first: the value of the destination header."""
    strategy: str
    """The strategy that chose: the one in force, or the fallback where that failed."""
    reason: str
    """See :func:`reason_of`."""
    random_cached_tokens: float
    """Tokens of the prompt that a candidate chosen at random would hold: the mean over all candidates."""
    failed_strategy: str = ""
    """The strategy in force if it failed, else empty."""
    held_out: bool = False
    """``--holdout-strategy`` chose."""
    id: str = ""
    """Unique among the decisions of all pickers; empty without listeners."""
    request_id: str = ""
    """The gateway's ``x-request-id``; clients may choose it and it may be empty."""
    measurement: Measurement | None = None
    """What the gateway has shown of the response so far; only while responses are observed."""

    @property
    def match_ratio(self) -> float:
        """Share of the prompt that the endpoint probably holds."""
        return self.cached_tokens / self.prompt_tokens


@dataclass(slots=True)
class Measurement:
    """What the gateway showed of the response to a decision's request (``--observe-responses``)."""

    served: str = ""
    """``ip:port`` of the endpoint that served it; empty if the gateway does not report it."""
    status: int | None = None
    """HTTP status of the endpoint's response; None if none came."""
    headers_seconds: float | None = None
    """Seconds from the decision to the response's headers. A streaming engine sends them before the first token."""
    seconds: float = 0.0
    """Seconds from the decision to the end of the response."""


def reason_of(cached_tokens: float, *, best: float, threshold: float, has_prompt: bool, has_state: bool = False) -> str:
    """Why an endpoint was chosen that holds ``cached_tokens`` of the prompt.

    ``warm``: it holds more than ``threshold`` tokens; ``partial``: it holds some; ``spread``: another one holds more
    (``best``), but costs more or was left out; ``cold``: no endpoint holds any; ``no-prompt``: there was nothing to match;
    ``state``: it stores the state that the request continues (:mod:`warmroute.routing.state_keepers`).
    """
    if has_state:
        return "state"
    if not has_prompt:
        return "no-prompt"
    if cached_tokens > threshold:
        return "warm"
    if cached_tokens < best:
        return "spread"
    return "partial" if cached_tokens else "cold"
