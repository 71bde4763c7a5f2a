"""docs/metrics.md explains each field of the debug pages and of the decision log, and no other."""

from __future__ import annotations

import dataclasses
import random
import re
from pathlib import Path
from typing import Any

import orjson

from tests.factories import engine_state, readings, routing_constants
from warmroute.observability.decision_log import DecisionLog
from warmroute.pool.endpoint import EndpointSpec
from warmroute.pool.pool import Pool
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.request.rejections import Rejection
from warmroute.routing.confirmation import HitRatios
from warmroute.routing.cost import CostTerms
from warmroute.routing.decision import Measurement
from warmroute.routing.prediction import Compared
from warmroute.routing.router import Router

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")


def rows(heading: str) -> str:
    """The table after the line that begins so."""
    (table,) = re.findall(rf"\n{re.escape(heading)}.*?:\n\n\| Field .*?\n\|---.*?\n(.*?)\n\n", DOCS, re.DOTALL)
    return str(table)


def names(data: Any, above: str = "") -> set[str]:
    """Paths of the fields: ``scrape.waiting``. Of a list's items without their places."""
    found = set()
    for item in data if isinstance(data, list) else [data]:
        if isinstance(item, dict):
            for name, value in item.items():
                found |= {above + name} | names(value, f"{above}{name}.")
    return found


def first_cells(table: str) -> set[str]:
    """The fields in the first cells; one that begins with a dot belongs beside the one before."""
    found = set()
    for row in table.splitlines():
        parent = ""
        for name in re.findall(r"`([\w.]+)`", row.split("|")[1]):
            full = parent + name if name.startswith(".") else name
            parent = full.rpartition(".")[0]
            found.add(full)
    return found


def test_the_fields_of_endpoints() -> None:
    (reading,) = readings(1)
    reading.endpoint.state = engine_state(1.0)
    reading.confirmation.last_window = HitRatios(0.5, 0.5)
    shown = names(dataclasses.replace(reading, ttft=Compared(1.0, 1.0, 1)).plain(2.0))
    parents = {name for name in shown if any(other.startswith(f"{name}.") for other in shown)}
    assert first_cells(rows("The fields of `/debug/endpoints`")) - {"scrape"} == shown - parents


def test_the_fields_of_decisions(tmp_path: Path) -> None:
    pool = Pool()
    pool.replace([EndpointSpec("ns", f"e{k}", f"10.0.0.{k}", 8000) for k in range(2)], 0.0)
    log = DecisionLog(str(tmp_path / "log"), 1 << 20, clock=lambda: 2.0)
    shown = {"seconds_ago"}
    for strategy in ("PREFIX_CACHE", "ROUND_ROBIN"):
        constants = routing_constants(routing_strategy=strategy)
        router = Router(pool, constants, rng=random.Random(1), now=0.0, listeners=(log,))
        decision = router.pick(InferenceRequest(parts=(PromptPart(b"x" * 50, 50),), prompt_bytes=50), 0.0)
        assert not isinstance(decision, Rejection)
        decision.measurement = Measurement("10.0.0.1:8000", 200, 0.1, 0.2)
        log.measured(decision)
    log.close()
    for line in (tmp_path / "log").read_text().splitlines():
        shown |= names(orjson.loads(line))
    table = rows("The fields of `/debug/decisions`")
    named = set(re.findall(r"`(\w[\w.]*)`", table))
    for name in shown:
        of_a_term = name.startswith("endpoints.terms_ms.")
        assert of_a_term or name in named or name.partition(".")[2] in named, name
    assert {name.rpartition(".")[2] for name in shown if ".terms_ms." in name} == set(CostTerms._fields)
    assert first_cells(table) - {"rejected"} <= shown
