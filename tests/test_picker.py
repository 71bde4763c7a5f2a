"""The composition root: where endpoints come from, and settings that change while it runs."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from dataclasses import fields
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.request import urlopen

import pytest

from tests.factories import LOCAL, registry_of
from tests.waiting import eventually
from warmroute.errors import ConfigurationError
from warmroute.picker import EndpointPicker
from warmroute.picker_options import routing_constants, server_options, session_rules
from warmroute.pool.endpoint import EndpointSpec, EngineState
from warmroute.pool.models import Criticality
from warmroute.settings import Settings, changed


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "either --pool-name NAME"),
        ({"pool_name": "", "endpoints_file": ""}, "either --pool-name NAME"),
        ({"endpoints_file": "e.yaml", "pool_name": "p"}, "both given"),
        ({"endpoints_file": "e.yaml", "ha_enable_leader_election": True}, "needs Kubernetes"),
        pytest.param(  # the Kubernetes client binds a socket when it is imported
            {"pool_name": "p", "pool_group": "example.com"},
            "--pool-group must be one of",
            marks=pytest.mark.integration,
        ),
        ({"endpoints_file": "e.yaml", "shared_state": "nats://a"}, "needs --shared-state-key-path"),
        (
            {"endpoints_file": "e.yaml", "shared_state": "nats://a", "shared_state_key_path": "/nowhere"},
            "cannot read the file of --shared-state-key-path /nowhere: No such file or directory",
        ),
        (
            {"pool_name": "p", "shared_state": "nats://a", "ha_enable_leader_election": True},
            "exclude each other",
        ),
        ({"endpoints_file": "e.yaml", "body_memory": 2**26 - 1}, "--body-memory must be at least twice"),
    ],
)
async def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        EndpointPicker(Settings(**settings))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("shared_state_credentials", None, "No such file or directory: .*/file"),
        ("shared_state_credentials", b"a secret", "the credentials file .*/file: no user JWT"),
        ("shared_state_tls_path", None, "tls.key in .*/file: No such file"),
        ("shared_state_tls_path", b"a file", "tls.key in .*/file: Not a directory"),
    ],
)
async def test_files_for_nats_that_cannot_be_used_end_the_start(
    tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    """Without this the picker serves alone for good, and only its log says so."""
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    settings = {"shared_state_key_path": tmp_path / "key", name: tmp_path / "file"}
    with pytest.raises(ConfigurationError, match=problem):
        EndpointPicker(Settings(endpoints_file=Path("e.yaml"), shared_state="nats://a:4222", **settings))


@pytest.mark.parametrize("change", [{"routing_strategy": "FASTEST"}, {"model_server_runtime": "abacus"}])
async def test_settings_that_cannot_be_used_change_nothing(change: dict[str, str]) -> None:
    app = EndpointPicker(Settings(endpoints_file=Path("e.yaml"), routing_strategy="PREFIX_CACHE"))
    before = app.settings
    with pytest.raises(ConfigurationError, match=next(iter(change.values()))):
        app.apply(changed(before, {"max_endpoints": 3, **change}))
    assert app.settings is before
    assert app.router.strategy == "PREFIX_CACHE"
    assert app.pool.default_engine == "vllm"
    app.apply(changed(before, {"routing_strategy": "RANDOM", "model_server_runtime": "sglang"}))
    assert app.router.strategy == "RANDOM"
    assert app.pool.default_engine == "sglang"


def test_a_built_in_strategy_has_one_name() -> None:
    constants = routing_constants(Settings(routing_strategy="prefix_cache", holdout_strategy="Random"))
    assert (constants.strategy, constants.holdout_strategy) == ("PREFIX_CACHE", "RANDOM")
    assert routing_constants(Settings(routing_strategy="./my.py:choose")).strategy == "./my.py:choose"


def test_shedding_as_the_parts_are_told() -> None:
    given = Settings(shedding="upstream-v0.5", saturation_queue_depth=7, saturation_kv_usage=0.5)
    limits = routing_constants(given).saturation
    assert (limits.waiting, limits.kv_usage) == (7, 0.5)
    assert session_rules(given).shed_up_to is Criticality.STANDARD
    assert session_rules(Settings()).shed_up_to is Criticality.SHEDDABLE
    assert session_rules(Settings(shedding="off")).shed_up_to is None


OTHER_VALUES = {
    "session_header": "x-conversation",
    "host": "127.0.0.2",
    "grpc_port": 1,
    "grpc_health_port": 2,
    "secure_serving": False,
    "cert_path": Path("/certificates"),
    "max_body_bytes": 3,
    "max_json_values": 4000,
    "body_timeout": 5.0,
    "max_streams": 6,
    "tracing": True,
    "observe_responses": True,
    "decision_metadata": True,
    "enable_conformance_headers": True,
    "disable_endpoint_subset_filter": True,
    "strict_models": True,
}
"""Of each setting of the server and the sessions, a value that is not the default."""


def test_each_setting_reaches_its_part() -> None:
    reached: dict[str, Any] = {}
    for part in (server_options(Settings(**OTHER_VALUES)), session_rules(Settings(**OTHER_VALUES))):
        for field in fields(part):
            reached.setdefault(field.name, getattr(part, field.name))
            assert reached[field.name] == getattr(part, field.name)
    assert reached.pop("shed_up_to") is Criticality.SHEDDABLE
    assert reached == OTHER_VALUES
    default = Settings()
    assert not [name for name, value in OTHER_VALUES.items() if value == getattr(default, name)]


@pytest.fixture
def endpoints_file(tmp_path: Path) -> Path:
    file = tmp_path / "endpoints.yaml"
    file.write_text("endpoints: []")
    return file


@pytest.mark.integration
@pytest.mark.usefixtures("a_terminal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_signals_drain_and_a_second_one_ends_the_drain(endpoints_file: Path, number: signal.Signals) -> None:
    app = EndpointPicker(
        Settings(endpoints_file=endpoints_file, metrics_port=0, drain_quiet=600, drain_timeout=600, **LOCAL)
    )
    thresholds = gc.get_threshold()
    running = asyncio.create_task(app.run())
    try:
        async with asyncio.timeout(60):
            while not app.server.grpc_health_port:
                assert not running.done(), running.exception()
                await asyncio.sleep(0.01)
            os.kill(os.getpid(), number)
            while not (drain := [task for task in asyncio.all_tasks() if task.get_name() == "drain"]):
                assert not running.done(), running.exception()
                await asyncio.sleep(0.01)
            os.kill(os.getpid(), number)
            await running
        assert drain[0].done()
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().remove_signal_handler(each)


async def test_what_is_reloaded_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_text("endpoints: []")
    app = EndpointPicker(Settings(endpoints_file=file))

    def counted(source: str, result: str) -> float | None:
        labels = {"source": source, "result": result}
        return registry_of(app.metrics).get_sample_value("warmroute_config_reloads_total", labels)

    app.discovery.load()
    await app.discovery.start()
    try:
        for text, result in (("nonsense", "error"), ("endpoints: [{name: a, address: 10.0.0.1, port: 1}]", "ok")):
            file.write_text(text)
            await eventually(lambda result=result: counted("endpoints-file", result))  # type: ignore[misc]
    finally:
        await app.discovery.stop()
    app.metrics.reloaded("certificate", ok=False)
    assert (counted("certificate", "error"), counted("certificate", "ok")) == (1, 0)


async def test_the_speed_that_is_shown_is_the_one_that_is_reckoned_with() -> None:
    app = EndpointPicker(Settings(endpoints_file=Path("e.yaml"), prefill_rate=3000))
    app.pool.replace([EndpointSpec("default", name, "10.0.0.1", port) for port, name in enumerate("ab", 1)], 0.0)

    def shown() -> list[float | None]:
        value = registry_of(app.metrics).get_sample_value
        return [value("warmroute_endpoint_prefill_tokens_per_second", {"endpoint": f"default/{name}"}) for name in "ab"]

    assert shown() == [3000, 3000]
    now = monotonic() + 10
    app.pool.observed(app.pool.endpoints["default/a"], EngineState(now, 0, 0, 0.0, prefill_rate=7000.0), now)
    assert shown() == [7000, 7000], "of the other nothing is known but that"


def test_a_password_of_nats_is_not_shown() -> None:
    settings = Settings(endpoints_file=Path("e.yaml"), shared_state="nats://me:secret@a:4222,nats://b:4222")
    assert settings.model_dump(mode="json")["shared_state"] == "nats://***@a:4222,nats://b:4222"
    assert settings.shared_state == "nats://me:secret@a:4222,nats://b:4222"


@pytest.mark.integration
async def test_health_says_how_shared_state_is_and_readiness_does_not_need_it(tmp_path: Path) -> None:
    """There is no NATS."""
    endpoints, key = tmp_path / "e.yaml", tmp_path / "key"
    endpoints.write_text("endpoints: []")
    key.write_text("0123456789abcdef")
    settings = Settings(
        **LOCAL,
        metrics_port=0,
        endpoints_file=endpoints,
        shared_state="nats://127.0.0.1:1",
        shared_state_key_path=key,
    )
    app = EndpointPicker(settings)
    await app.start()
    try:
        assert app.shared_state is not None
        await eventually(app._ready, "it serves without NATS")
        page = await asyncio.to_thread(read, f"http://127.0.0.1:{app.metrics_pages.port}/healthz")
        assert page.startswith("ok\nshared state: away for ")
        metrics = await asyncio.to_thread(read, f"http://127.0.0.1:{app.metrics_pages.port}/metrics")
        assert "warmroute_shared_state_connected 0.0" in metrics
    finally:
        await app.stop()


def read(url: str) -> str:
    with urlopen(url, timeout=60) as answer:
        text: str = answer.read().decode()
    return text
