"""``warmroute top``: what it shows, in wide and narrow terminals and in none."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import orjson
import pytest
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from warmroute import top
from warmroute.cli import app
from warmroute.errors import ConfigurationError
from warmroute.observability.live.feed import ENGINE_COLUMNS


def engine(name: str, **figures: Any) -> list[Any]:
    row: dict[str, Any] = {
        "endpoint": f"ns/{name}",
        "target": "10.0.0.1:8000",
        "engine": "vllm",
        "state": "ready",
        "waiting": 2.4,
        "running": 6.0,
        "engine_waiting": 2,
        "engine_running": 5,
        "queue_seconds": 0.25,
        "kv_usage": 0.5,
        "expected_hit_ratio": 0.8,
        "measured_hit_ratio": None,
        "picks_per_second": 3.0,
        "share_of_picks": 0.2,
        "restarts": 1,
        "scrape_age_seconds": 0.1,
        "slowness": 1.0,
    }
    row |= figures
    return [row[column] for column in ENGINE_COLUMNS]


def document(engines: list[list[Any]], **parts: Any) -> dict[str, Any]:
    return {
        "sample": 7,
        "uptime_seconds": 3700,
        "picker": {"version": "1.2.3", "strategy": "PREFIX_CACHE", "pool": "qwen"},
        "notices": [{"level": "warning", "text": "1 endpoint unreachable"}],
        "traffic": {
            "requests_per_second": 212.4,
            "errors_per_second": 0.0,
            "error_share": 0.0,
            "hit_ratio": 0.83,
            "random_hit_ratio": 0.21,
            "saved_tokens_per_second": 41_000.0,
            "predicted_ttft_seconds": 0.12,
            "held_out_ttft_seconds": 0.9,
            "pick_p99_seconds": 0.00031,
        },
        "states": {"ready": len(engines) - 1, "unreachable": 1},
        "engines": {"columns": list(ENGINE_COLUMNS), "rows": engines},
        "prefixes": [{"name": "3f7c1543", "tokens": 3100, "requests_per_second": 12.0, "holders": [0, 2]}],
        "decisions": [
            {"reason": "warm", "chosen": "ns/e1", "sentence": "holds at least 2,048 of 2,240 tokens; cost 142 ms"}
        ],
    } | parts


FEW = document([engine(f"e{k}") for k in range(5)])
MANY = document(
    [engine(f"e{k}", state="unreachable" if k == 77 else "ready", queue_seconds=k / 100) for k in range(100)]
)
HISTORY = {"seconds": 5, "in_flight": {"ns/e0": [0.0, 0.0, 4.0, 4.0, 8.0, 8.0]}, "requests_per_second": []}


def shown(
    live: dict[str, Any], *, width: int = 160, height: int | None = None, colour: bool = False, lost: str = ""
) -> str:
    output = io.StringIO()
    console = Console(
        file=output,
        width=width,
        height=height,
        highlight=False,
        force_terminal=colour,
        color_system="standard" if colour else None,
    )
    console.print(top.screen(live, HISTORY, width=width, height=height, lost=lost))
    return output.getvalue()


def test_it_shows_what_the_page_shows() -> None:
    text = shown(FEW)
    for part in (
        "Warmroute qwen · PREFIX_CACHE · 1.2.3 · up 1 h",
        "1 endpoint unreachable",
        "requests per second 212.4",
        "prompt tokens cached 83%",
        "at random 21%",
        "prefill tokens saved per second 41,000",
        "pick p99 0.3 ms",
        "engines ready 4 of 5",
        "predicted TTFT 120 ms, held out 900 ms",
        "2/2",
        "6/5",
        "250 ms",
        "████░░░░ 50%",
        "80%/-",
        "▁▅█",
        "3f7c1543",
        "2 of 5",
        "holds at least 2,048 of 2,240 tokens; cost 142 ms",
    ):
        assert part in text, part


def test_without_a_terminal_there_are_no_escape_codes() -> None:
    assert "\x1b" not in shown(FEW)
    assert "\x1b[" in shown(FEW, colour=True)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("live", [FEW, MANY])
def test_lines_fit_the_terminal(width: int, live: dict[str, Any]) -> None:
    lines = shown(live, width=width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert any("e1" in line and "ready" in line for line in lines)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 30), (160, 24), (160, 40), (200, 60)])
@pytest.mark.parametrize("live", [FEW, MANY])
def test_the_screen_fits_its_height(width: int, height: int, live: dict[str, Any]) -> None:
    assert len(shown(live, width=width, height=height).splitlines()) <= height


def test_the_worst_of_many_engines_come_first() -> None:
    lines = [line for line in shown(MANY, height=30).splitlines() if re.match(r"e\d", line)]
    assert [line.split()[0] for line in lines[:3]] == ["e77", "e99", "e98"]
    assert "more engines" in shown(MANY, height=30)
    assert "more engines" not in shown(MANY)


def test_names_that_others_chose_move_no_cursor() -> None:
    name = "a\x1b[2Jb\u202ec[bold]"
    decision = {"reason": "warm", "chosen": f"ns/{name}", "sentence": f"next best {name}"}
    text = shown(document([engine(name)], decisions=[decision]))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count(r"a\x1b[2Jb\u202ec[bold]") == 3


def test_old_figures_are_told() -> None:
    assert "no data: connection refused" in shown(FEW, lost="connection refused")


@contextmanager
def debug_port() -> Iterator[str]:
    """A server that answers as a picker's debug port."""
    pages = {"/debug/live": FEW, "/debug/live/history": HISTORY}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(orjson.dumps(pages[self.path.partition("?")[0]]))

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.integration
def test_once() -> None:
    with debug_port() as url:
        result = CliRunner().invoke(app, ["top", "--once", "--debug-url", url])
    assert result.exit_code == 0, result.output
    assert "holds at least" in result.output
    assert "\x1b" not in result.output


@pytest.mark.integration
def test_it_goes_on_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = []

    def sleep(time: float) -> None:
        seconds.append(time)
        if len(seconds) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("warmroute.top.time.sleep", sleep)
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich takes the output for a terminal
    with debug_port() as url:
        result = CliRunner().invoke(app, ["top", "--debug-url", url])
    assert result.exit_code == 0, result.output
    assert seconds == [1.0] * 3


@pytest.mark.integration
def test_without_a_terminal_it_is_printed_once_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(time: float) -> None:
        raise KeyboardInterrupt  # else it would go on for good where it should not have begun

    monkeypatch.setattr("warmroute.top.time.sleep", sleep)
    with debug_port() as url, pytest.raises(ConfigurationError, match="no terminal: give --once"):
        CliRunner().invoke(app, ["top", "--debug-url", url], catch_exceptions=False)
