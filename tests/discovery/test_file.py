"""The endpoints file: what it may say, what is refused and why, and what happens when it changes."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import eventually
from warmroute.discovery.file import EndpointsFile, FileDiscovery, parse
from warmroute.errors import ConfigurationError
from warmroute.pool.endpoint import EndpointSpec
from warmroute.pool.models import Criticality, Model, ModelTarget
from warmroute.pool.pool import Pool

TWO = """
endpoints:
  - {name: vllm-0, address: 10.0.0.1, port: 8000}
  - name: vllm-1
    namespace: prod
    address: "[2001:db8::1]"
    port: "8001"
    labels: {llm-d.ai/engine-type: sglang, gpu: 1}
"""
ONE = "endpoints: [{name: vllm-0, address: 10.0.0.1, port: 8000}]"


def test_endpoints() -> None:
    assert parse(TWO).specs() == [
        EndpointSpec("default", "vllm-0", "10.0.0.1", 8000),
        EndpointSpec("prod", "vllm-1", "2001:db8::1", 8001, labels={"llm-d.ai/engine-type": "sglang", "gpu": "1"}),
    ]


async def test_endpoints_that_work_for_others_are_not_in_the_pool(tmp_path: Path) -> None:
    file, pool = tmp_path / "endpoints.yaml", Pool()
    file.write_text("""
endpoints:
  - {name: a, address: 10.0.0.1, port: 8000, role: prefill}
  - {name: b, address: 10.0.0.2, port: 8000, role: decode}
  - {name: c, address: 10.0.0.3, port: 8000, labels: {llm-d.ai/role: prefill}}
  - {name: d, address: 10.0.0.4, port: 8000, cache_generation: 3}
""")
    FileDiscovery(file, pool).load()
    assert {endpoint.spec.name for endpoint in pool.endpoints.values()} == {"b", "d"}
    assert pool.endpoints["default/d"].spec.cache_generation == "3"


def test_models() -> None:
    text = """
endpoints: []
models:
  - {name: chat, targets: [{name: chat-v1, weight: 9}, {name: chat-v2}], criticality: Critical}
  - {name: batch, criticality: Sheddable}
  - name: plain
"""
    assert parse(text).model_table() == [
        Model("chat", (ModelTarget("chat-v1", 9), ModelTarget("chat-v2", 1)), Criticality.CRITICAL),
        Model("batch", (), Criticality.SHEDDABLE),
        Model("plain", (), Criticality.STANDARD),
    ]


def test_json_with_any_indentation() -> None:
    content = yaml.safe_load(TWO)
    for indent in (None, 2, "\t"):
        assert parse(json.dumps(content, indent=indent)) == parse(TWO)


def test_localhost_and_shared_fields() -> None:
    text = """
endpoints:
  - &first {name: a, address: localhost, port: 8000}
  - {<<: *first, name: b, port: 8001}
