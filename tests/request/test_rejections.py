"""What a refused client reads."""

from __future__ import annotations

import json

from warmroute.request import rejections
from warmroute.request.rejections import rejection_body


def test_openai_shape() -> None:
    body = rejection_body(rejections.malformed('no "model"', param="model"), "/v1/chat/completions")
    assert json.loads(body) == {
        "error": {"message": 'no "model"', "type": "invalid_request_error", "param": "model", "code": 400}
    }


def test_anthropic_shape() -> None:
    for path in ("/v1/messages", "/team/v1/messages?beta=true", "/v1/messages/count_tokens"):
        body = rejection_body(rejections.no_endpoint("No replica is ready."), path)
        assert json.loads(body) == {
            "type": "error",
            "error": {"type": "overloaded_error", "message": "No replica is ready."},
        }
    assert (
        json.loads(rejection_body(rejections.body_too_large(5), "/v1/messages"))["error"]["type"] == "request_too_large"
    )


def test_any_message_can_be_said() -> None:
    assert json.loads(rejection_body(rejections.unknown_model("a\ud800b")))["error"]["code"] == 404


def test_an_overloaded_picker_says_when_to_come_again() -> None:
    refused = rejections.overloaded("Too many large bodies.")
    assert (refused.status, refused.reason, refused.retry_after) == (503, "overloaded", 1)
