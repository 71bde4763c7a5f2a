"""Custom strategies: where they come from, what they see, and what happens when they fail."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from tests.factories import routing_constants
from tests.routing.test_router import LONG, Fixture, only, prompt
from warmroute.errors import ConfigurationError
from warmroute.picker import EndpointPicker
from warmroute.pool.endpoint import EndpointSpec
from warmroute.routing import strategies
from warmroute.routing.decision import Decision
from warmroute.routing.router import FAILURE_LOG_INTERVAL
from warmroute.settings import Settings

EXAMPLES = Path(__file__).parents[2] / "examples" / "strategies"


def written(tmp_path: Path, code: str) -> str:
    """The name of a strategy ``choose`` in a file with this code."""
    file = tmp_path / "mine.py"
    file.write_text(code)
    return f"{file}:choose"


def find(name: str) -> strategies.Strategy:
    return strategies.find(name, rng=random.Random(1))


HEAD = "def choose(request, candidates):\n    "
FIRST = HEAD + "return range(len(candidates))\n"


def test_a_function_in_a_file_decides_and_shows_its_own_values(tmp_path: Path) -> None:
    name = written(tmp_path, FIRST)
    fixture = Fixture(3, routing_strategy=name)
    assert [fixture.pick(prompt(LONG, str(k)), 0.0) for k in range(3)] == ["0", "0", "0"]
    record = fixture.decisions.newest_first()[0]
    assert record.sentence().endswith("; mine.py:choose gives it 0; next best 1: 1"), "without its directory"
    assert [endpoint["value"] for endpoint in record.explain(0.0, 5)["endpoints"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("choose = 3", "is not a function"),
        ("def other(): ...", r"mine\.py has no function choose$"),
        ("1/0", r"cannot be loaded: ZeroDivisionError: division by zero \(mine.py, line 1\)$"),
        ("def choose(", r"cannot be loaded: SyntaxError: '\(' was never closed \(mine.py, line 1\)$"),
        ("import sys\nsys.exit(1)", r"cannot be loaded: SystemExit: 1 \(mine.py, line 2\)$"),
        (
            "def choose(request, candidates):\n    return request.nothing",
            r"sample request: AttributeError: .*\(mine.py, line 2\)$",
        ),
        (
            "def choose(request, candidates):\n    yield 1.0\n    yield request.nothing",
            r"sample request: AttributeError: .*\(mine.py, line 3\)$",
        ),
        ("def choose(request):\n    return [1.0]", r"TypeError: choose\(\) takes 1 positional .* were given$"),
        (HEAD + "return [1.0]", "sample request: it returned 1 value for 2 candidates$"),
        (HEAD + "return [float('nan')] * 2", "sample request: it returned a value that is not a number: NaN$"),
        (HEAD + "return [None] * 2", "sample request: it returned None for a candidate, not a number$"),
        (HEAD + "return ['1', '2']", "sample request: it returned a value of type str for a candidate, not a number$"),
        (HEAD + "return None", "sample request: it returned None, not a list of numbers$"),
        (HEAD + "return 1.0", "sample request: it returned a value of type float, not a list of numbers$"),
        (HEAD + "return '12'", "sample request: it returned a value of type str, not a list of numbers$"),
        (HEAD + "raise SystemExit", "sample request: it raised SystemExit$"),
        ("async " + HEAD + "return [1.0] * 2", "sample request: it is an async function; an ordinary one is needed$"),
    ],
)
def test_a_strategy_that_cannot_work_is_refused_by_its_name(tmp_path: Path, code: str, complaint: str) -> None:
    name = written(tmp_path, code)
    with pytest.raises(ConfigurationError, match=rf"(?s)the routing strategy '{name}'.* {complaint}"):
        find(name)


def test_a_file_that_is_not_there_or_without_a_function_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no file nowhere\.py"):
        find("nowhere.py:choose")
    with pytest.raises(ConfigurationError, match=r"names no function: nowhere\.py:FUNCTION"):
        find("nowhere.py")
    with pytest.raises(ConfigurationError, match=r"known are PREFIX_CACHE, .*FILE\.py:FUNCTION"):
        find("nowhere")


def test_a_file_may_have_dataclasses(tmp_path: Path) -> None:
    code = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
    find(written(tmp_path, code + FIRST))


# ---------------------------------------------------------------- failures while it serves

SOMETIMES = """
def choose(request, candidates):
    if request.model == "bad":
        raise KeyError("x")
    if request.model == "short":
        return [1.0]
    if request.model == "nan":
        return [float("nan")] * len(candidates)
    if request.model == "exit":
        raise SystemExit(1)
    if request.model == "cancelled":
        import asyncio
        raise asyncio.CancelledError
    if request.model == "clears":
        candidates.clear()
        return []
    return [0.0] * len(candidates)
