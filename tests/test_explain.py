"""`warmroute explain`: what it prints, from a debug port and from a decision log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from warmroute import explain, http_client
from warmroute.cli import app
from warmroute.errors import ConfigurationError
from warmroute.observability import explanation
from warmroute.observability.debug_client import DebugPortError, ask

DECISION: dict[str, Any] = {
    "decision": "p-7",
    "request": "r1",
    "trace": "",
    "seconds_ago": 3.21,
    "model": "m",
    "strategy": "PREFIX_CACHE",
    "reason": "warm",
    "chosen": "ns/vllm-1",
    "targets": "10.0.0.1:8000",
    "sentence": "holds at least 2,048 of 2,240 tokens; cost 142 ms; next best vllm-2: 2.4 s",
    "prompt_tokens": 2240,
    "cached_tokens": 2048,
    "predicted_ttft_ms": 20.0,
    "candidates": 3,
    "endpoints": [
        {
            "endpoint": "ns/vllm-1",
            "cached_tokens": 2048,
            "predicted_ttft_ms": 20.0,
            "waiting": 1.0,
            "running": 2.0,
            "cost_ms": 142.0,
            "terms_ms": {"wait": 0.0, "prefill": 20.0, "delay": 122.0},
        },
        {
            "endpoint": "ns/vllm-2",
            "cached_tokens": 0,
            "predicted_ttft_ms": 900.0,
            "waiting": 0.0,
            "running": 0.0,
            "cost_ms": 2400.0,
            "terms_ms": {"prefill": 2400.0},
        },
    ],
}


def test_the_text_of_a_decision() -> None:
    assert explanation.text(DECISION) == (
        "Request r1 went to ns/vllm-1 (10.0.0.1:8000), 3.2 s ago.\n"
        "  holds at least 2,048 of 2,240 tokens; cost 142 ms; next best vllm-2: 2.4 s\n"
        "  warm: the endpoint probably holds more than the threshold of the prompt in its KV cache\n"
        "\n"
        "endpoint   cached tokens  predicted TTFT  waiting  running    cost\n"
        "ns/vllm-1          2,048           20 ms        1        2  142 ms\n"
        "ns/vllm-2              0          900 ms        0        0   2.4 s\n"
        "and 1 more\n"
        "\n"
        "its cost: delay 122 ms, prefill 20 ms (docs/cost.md)"
    )


def test_the_text_of_rounded_figures_says_at_most_and_why_a_loser_may_show_less() -> None:
    chosen, loser = DECISION["endpoints"]
    cheaper = loser | {"cost_ms": 130.0, "terms_ms": {"prefill": 130.0}}
    rounded = DECISION | {"rounded_to": 1024, "endpoints": [chosen, cheaper]}
    assert explanation.text(rounded).partition("\n\n")[2] == (
        "endpoint   cached tokens  TTFT at most  waiting  running  cost at most\n"
        "ns/vllm-1          2,048         20 ms        1        2        142 ms\n"
        "ns/vllm-2              0        900 ms        0        0        130 ms\n"
        "and 1 more\n"
        "Cached tokens are rounded down to a multiple of 1,024; times may be less (docs/security.md).\n"
        "An endpoint that shows a lower cost than the chosen one costs more or was left out (docs/cost.md).\n"
        "\n"
        "its cost: prefill and delay of fewer than 1,024 tokens (docs/cost.md)"
    )
    assert "was left out" not in explanation.text(rounded | {"endpoints": [chosen, loser]})
    queued = [chosen | {"terms_ms": {"pool_delay": 142.0}}, loser]
    assert explanation.text(rounded | {"endpoints": queued}).endswith(
        "its cost: pool_delay of fewer than 1,024 tokens (docs/cost.md)"
    )
    longer = rounded | {"prompt_tokens": 9000}
    assert explanation.text(longer).endswith("its cost, at most: delay 122 ms, prefill 20 ms (docs/cost.md)")


def test_the_text_says_which_endpoints_were_left_out() -> None:
    chosen, loser = DECISION["endpoints"]
    left_out = DECISION | {"endpoints": [chosen | {"left_out": False}, loser | {"cost_ms": 100.0, "left_out": True}]}
    assert [line.rpartition("  ")[2] for line in explanation.text(left_out).splitlines()[5:7]] == [
        "142 ms",
        "100 ms, left out",
    ]
    assert "costs more or was left out" not in explanation.text(left_out)


def test_where_state_decided_the_chosen_endpoint_may_be_the_dearer_one() -> None:
    chosen, loser = DECISION["endpoints"]
    decision = DECISION | {"rounded_to": 1024, "reason": "state", "endpoints": [chosen, loser | {"cost_ms": 1.0}]}
    assert [line.split()[-2] for line in explanation.text(decision).splitlines()[5:7]] == ["142", "1.0"]
    assert "was left out" not in explanation.text(decision)


def test_a_prompt_below_the_rounding_step_is_not_called_cold() -> None:
    short = DECISION | {"rounded_to": 1024, "reason": "cold", "prompt_tokens": 217}
    text = explanation.text(short)
    assert "  shorter than 1,024 tokens: too short to show whether it was cached; --decision-log shows it\n" in text
    assert "cold" not in text


def test_the_text_of_a_dry_run_and_of_another_strategy() -> None:
    endpoints = [
        {key: value for key, value in endpoint.items() if key not in ("cost_ms", "terms_ms")} | {"value": 3.0}
        for endpoint in DECISION["endpoints"]
    ]
    text = explanation.text(DECISION | {"strategy": "MINE", "endpoints": endpoints}, decided=False)
    assert text.startswith("It would go to ns/vllm-1 (10.0.0.1:8000).\n")
    assert "value of MINE" in text
    endpoints[1]["value"] = None
    assert explanation.text(DECISION | {"strategy": "MINE", "endpoints": endpoints}).endswith("infinite\nand 1 more")
    assert "its cost" not in text


def test_what_cold_means_depends_on_where_the_figures_come_from(tmp_path: Path) -> None:
    cold = DECISION | {"reason": "cold"}
    page = cold | {"rounded_to": 1024}
    assert "  cold: no endpoint is known to hold 1,024 tokens or more of the prompt\n" in explanation.text(page)
    (tmp_path / "log").write_text(json.dumps(cold | {"ts": "2026-11-28T10:00:00.000Z"}))
    assert "  cold: no endpoint is known to hold any of the prompt\n" in explain.logged("r1", [tmp_path / "log"])


def test_endpoints_that_are_not_ready_are_marked() -> None:
    endpoints = [endpoint | {"state": "unreachable"} for endpoint in DECISION["endpoints"]]
    endpoints[1]["state"] = "ready"
    text = explanation.text(DECISION | {"endpoints": endpoints})
    assert "\nns/vllm-1, unreachable          2,048 " in text
    assert "\nns/vllm-2                           0 " in text


@pytest.mark.parametrize("reason", ["warm", "partial", "spread", "cold", "no-prompt", "state"])
def test_every_reason_is_explained(reason: str) -> None:
    assert f"  {reason}: " in explanation.text(DECISION | {"reason": reason})


def test_a_decision_is_found_in_a_log(tmp_path: Path) -> None:
    logged = {key: value for key, value in DECISION.items() if key != "seconds_ago"} | {
        "ts": "2026-11-28T10:00:00.000Z"
    }
    measured = {
        "decision": "p-7",
        "request": "r1",
        "measured": {"served": "10.0.0.1:8000", "status": 200, "end_ms": 1234.5},
    }
    other = logged | {"request": "r10"}
    (tmp_path / "log").write_text(
        "".join(json.dumps(line) + "\n" for line in (other, logged, measured)) + '{"request": "r1'
    )
    text = explain.logged("r1", [tmp_path / "log"])
    assert text.count("went to") == 1
    assert "at 2026-11-28T10:00:00.000Z." in text
    assert text.endswith("measured: status 200 from 10.0.0.1:8000, ended after 1,234 ms")
    assert json.loads(explain.logged("r1", [tmp_path / "log"], as_json=True)) == [logged, measured]
    warm = {"level": "INFO", "msg": "Do prefix-aware routing!", "request": "r1", "matching ratio": " 0.54 > 0.50"}
    deep = '{"request": "r1", "a": ' + "[" * 100_000
    (tmp_path / "output").write_text("".join(f"{line}\n" for line in (json.dumps(warm), deep, json.dumps(logged))))
    assert explain.logged("r1", [tmp_path / "output"]).count("went to") == 1
    unseen = measured | {"measured": {"served": "", "status": None, "end_ms": 80.0}}
    (tmp_path / "log").write_text(f"{json.dumps(logged)}\n{json.dumps(unseen)}\n")
    assert explain.logged("r1", [tmp_path / "log"]).endswith(
        "measured: no response headers from the gateway; ended after 80 ms"
    )
    with pytest.raises(explain.UnknownDecisionError, match="no request 'r9' in "):
        explain.logged("r9", [tmp_path / "log"])
    with pytest.raises(ConfigurationError, match="cannot read"):
        explain.logged("r9", [tmp_path / "missing"])
    (tmp_path / "log-2").write_text(f"{json.dumps(other)}\n")
    assert explain.logged("r10", [tmp_path / "log", tmp_path / "log-2"]).count("went to") == 1
    earlier = logged | {"ts": "2026-11-28T09:00:00.000Z"}
    (tmp_path / "log-2").write_text(f"{json.dumps(earlier)}\n")
    both = json.loads(explain.logged("r1", [tmp_path / "log", tmp_path / "log-2"], as_json=True))
    assert [entry.get("ts", "") for entry in both[:2]] == [earlier["ts"], logged["ts"]]


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_dry_run_that_is_rejected_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    answer: dict[str, Any] = {"rejected": {"status": 400, "reason": "malformed", "message": "The body is no JSON."}}
    monkeypatch.setattr(explain, "ask", lambda *_, **__: answer)
    (tmp_path / "body").write_text("{")
    arguments = ["explain", "--body", str(tmp_path / "body"), *flags]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "malformed" in done.stdout
    assert "The body is no JSON." in done.stdout
    answer = DECISION
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert "ns/vllm-1" in done.stdout


def test_the_body_of_a_dry_run_may_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[bytes] = []

    def answer(*_: object, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        bodies.append(body)
        return DECISION

    monkeypatch.setattr(explain, "ask", answer)
    assert CliRunner().invoke(app, ["explain", "--body", "-"], input='{"model": "m"}').exit_code == 0
    assert bodies == [b'{"model": "m"}']


def test_a_dry_run_may_have_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For strategies that look at them, and for the session."""
    sent: list[Mapping[str, str]] = []

    def answer(*_: object, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        sent.append(headers)
        return DECISION

    monkeypatch.setattr(explain, "ask", answer)
    arguments = ["explain", "--body", "-", "-H", "X-Tier: premium", "--header", "x-session-id:a:b"]
    assert CliRunner().invoke(app, arguments, input="{}").exit_code == 0
    assert sent == [{"content-type": "application/json", "x-tier": "premium", "x-session-id": "a:b"}]


@pytest.mark.parametrize("header", ["premium", ": premium", "x tier: a", "x-tier: \u20ac", "x-tier: a\nb: c"])
def test_a_header_that_none_can_send_is_an_error(header: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--header '.*' is not NAME: VALUE"):
        CliRunner().invoke(app, ["explain", "--body", "-", "-H", header], input="{}", catch_exceptions=False)


def test_headers_are_of_a_dry_run() -> None:
    with pytest.raises(ConfigurationError, match="--header goes with --body"):
        CliRunner().invoke(app, ["explain", "r1", "-H", "a: b"], catch_exceptions=False)


@pytest.mark.integration
def test_a_port_where_nobody_listens_is_one_line() -> None:
    with pytest.raises(DebugPortError, match=r"no picker's debug port at http://127.0.0.1:1 \(.*Connection refused\)"):
        ask("http://127.0.0.1:1", "/debug/decisions", {})
    with pytest.raises(DebugPortError, match="is not a URL like http"):
        ask("file:///etc/passwd", "", {})


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"detail": "Not Found"}'),
        (404, b'{"error": "Not Found", "path": "/debug/decisions"}'),  # the picker's metrics port
        (503, b'{"error": {"message": "No endpoint is ready."}}'),
        (404, b"no JSON"),
        (200, b"no JSON"),
    ],
)
def test_a_port_that_is_no_debug_port_is_told(monkeypatch: pytest.MonkeyPatch, status: int, body: bytes) -> None:
    monkeypatch.setattr(http_client, "exchange", lambda *_, **__: http_client.Answer(status, body))
    said = rf"http://127.0.0.1:8081 is not a picker's debug port \(it answers {status}\); the default is http://127.0.0.1:9091"
    with pytest.raises(DebugPortError, match=said):
        ask("http://127.0.0.1:8081", "/debug/decisions", {})


def test_what_the_debug_port_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = http_client.Answer(400, b'{"error": "limit must be at most 100"}')
    monkeypatch.setattr(http_client, "exchange", lambda *_, **__: answer)
    with pytest.raises(DebugPortError, match=r"answers 400: limit must be at most 100$"):
        ask("http://127.0.0.1:9091", "/debug/decisions", {})


def test_a_debug_url_needs_no_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def exchange(url: str) -> http_client.Answer:
        asked.append(url)
        return http_client.Answer(200, b"[]")

    monkeypatch.setattr(http_client, "exchange", exchange)
    assert ask("127.0.0.1:9091", "/debug/decisions", {"limit": 1}) == []
    assert asked == ["http://127.0.0.1:9091/debug/decisions?limit=1"]
    monkeypatch.undo()
    with pytest.raises(DebugPortError, match="is not a URL like http"):
        ask("https://127.0.0.1:9091", "", {})
