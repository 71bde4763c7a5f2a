"""Refusals as JSON bodies in the shape that the client's library expects."""

from __future__ import annotations

import json

from warmroute.errors import Refusal

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def refusal_body(refusal: Refusal, path: str = "") -> bytes:
    """The body (``application/json``) that tells a client of ``path`` why it was refused.

    Anthropic's shape for its Messages API, OpenAI's for everything else, with the status as ``code`` as vLLM does.
    """
    route = path.partition("?")[0].rstrip("/")
    error: dict[str, object]
    if route.endswith(("/v1/messages", "/v1/messages/count_tokens")):
        error = {"type": _ANTHROPIC_TYPES.get(refusal.status, "api_error"), "message": refusal.message}
        return json.dumps({"type": "error", "error": error}, separators=(",", ":")).encode()
    error = {"message": refusal.message, "type": refusal.kind, "param": refusal.param, "code": refusal.status}
    return json.dumps({"error": error}, separators=(",", ":")).encode()