"""


def test_a_name_without_a_function_says_what_is_missing(tmp_path: Path) -> None:
    file = written(tmp_path, FIRST).removesuffix(":choose")
    for name in (file, f"{file}:"):
        with pytest.raises(ConfigurationError, match=rf"names no function: {file}:FUNCTION$"):
            find(name)


@pytest.mark.parametrize("model", ["bad", "short", "nan", "exit", "cancelled", "clears"])
def test_where_a_strategy_fails_prefix_cache_chooses(tmp_path: Path, model: str) -> None:
    name = written(tmp_path, SOMETIMES)
    fixture, plain = Fixture(3, routing_strategy=name), Fixture(3)
    for k in range(4):
        text = LONG if k % 2 else LONG[::-1]
        decision = fixture.router.pick(prompt(text, model=model), float(k))
        assert isinstance(decision, Decision)
        assert (decision.strategy, decision.failed_strategy) == ("PREFIX_CACHE", name)
        assert decision.endpoint.spec.name == plain.pick(prompt(text, model=model), float(k))
    good = fixture.router.pick(prompt(LONG, model="good"), 9.0)
    assert isinstance(good, Decision)
    assert (good.strategy, good.failed_strategy) == (name, "")


def test_the_explanation_says_that_the_strategy_failed(tmp_path: Path) -> None:
    fixture = Fixture(2, routing_strategy=written(tmp_path, SOMETIMES))
    explained = []
    for model in ("bad", "good"):
        fixture.pick(prompt(LONG, model=model), 0.0)
        explained.append(fixture.decisions.newest_first()[0].explain(1.0, 2))
    failed, good = explained
    assert (failed["strategy"], failed["failed_strategy"]) == ("PREFIX_CACHE", str(tmp_path / "mine.py") + ":choose")
    assert "; mine.py:choose failed, PREFIX_CACHE chose: " in failed["sentence"]
    assert good["failed_strategy"] == ""
    assert "failed" not in good["sentence"]


def test_failures_are_logged_with_their_traceback_once_in_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = written(tmp_path, SOMETIMES)
    fixture = Fixture(2, routing_strategy=name)
    with caplog.at_level(logging.ERROR):
        for k in range(50):
            fixture.pick(prompt(LONG, model="bad"), 0.01 * k)
        fixture.pick(prompt(LONG, model="bad"), FAILURE_LOG_INTERVAL + 1)
    first, second = [record for record in caplog.records if "strategy failed" in record.getMessage()]
    assert first.fields["failures"] == 1  # type: ignore[attr-defined]
    assert second.fields == {"strategy": name, "failures": 50, "error": "KeyError: 'x' (mine.py, line 4)"}  # type: ignore[attr-defined]
    assert first.exc_info is not None


# ---------------------------------------------------------------- where a file may be named


def test_an_annotation_names_no_file(tmp_path: Path) -> None:
    name = written(tmp_path, FIRST)
    endpoints = tmp_path / "endpoints.yaml"
    endpoints.write_text("endpoints: []")
    by_flag = EndpointPicker(Settings(endpoints_file=endpoints, routing_strategy=name))
    by_flag.apply(by_flag.settings.model_copy(update={"routing_strategy": "RANDOM"}))
    by_flag.apply(by_flag.settings.model_copy(update={"routing_strategy": name}))
    without = EndpointPicker(Settings(endpoints_file=endpoints))
    with pytest.raises(ConfigurationError, match="only --routing-strategy may name one"):
        without.apply(without.settings.model_copy(update={"routing_strategy": name}))
    assert without.router.strategy == "DEFAULT"


def test_a_holdout_strategy_is_no_file_from_the_start_on(tmp_path: Path) -> None:
    name = written(tmp_path, FIRST)
    endpoints = tmp_path / "endpoints.yaml"
    endpoints.write_text("endpoints: []")
    with pytest.raises(ConfigurationError, match="--holdout-strategy cannot be a file"):
        EndpointPicker(Settings(endpoints_file=endpoints, holdout_strategy=name))
    with pytest.raises(ConfigurationError, match=r"--holdout-strategy: .* 'NO_SUCH'; known are .*, RANDOM$"):
        EndpointPicker(Settings(endpoints_file=endpoints, holdout_strategy="NO_SUCH"))
    picker = EndpointPicker(Settings(endpoints_file=endpoints))
    with pytest.raises(ConfigurationError, match="--holdout-strategy cannot be a file"):
        picker.apply(picker.settings.model_copy(update={"holdout_strategy": name}))
    assert picker.settings.holdout_strategy == "LEAST_REQUEST"


def test_an_installed_strategy_is_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("NONSENSE", f"{__name__}:nonsense", strategies.ENTRY_POINT_GROUP)
    monkeypatch.setattr(strategies, "entry_points", lambda group: [entry])
    with pytest.raises(
        ConfigurationError,
        match="the routing strategy 'nonsense' fails on a sample request: it returned a value that is",
    ):
        find("nonsense")


def nonsense(request: Any, candidates: Any) -> list[float]:
    return [math.nan]


# ---------------------------------------------------------------- the examples


def example(name: str, labels: list[dict[str, str]]) -> Fixture:
    fixture = Fixture(0, routing_strategy=f"{EXAMPLES / name}.py:{name}")
    fixture.pool.replace(
        [EndpointSpec("default", str(k), f"10.0.0.{k}", 8000, one) for k, one in enumerate(labels)], 0.0
    )
    return fixture


def test_sessions_stay_where_they_are() -> None:
    fixture = example("session_affinity", [{}] * 4)
    homes: dict[int, str] = {}
    for turn in range(3):
        for k in range(12):
            request = prompt(f"{k} {turn} " * 50)._replace(session_id=f"s{k}")
            home = fixture.pick(request, float(turn))
            assert homes.setdefault(k, home) == home
    assert len(set(homes.values())) > 1
    assert fixture.pick(prompt(LONG), 3.0) in {"0", "1", "2", "3"}


def test_premium_requests_get_the_fast_endpoint() -> None:
    fixture = example("premium_first", [{"tier": "slow"}, {"tier": "fast"}, {}])
    premium = {fixture.pick(prompt(f"{k} " * 50)._replace(headers={"x-tier": "premium"}), 0.0) for k in range(5)}
    assert premium == {"1"}
    assert {fixture.pick(prompt(f"{k} " * 50), 0.0) for k in range(30)} >= {"0", "2"}


def test_the_most_cached_endpoint_is_chosen() -> None:
    fixture = example("most_cached", [{}] * 3)
    holder = fixture.pick(prompt(LONG), 0.0)
    assert {fixture.pick(prompt(LONG, str(k)), 0.0) for k in range(5)} == {holder}


def test_every_example_is_tested() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"session_affinity", "premium_first", "most_cached"}


def test_the_log_names_the_holdout_strategy_that_failed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = written(tmp_path, HEAD + "return [1 / (request.model == 'sample')] * 2\n")
    fixture = Fixture(2)
    fixture.router.apply(replace(routing_constants(), holdout=1.0, holdout_strategy=name))  # as an installed one
    with caplog.at_level(logging.ERROR):
        fixture.pick(prompt(LONG), 0.0)
    (logged,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert vars(logged)["fields"]["strategy"] == name


FAILS = "def choose(request, candidates):\n    return [0.0] if candidates[0].prompt_tokens > 100 else [0.0, 0.0]\n"
SPARES = "def choose(request, candidates):\n    return [each.cost + 9 * each.left_out for each in candidates]\n"
COST_ALONE = "def choose(request, candidates):\n    return [each.cost for each in candidates]\n"


@pytest.mark.parametrize(
    ("strategy", "detour", "chosen"),
    [
        ("PREFIX_CACHE", 0.2, "0"),
        ("PREFIX_CACHE", 1e9, "1"),
        ("DEFAULT", 0.2, "0"),
        (FAILS, 0.2, "0"),
        (SPARES, 0.2, "0"),
        (COST_ALONE, 0.2, "1"),
    ],
)
def test_who_waits_too_long_to_spare_others(tmp_path: Path, strategy: str, detour: float, chosen: str) -> None:
    """Many short prompts wait on 0, one long prompt on 1. PREFIX_CACHE leaves 1 out, and strategies see that."""
    name = written(tmp_path, strategy) if "def" in strategy else strategy
    fixture = Fixture(2, routing_strategy=name, cost_detour=detour)
    for k in range(12):
        fixture.pick(prompt(f"{k} short"), 0.0, allowed=only("0"))
    fixture.pick(prompt("one long prompt " * 2500), 0.0, allowed=only("1"))
    assert fixture.pick(prompt(LONG), 0.0) == chosen
    record = fixture.decisions.newest_first()[0]
    assert max(map(record.value, range(2))) < 1e3, "no figure that is shown has the addition"


UNSPEAKABLE = """
class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("no text")


def choose(request, candidates):
    if request.model == "bad":
        raise Unspeakable
    return [0.0] * len(candidates)
"""


def test_an_error_whose_text_cannot_be_made_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fixture = Fixture(2, routing_strategy=written(tmp_path, UNSPEAKABLE))
    with caplog.at_level(logging.ERROR):
        fixture.pick(prompt(LONG, model="bad"), 0.0)
    (record,) = [record for record in caplog.records if "strategy failed" in record.getMessage()]
    assert record.fields["error"] == "Unspeakable (mine.py, line 9)"  # type: ignore[attr-defined]