"""
    assert [spec.target for spec in parse(text).specs()] == ["127.0.0.1:8000", "127.0.0.1:8001"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must be a mapping"),
        ("- a", "must be a mapping"),
        ("models: []", "endpoints: Field required"),
        ("endpoints: [", "line 1, column"),
        ("endpoints:\n\t- a", "line 2"),
        ("endpoints: {}", "line 1, endpoints: Input should be a valid list"),
        ("endpoints: []\nport: 1", "line 2, port: unknown key"),
        (
            "endpoints:\n- {name: a, address: 10.0.0.1, port: 1}\n- {name: b, port: 1}",
            r"line 3, endpoints\[1\].address",
        ),
        ("endpoints:\n- name: a\n  adress: 10.0.0.1", r"line 3, endpoints\[0\].adress: unknown key"),
        (ONE.replace("10.0.0.1", "vllm.local"), "must be an IP address .or localhost.*'vllm.local'"),
        (ONE.replace("10.0.0.1", "10.0.0.1:80"), "must be an IP address"),
        (ONE.replace("8000", "0"), r"endpoints\[0\].port: .*greater than or equal to 1 \(given: 0\)"),
        (ONE.replace("8000", "65536"), r"endpoints\[0\].port: "),
        (ONE.replace("8000", "true"), r"endpoints\[0\].port: must be a number \(given: True\)"),
        (ONE.replace("8000", "http"), r"endpoints\[0\].port: .*'http'"),
        (ONE.replace("vllm-0", '""'), r"endpoints\[0\].name: "),
        (ONE.replace("vllm-0", "[x]"), r"endpoints\[0\].name: "),
        (
            "endpoints: []\nmodels:\n- {name: m, targets: [{name: t, weight: 0}]}",
            r"line 3, models\[0\].targets\[0\].weight",
        ),
        ("endpoints: []\nmodels: [{name: m, criticality: critical}]", "'Critical', 'Standard' or 'Sheddable'"),
        ("endpoints: []\nmodels: [{name: m}, {name: m}]", r"models\[1\]: 'm' repeats models\[0\]"),
        ("endpoints: []\nendpoints: []", "line 2, column 1: repeated key 'endpoints'"),
        (
            TWO + "  - {name: vllm-0, address: 10.0.0.9, port: 8000}",
            r"line 9, endpoints\[2\]: 'default/vllm-0' repeats",
        ),
        (
            TWO + "  - {name: x, address: 10.0.0.1, port: 8000}",
            r"endpoints\[2\]: '10.0.0.1:8000' repeats endpoints\[0\]",
        ),
        ("&a [*a]", "line 1, column 5: 'a' contains itself"),
        ("? [a]\n: b", "unhashable"),
        ("endpoints: []\nx: 2026-99-99", "line 2, column 4: unusable value: month must be in 1..12"),
        ("endpoints: [\x00]", "not YAML"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        parse(text)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse("endpoints:\n- {name: a, address: x, port: 1}\n- {name: b, address: 10.0.0.1, port: x}")
    assert "endpoints[0].address" in str(caught.value)
    assert "endpoints[1].port" in str(caught.value)


@given(st.text(max_size=40) | st.text(max_size=20).map(lambda tail: ONE + "\n" + tail))
def test_any_text_is_a_file_or_a_configuration_error(text: str) -> None:
    try:
        parse(text)
    except ConfigurationError:
        pass


# ---------------------------------------------------------------- loading and watching


class Watched:
    """A file and a pool that follows it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pool = Pool(retention=0.0)
        self.now = 0.0
        self.reloads: list[bool] = []
        self.discovery = FileDiscovery(
            path, self.pool, reloaded=self.reloads.append, clock=lambda: self.now, poll_interval=0.005
        )

    def targets(self) -> dict[str, str]:
        return {endpoint.spec.name: endpoint.target for endpoint in self.pool.endpoints.values() if endpoint.ready}

    async def looks(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Wait until the file was looked at ``count`` times more."""
        read, seen = self.discovery._read, 0

        def counted() -> bytes | str:
            nonlocal seen
            seen += 1
            return read()

        monkeypatch.setattr(self.discovery, "_read", counted)
        await eventually(lambda: seen >= count)


@asynccontextmanager
async def watching(path: Path) -> AsyncIterator[Watched]:
    watched = Watched(path)
    watched.discovery.load()
    await watched.discovery.start()
    try:
        yield watched
    finally:
        await watched.discovery.stop()


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    path = tmp_path / "endpoints.yaml"
    path.write_text(ONE)
    async with watching(path) as watched:
        yield watched


def test_loading_fills_the_pool(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + f"{TWO}\nmodels: [{{name: m, criticality: Critical}}]".encode())
    pool = Pool()
    FileDiscovery(path, pool, clock=lambda: 5.0).load()
    assert pool.synced
    assert [e.target for e in pool.endpoints.values()] == ["10.0.0.1:8000", "[2001:db8::1]:8001"]
    assert {e.added_at for e in pool.endpoints.values()} == {5.0}
    model = pool.models.get("m")
    assert model is not None
    assert model.criticality == 2


@pytest.mark.parametrize(
    ("content", "complaint"), [(None, "No such file"), (b"\xff", "not UTF-8: byte 0"), (b"[]", "must be a mapping")]
)
def test_a_file_that_cannot_be_used_at_the_start_is_an_error(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "endpoints.yaml"
    if content is not None:
        path.write_bytes(content)
    pool = Pool()
    with pytest.raises(ConfigurationError, match=f"{path}.*{complaint}"):
        FileDiscovery(path, pool).load()
    assert not pool.synced


async def test_a_change_in_place_is_followed(watched: Watched) -> None:
    kept = watched.pool.endpoints["default/vllm-0"]
    watched.path.write_text(TWO + "models: [{name: m}]")
    await eventually(lambda: len(watched.targets()) == 2)
    assert watched.pool.endpoints["default/vllm-0"] is kept
    assert watched.pool.models.get("m") is not None
    watched.path.write_text("endpoints: []")
    await eventually(lambda: not watched.targets())
    assert watched.pool.models.get("m") is None


async def test_the_log_counts_the_endpoints_that_the_file_has(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="warmroute"):
        watched.path.write_text(TWO)
        await eventually(lambda: len(caplog.records) == 1)
        watched.path.write_text(ONE)
        await eventually(lambda: len(caplog.records) == 2)
    assert [vars(record)["fields"]["endpoints"] for record in caplog.records] == [2, 1]


async def test_a_file_renamed_over_it_is_followed(watched: Watched) -> None:
    new = watched.path.with_suffix(".new")
    new.write_text(ONE.replace("8000", "8001"))  # the same size, and maybe within one tick of the file system's clock
    new.replace(watched.path)
    await eventually(lambda: watched.targets() == {"vllm-0": "10.0.0.1:8001"})


async def test_a_mounted_config_map_is_followed(tmp_path: Path) -> None:
    for version, text in (("v1", ONE), ("v2", ONE.replace("10.0.0.1", "10.0.0.2"))):
        (tmp_path / version).mkdir()
        (tmp_path / version / "endpoints.yaml").write_text(text)
    (tmp_path / "data").symlink_to("v1")
    (tmp_path / "endpoints.yaml").symlink_to("data/endpoints.yaml")
    async with watching(tmp_path / "endpoints.yaml") as watched:
        (tmp_path / "data.new").symlink_to("v2")
        (tmp_path / "data.new").replace(tmp_path / "data")
        await eventually(lambda: watched.targets() == {"vllm-0": "10.0.0.2:8000"})


async def test_a_bad_file_keeps_the_pool_and_is_reported_once(
    watched: Watched, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.path.write_text("endpoints: [{name: x}]")
    await eventually(lambda: len(caplog.records) == 1)
    await watched.looks(5, monkeypatch)
    assert watched.targets() == {"vllm-0": "10.0.0.1:8000"}
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "endpoints[0].address" in record.fields["error"]  # type: ignore[attr-defined]
    watched.path.unlink()
    await eventually(lambda: len(caplog.records) == 2)
    watched.path.write_text(ONE.replace("8000", "8001"))
    await eventually(lambda: watched.targets() == {"vllm-0": "10.0.0.1:8001"})
    assert watched.reloads == [False, False, True]


async def test_a_bad_file_is_parsed_once(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []

    def counted(text: str) -> EndpointsFile:
        texts.append(text)
        return parse(text)

    monkeypatch.setattr("warmroute.discovery.file.parse", counted)
    watched.path.write_text("nonsense")
    await eventually(lambda: bool(texts))
    await watched.looks(5, monkeypatch)
    assert texts == ["nonsense"]
    watched.path.unlink()
    await eventually(lambda: watched.reloads == [False, False])
    watched.path.write_text("nonsense")
    await eventually(lambda: watched.reloads == [False, False, False])
    assert texts == ["nonsense", "nonsense"]


async def test_the_event_loop_goes_on_while_a_changed_file_is_parsed(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, waited = threading.Event(), threading.Event(), []

    def slow(text: str) -> EndpointsFile:
        begun.set()
        waited.append(go_on.wait(5))
        return parse(text)

    monkeypatch.setattr("warmroute.discovery.file.parse", slow)
    watched.path.write_text(TWO)
    await eventually(begun.is_set)
    go_on.set()
    await eventually(lambda: len(watched.targets()) == 2)
    assert waited == [True], "the event loop stood still"


async def test_a_file_put_back_as_it_was_is_told_to_be_good_again(
    watched: Watched, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, logger="warmroute"):
        watched.path.write_text("nonsense")
        await eventually(lambda: watched.reloads == [False])
        watched.path.write_text(ONE)
        await eventually(lambda: watched.reloads == [False, True])
        await watched.looks(3, monkeypatch)
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.INFO]
    assert watched.reloads == [False, True]


async def test_a_file_put_back_as_it_was_can_fail_again(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    for expected in (1, 2):
        watched.path.write_text("nonsense")
        await eventually(lambda expected=expected: len(caplog.records) == expected)  # type: ignore[misc]
        watched.path.write_text(ONE)
        await eventually(lambda: watched.discovery._problem is None)


async def test_a_half_written_file_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.yaml"
    path.write_text(TWO)
    watched = Watched(path)
    watched.discovery.load()
    look = watched.discovery._look
    await look(TWO.encode())
    await look(ONE.encode())
    assert len(watched.targets()) == 2
    await look(TWO.encode())
    await look(ONE.encode())
    await look(ONE.encode())
    assert len(watched.targets()) == 1


async def test_stopping_is_safe_at_any_time(tmp_path: Path) -> None:
    discovery = FileDiscovery(tmp_path / "x", Pool())
    await discovery.stop()
    await discovery.start()
    await discovery.stop()
    await discovery.stop()
