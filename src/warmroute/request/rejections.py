"""Why the picker answers a request itself, and the JSON body of that answer in the format of the client's API."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a request gets an error from the picker instead of an endpoint.

    ``status`` is the HTTP status; ``kind`` OpenAI's error ``type``; ``message`` goes to the client; ``reason`` is the
    short machine-readable word of the header ``x-warmroute-dropped-reason`` and of the metrics' label;
    ``retry_after`` is in seconds (429 and 503 only).
    """

    status: int
    kind: str
    message: str
    reason: str
    param: str | None = None
    retry_after: int | None = None


def malformed(message: str, *, param: str | None = None, reason: str = "malformed") -> Rejection:
    """400: the body is not what the path requires."""
    return Rejection(400, "invalid_request_error", message, reason, param)


def unknown_model(model: str) -> Rejection:
    """404: no such model (only with ``--strict-models``)."""
    return Rejection(404, "NotFoundError", f"The model `{model}` does not exist.", "unknown-model", "model")


def timed_out(message: str) -> Rejection:
    """408: the request did not arrive in time."""
    return Rejection(408, "timeout_error", message, "body-timeout")


def body_too_large(limit: int) -> Rejection:
    """413: the body is longer than ``limit`` bytes."""
    return Rejection(413, "invalid_request_error", f"The request body is larger than {limit} bytes.", "body-too-large")


def too_many_values(limit: int) -> Rejection:
    """413: the JSON body has more than ``limit`` values."""
    message = f"The request body has more than {limit} JSON values (an object or a list counts as 4, a key as 2)."
    return Rejection(413, "invalid_request_error", message, "too-many-values")


def too_much_memory() -> Rejection:
    """413: reading the body would take more memory than ``--body-memory``, the limit of all bodies together."""
    return Rejection(413, "invalid_request_error", "The request body takes too much memory to read.", "body-too-large")


def shed(message: str) -> Rejection:
    """429: the pool is saturated and the request may be dropped."""
    return Rejection(429, "rate_limit_error", message, "saturated", retry_after=1)


def no_endpoint(message: str, *, reason: str = "no-endpoints") -> Rejection:
    """503: nothing to route to."""
    return Rejection(503, "service_unavailable", message, reason, retry_after=1)


def overloaded(message: str) -> Rejection:
    """503: the picker has no memory left for another request body."""
    return Rejection(503, "service_unavailable", message, "overloaded", retry_after=1)


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def rejection_body(rejection: Rejection, path: str = "") -> bytes:
    """The JSON body of the rejection for a client of ``path``.

    Anthropic's format for its Messages API, OpenAI's for everything else, with the status as ``code`` as vLLM does.
    """
    route = path.partition("?")[0].rstrip("/")
    error: dict[str, object]
    if route.endswith(("/v1/messages", "/v1/messages/count_tokens")):
        error = {"type": _ANTHROPIC_TYPES.get(rejection.status, "api_error"), "message": rejection.message}
        return json.dumps({"type": "error", "error": error}, separators=(",", ":")).encode()
    error = {"message": rejection.message, "type": rejection.kind, "param": rejection.param, "code": rejection.status}
    return json.dumps({"error": error}, separators=(",", ":")).encode()
