"""Dashboard and alert rules on a real Prometheus that scrapes a picker and simulated engines under load.

Debian's package `prometheus` has both programs; without them these tests are skipped.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.deploy.manifests import DEPLOY
from tests.fixtures.envoy.apps import picker_app, target
from tests.fixtures.envoy.http1 import exchange
from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.child import Child
from warmroute.standalone.envoy import EnvoyProcess
from warmroute.standalone.nats import NatsProcess
from warmroute.standalone.ports import free_port
from warmroute.standalone.proxy_config import ProxyConfig
from warmroute_lab.simulator.options import SimulatorOptions
from warmroute_lab.simulator.server import SimulatorServer

RULES = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "warmroute.json").read_text())
VARIABLES = {"$job": "warmroute", "$engines": "engines", "$endpoint": ".*", "$__rate_interval": "20s"}
"""Values of the dashboard's variables."""
LIMIT = 120.0
"""Seconds until every query must have an answer."""
PROMPT = "Once upon a time " * 400


def program(name: str) -> str:
    """A program of Prometheus; the test is skipped without it."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name}: install Debian's package prometheus")
    return found


def test_the_alert_rules_fire_when_they_should(tmp_path: Path) -> None:
    promtool = program("promtool")
    for file in (RULES, Path(__file__).parents[1] / "deploy" / "alerts_test.yaml"):
        shutil.copy(file, tmp_path)
    result = subprocess.run(
        [promtool, "test", "rules", str(tmp_path / "alerts_test.yaml")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str, child: Child) -> None:
        self.url = url
        self.child = child

    async def get(self, path: str, **parameters: str) -> Any:
        """The field ``data`` of an answer of its API."""
        async with aiohttp.ClientSession() as session, session.get(self.url + path, params=parameters) as answer:
            body = await answer.json()
            assert body["status"] == "success", (parameters, body)
            return body["data"]

    async def unanswered(self, queries: dict[str, str]) -> list[str]:
        """The names of those queries that find no series."""
        results = {name: await self.get("/api/v1/query", query=query) for name, query in queries.items()}
        return [name for name, data in results.items() if not data["result"]]


@asynccontextmanager
async def prometheus(directory: Path, jobs: dict[str, list[str]]) -> AsyncIterator[Prometheus]:
    """Prometheus with the project's rules, which scrapes the targets of each job every second."""
    path = program("prometheus")
    port = free_port()
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": targets}]} for job, targets in jobs.items()
        ],
    }
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    child = Child(
        "Prometheus",
        [
            *(path, f"--config.file={file}", f"--storage.tsdb.path={directory / 'tsdb'}"),
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        directory / "prometheus.log",
    )
    running = Prometheus(f"http://127.0.0.1:{port}", child)

    async def ready() -> bool:
        try:
            await running.get("/api/v1/query", query="1")
        except (aiohttp.ClientError, ValueError):
            return False
        return True

    async with child:
        await child.until(ready, "ready")
        yield running


async def ask_on_and_on(url: str) -> None:
    """Conversations of three turns, and now and then a request that is refused."""
    number = 0
    while True:
        number += 1
        messages = [{"role": "user", "content": f"{number // 3} {PROMPT} {i}"} for i in range(number % 3 + 1)]
        body = {"model": "/model/qwen", "messages": messages, "max_tokens": 4, "stream": True}
        await exchange(url, body=json.dumps(body).encode())
        if number % 10 == 0:
            await exchange(url, body=b"{}")
        await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_every_panel_and_every_alert_finds_its_series(tmp_path: Path) -> None:
    program("prometheus")
    async with AsyncExitStack() as stack:
        engines = [SimulatorServer(SimulatorOptions(port=0, model="/model/qwen", time_scale=20)) for _ in range(2)]
        for engine in engines:
            await engine.start()
            stack.push_async_callback(engine.stop)
        targets = [f"127.0.0.1:{engine.port}" for engine in engines]
        nats = await stack.enter_async_context(NatsProcess(tmp_path))
        key = tmp_path / "shared-state.key"
        key.write_bytes(b"x" * 32)
        sharing: dict[str, Any] = {"shared_state": nats.url, "shared_state_key_path": key}  # an alert is about it
        app = await stack.enter_async_context(picker_app(targets, tmp_path, **sharing))
        config = ProxyConfig(epp=(target(app),), endpoints=tuple(targets))
        envoy = await stack.enter_async_context(EnvoyProcess(bootstrap(config), tmp_path))
        jobs = {"warmroute": [f"127.0.0.1:{app.metrics_pages.port}"], "engines": targets}
        running = await stack.enter_async_context(prometheus(tmp_path, jobs))
        load = asyncio.create_task(ask_on_and_on(envoy.url))
        try:
            queries = panel_queries()
            async with asyncio.timeout(LIMIT):
                while missing := await running.unanswered(queries):
                    print(missing)
                    assert not load.done()
                    await asyncio.sleep(1)
            (group,) = (await running.get("/api/v1/rules"))["groups"]
            async with asyncio.timeout(LIMIT):
                while any(rule["health"] == "unknown" for rule in group["rules"]):
                    await asyncio.sleep(0.5)
                    (group,) = (await running.get("/api/v1/rules"))["groups"]
            assert [rule["name"] for rule in group["rules"] if rule["health"] != "ok"] == []
            assert await running.unanswered(alert_operands()) == []
            (bypassed,) = [rule for rule in group["rules"] if rule["name"] == "WarmrouteBypassed"]
            assert bypassed["state"] == "inactive"
        finally:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)


def panel_queries() -> dict[str, str]:
    """The dashboard's queries with values in place of its variables."""
    queries = {}
    for panel in DASHBOARD["panels"]:
        for item in panel.get("targets", []):
            query = item["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            queries[f"{panel['title']} {item['refId']}"] = query
    return queries


def alert_operands() -> dict[str, str]:
    """The left side of each alert's comparison, which has series also while all is well."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    operands = {}
    for rule in group["rules"]:
        left, comparison, _ = rule["expr"].partition(" == " if " == " in rule["expr"] else " > ")
        assert comparison, rule["alert"]
        operands[rule["alert"]] = left
    return operands
