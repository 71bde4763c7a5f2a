"""The decision log: a line for each decision, and nobody waits for it."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.factories import routing_constants
from warmroute import explain
from warmroute.observability import log_writer
from warmroute.observability.decision_log import MOST_CANDIDATES, STDOUT, DecisionLog
from warmroute.pool.endpoint import EndpointSpec
from warmroute.pool.pool import Pool
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.routing.decision import Decision
from warmroute.routing.router import Router

PROMPT = InferenceRequest(model="m", seed=b"m", parts=(PromptPart(b"x" * 5000, 5000),), prompt_bytes=5000)


def router(log: DecisionLog, endpoints: int = 2) -> Router:
    pool = Pool()
    pool.replace([EndpointSpec("ns", f"e{k}", f"10.0.0.{k}", 8000) for k in range(endpoints)], 0.0)
    return Router(pool, routing_constants(), rng=random.Random(1), now=0.0, listeners=(log,), name="p")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_decision_is_a_line_with_exact_figures(tmp_path: Path) -> None:
    log = DecisionLog(str(tmp_path / "log"), 1 << 20, clock=lambda: 2.0)
    routing = router(log, endpoints=20)
    routing.pick(PROMPT, 0.0, request_id="r1")
    routing.pick(PROMPT, 1.0, request_id="r2", traceparent=f"00-{5:032x}-{7:016x}-01")
    log.close()
    first, second = lines(tmp_path / "log")
    assert (first["decision"], first["request"], first["reason"]) == ("p-1", "r1", "cold")
    assert (second["decision"], second["request"], second["trace"]) == ("p-2", "r2", f"{5:032x}")
    assert second["reason"] == "warm"
    assert 1100 < second["cached_tokens"] < 1250
    assert second["cached_tokens"] % 1024
    assert second["sentence"].startswith(f"holds {second['cached_tokens']:,} of 1,250 tokens; ")
    assert len(second["endpoints"]) == MOST_CANDIDATES
    assert second["candidates"] == 20
    chosen, *others = second["endpoints"]
    assert chosen["cost_ms"] == pytest.approx(sum(chosen["terms_ms"].values()), abs=0.1)
    for endpoint in others:
        assert endpoint["cost_ms"] >= chosen["cost_ms"]
        assert endpoint["predicted_ttft_ms"] > chosen["predicted_ttft_ms"]
        assert "terms_ms" not in endpoint
    assert first["ts"][:-5] <= second["ts"][:-5]
    assert second["ts"].endswith("Z")
    assert "seconds_ago" not in second
    assert "xxxx" not in (tmp_path / "log").read_text()


def test_what_was_measured_is_a_line_of_its_own(tmp_path: Path) -> None:
    log = DecisionLog(str(tmp_path / "log"), 1 << 20, clock=lambda: 9.0)
    routing = router(log)
    decision = routing.pick(PROMPT, 1.0, request_id="r1")
    assert isinstance(decision, Decision)
    routing.opened(decision)
    routing.served(decision, "10.0.0.0:8000", 1.5)
    routing.responded(decision, 200, 1.5)
    routing.finished(decision, 3.0)
    log.close()
    decided, measured = lines(tmp_path / "log")
    assert (measured["decision"], measured["request"]) == (decided["decision"], "r1")
    assert measured["measured"] == {"served": "10.0.0.0:8000", "status": 200, "headers_ms": 500.0, "end_ms": 2000.0}


def test_the_file_is_rotated_between_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = DecisionLog(str(tmp_path / "log"), 1 << 16, clock=lambda: 9.0)
    routing = router(log)
    for k in range(200):
        routing.pick(PROMPT, float(k), request_id=f"r{k}")
        if not k % 20:
            log._writer.flush()
    log.close()
    requests = [line["request"] for name in ("log.2", "log.1", "log") for line in lines(tmp_path / name)]
    assert requests == [f"r{k}" for k in range(200 - len(requests), 200)]
    assert all(path.stat().st_size <= 1 << 16 for path in tmp_path.iterdir() if path.name != "log")


def test_a_log_that_is_not_written_blocks_nobody_and_the_lost_lines_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "FLUSH_SECONDS", 0.05)
    log = DecisionLog(str(tmp_path / "log"), 1 << 26, clock=lambda: 9.0)
    file, go_on, blocked = log._file, threading.Event(), threading.Event()
    assert file is not None
    write = file.write

    def slow(text: str) -> None:
        blocked.set()
        go_on.wait(60)
        write(text)

    monkeypatch.setattr(file, "write", slow)
    routing = router(log)
    routing.pick(PROMPT, 0.0, request_id="first")
    assert blocked.wait(60)
    for k in range(log_writer.MOST_WAITING + 7):
        routing.pick(PROMPT, 0.0, request_id=str(k))
    assert log.dropped == 7
    go_on.set()
    monkeypatch.setattr(log_writer, "FLUSH_SECONDS", 60)
    log.close()
    written = lines(tmp_path / "log")
    assert len(written) == log_writer.MOST_WAITING + 2
    assert written[-1] == {"dropped": 7}


def test_after_a_line_that_was_cut_the_next_begins_on_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk takes a part of a line. The others stay readable."""
    log = DecisionLog(str(tmp_path / "log"), 1 << 20, clock=lambda: 2.0)
    file = log._file
    assert file is not None
    write = file.write

    def cut(text: str) -> None:
        write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    routing = router(log)
    for request, how in (("before", write), ("cut", cut), ("lost", cut), ("after", write), ("last", write)):
        monkeypatch.setattr(file, "write", how)
        routing.pick(PROMPT, 0.0, request_id=request)
        assert log._writer.flush()
    log.close()
    assert log.dropped >= 2
    for request in ("before", "after", "last"):
        assert f"Request {request} went to" in explain.logged(request, [tmp_path / "log"])
    with pytest.raises(explain.UnknownDecisionError):
        explain.logged("cut", [tmp_path / "log"])


def test_the_log_may_be_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    log = DecisionLog(STDOUT, 1 << 20, clock=lambda: 2.0)
    router(log).pick(PROMPT, 0.0, request_id="r1")
    log.close()
    assert json.loads(capfd.readouterr().out)["request"] == "r1"
