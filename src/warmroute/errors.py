"""The errors of Warmroute: one small hierarchy.

What is ordinary on the request path (a malformed body, no endpoint, a shed request) is a value, not an exception:
:class:`Refusal`. Exceptions are for start-up and for broken peers.
"""

from __future__ import annotations

from dataclasses import dataclass


class WarmrouteError(Exception):
    """Base of every error that Warmroute raises on purpose."""


class ConfigurationError(WarmrouteError):
    """A setting, a file or a manifest is wrong; the message tells which and why, and is fit to show to a user."""


class ProtocolError(WarmrouteError):
    """The proxy sent messages in an order that the ext_proc protocol does not allow."""


class ScrapeError(WarmrouteError):
    """A metrics page of one engine could not be had or not be read."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request gets an answer from the picker instead of an endpoint.

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


def malformed(message: str, *, param: str | None = None, reason: str = "malformed") -> Refusal:
    """400: the body cannot be what the path asks for."""
    return Refusal(400, "invalid_request_error", message, reason, param)


def unknown_model(model: str) -> Refusal:
    """404: no such model (only with ``--strict-models``)."""
    return Refusal(404, "NotFoundError", f"The model `{model}` does not exist.", "unknown-model", "model")


def timed_out(message: str) -> Refusal:
    """408: the request did not arrive in time."""
    return Refusal(408, "timeout_error", message, "body-timeout")


def body_too_large(limit: int) -> Refusal:
    """413: the body is longer than ``limit`` bytes."""
    return Refusal(413, "invalid_request_error", f"The request body is larger than {limit} bytes.", "body-too-large")


def shed(message: str, *, retry_after: int = 1) -> Refusal:
    """429: the pool is saturated and the request may be dropped."""
    return Refusal(429, "rate_limit_error", message, "saturated", retry_after=retry_after)


def no_endpoint(message: str, *, reason: str = "no-endpoints", retry_after: int = 1) -> Refusal:
    """503: nothing to route to."""
    return Refusal(503, "service_unavailable", message, reason, retry_after=retry_after)
