"""`warmroute up`: its options, what it writes and prints, and whole runs with a real Envoy."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
import typer
import yaml

from tests.waiting import eventually
from warmroute.cli import app
from warmroute.discovery.file import EndpointsFile
from warmroute.errors import ConfigurationError
from warmroute.extproc.envoy_policy import MESSAGE_TIMEOUT
from warmroute.observability.metrics_pages import READY, ready_body
from warmroute.observability.page_server import Page, PageServer, Request
from warmroute.standalone import engine_probe, pickers, up_options
from warmroute.standalone import up as up_module
from warmroute.standalone.child import Child, ChildError
from warmroute.standalone.config_files import write
from warmroute.standalone.engine_list import Engine, EngineList, Target, document
from warmroute.standalone.engine_probe import ModelsAnswer
from warmroute.standalone.envoy import envoy_path
from warmroute.standalone.greeting import greeting
from warmroute.standalone.picker_process import PickerPorts, picker, start_picker
from warmroute.standalone.pickers import Pickers
from warmroute.standalone.ports import free_range, require_free
from warmroute.standalone.up import Up
from warmroute.standalone.up_options import UpOptions
from warmroute.tasks import cancel

ROOT = Path(__file__).parents[2]
CHAT = {"model": "qwen", "messages": [{"role": "user", "content": "hello " * 3000}], "max_tokens": 2}
ENGINES = EngineList([Target("10.0.0.7", 8000), Target("10.0.0.8", 8000)])


# ---------------------------------------------------------------- options


@pytest.mark.integration
def test_a_usual_port_that_is_taken_is_replaced_and_a_given_one_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigurationError, match=rf"port {port} for --port is unavailable on 127.0.0.1: Address already"
        ):
            UpOptions(port=port).settled()
        with pytest.raises(ConfigurationError, match="--debug-port"):
            UpOptions(port=0, debug_port=port).settled()
        with pytest.raises(ConfigurationError, match="--plain-port"):
            UpOptions(port=0, plain_port=port).settled()
    with pytest.raises(ConfigurationError, match=r"--access-log /none/a\.log: there is no directory /none"):
        UpOptions(port=0, access_log="/none/a.log").settled()
    with pytest.raises(ConfigurationError, match=r"--access-log / is a directory: name a file"):
        UpOptions(port=0, access_log="/").settled()
    settled = UpOptions(port=0, host="localhost").settled()
    assert settled.host == "127.0.0.1"
    assert settled.plain_port is None
    assert 0 not in (settled.port, settled.debug_port, settled.metrics_port)


@pytest.mark.integration
async def test_a_picker_is_ready_by_its_own_answer_only(tmp_path: Path) -> None:
    """Another process has got its port meanwhile, such as the picker of another `warmroute up`."""
    (tmp_path / "endpoints.yaml").write_text(document([Engine("a", "10.0.0.7", 8000)]))

    async def ready(_: Request) -> Page:
        return Page(ready_body(os.getpid()), "text/plain")

    other = PageServer("127.0.0.1", 0, {READY: ready}, port_flag="--metrics-port")
    await other.start()
    grpc = free_range(2)
    ports = PickerPorts(grpc, grpc + 1, other.port)
    child = picker(tmp_path / "endpoints.yaml", ports, tmp_path / "picker.log", ("--host", "127.0.0.1"))
    try:
        with pytest.raises(ChildError, match=r"(?s)ended with status 2.*--metrics-port"):
            await start_picker(child, ports)
    finally:
        await child.stop()
        await other.stop()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"plain_port": 1}, "--port and --plain-port are the same: 1"),
        ({"debug_port": 1}, "--port and --debug-port are the same: 1"),
        ({"debug_port": 2, "metrics_port": 2}, "--debug-port and --metrics-port are the same: 2"),
    ],
)
def test_two_ports_that_are_the_same_are_refused(
    monkeypatch: pytest.MonkeyPatch, options: Mapping[str, int], complaint: str
) -> None:
    monkeypatch.setattr(up_options, "require_free", lambda *_: None)
    with pytest.raises(ConfigurationError, match=complaint):
        UpOptions(port=1, **options).settled()  # type: ignore[arg-type]
    UpOptions(port=1, host="127.0.0.2", debug_port=1).settled()


@pytest.mark.integration
def test_a_usual_port_that_is_given_to_another_purpose_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up_options, "require_free", lambda *_: None)
    settled = UpOptions(port=9091, plain_port=9090).settled()
    assert (settled.port, settled.plain_port) == (9091, 9090)
    assert not {settled.debug_port, settled.metrics_port} & {9090, 9091}


@pytest.mark.integration
@pytest.mark.parametrize("port", [0, 8081])
def test_an_address_of_another_machine_is_told(port: int) -> None:
    with pytest.raises(ConfigurationError, match=r"--host 192\.0\.2\.1: this machine has no such address"):
        UpOptions(host="192.0.2.1", port=port).settled()


@pytest.mark.parametrize("options", [{"host": "gpu-a"}, {"host": ""}, {"debug_host": "*"}])
def test_a_listeners_address_is_an_ip_address(options: Mapping[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"is not an IP address: 127\.0\.0\.1 is this machine only, 0"):
        UpOptions(**options).settled()  # type: ignore[arg-type]


# ---------------------------------------------------------------- what it says


OPTIONS = UpOptions(port=8081, debug_port=9091, metrics_port=9090)
PICKER = [PickerPorts(9002, 9003, 9090, 9091)]
TWO = [Engine("gpu-a:8000", "10.0.0.7", 8000), Engine("gpu-b:8000", "10.0.0.8", 8000)]


def test_the_greeting_says_where_everything_is() -> None:
    text = greeting(
        OPTIONS, PICKER, TWO, [ModelsAnswer("Qwen/Qwen2.5-7B", ""), ModelsAnswer("", "Connection refused")], "warmroute"
    )
    assert (
        "requests    http://127.0.0.1:8081/v1  (OpenAI API; from this machine only; --host 0.0.0.0 lets others in)"
        in text
    )
    assert "live page   http://127.0.0.1:9091/" in text
    assert "metrics     http://127.0.0.1:9090/metrics" in text
    assert "engines     1 of 2 answer" in text
    assert "gpu-a:8000                Qwen/Qwen2.5-7B\n" in text
    assert "gpu-b:8000                does not serve (Connection refused); gets requests once it does\n" in text
    assert "warmroute explain X-REQUEST-ID   (" in text
    (curl,) = (shlex.split(line) for line in text.splitlines() if line.startswith("  curl "))
    assert curl[2] == "http://127.0.0.1:8081/v1/chat/completions"
    assert json.loads(curl[-1])["model"] == "Qwen/Qwen2.5-7B"


def test_a_models_name_cannot_control_the_terminal() -> None:
    text = greeting(OPTIONS, PICKER, TWO, [ModelsAnswer("\x1b]0;a\x07\n\ud800", "")] * 2, "warmroute")
    assert not set("\x1b\x07\ud800") & set(text)
    assert r"\x1b]0;a\x07\n\ud800" in text


def test_the_greeting_says_that_engines_want_a_key() -> None:
    """The command works as it stands where the picker has the key, and does not show it."""
    locked = [ModelsAnswer("", "", is_locked=True)] * 2
    text = greeting(OPTIONS, PICKER, TWO, locked, "w")
    assert "engines     2 of 2 answer" in text
    assert "answers, but wants an API key (WARMROUTE_MODEL_SERVER_TOKEN_FILE=FILE): its models are not known\n" in text
    assert " -H 'Authorization: Bearer API_KEY' -d " in text
    text = greeting(OPTIONS, PICKER, TWO, locked, "w", key_file=Path("my key"))
    assert "answers, but refuses the API key in my key: its models are not known\n" in text
    assert """ -H "Authorization: Bearer $(cat 'my key')" -d """ in text
    assert "Authorization" not in greeting(OPTIONS, PICKER, TWO, [ModelsAnswer("m", "")] * 2, "w")


def test_the_greeting_says_who_can_reach_it() -> None:
    text = greeting(
        replace(OPTIONS, host="0.0.0.0", plain_port=8080), PICKER, TWO, [ModelsAnswer("", "")] * 2, "warmroute"
    )
    assert f"http://{socket.gethostname()}:8081/v1 from others; anybody who reaches it can use the engines" in text
    assert "to compare  http://127.0.0.1:8080/v1  (least requests, no picker)" in text
    assert "http://[::1]:8081/v1" in greeting(
        replace(OPTIONS, host="::"), PICKER, TWO, [ModelsAnswer("", "")] * 2, "warmroute"
    )
    assert "anybody" in greeting(
        replace(OPTIONS, host="10.0.0.1"), PICKER, TWO, [ModelsAnswer("", "")] * 2, "warmroute"
    )


def test_a_debug_port_of_its_own_is_in_the_command() -> None:
    assert "explain X-REQUEST-ID --debug-url http://127.0.0.1:9999 " in greeting(
        OPTIONS, [PickerPorts(1, 2, 3, 9999)], [], [], "w"
    )


def test_with_several_pickers_all_are_asked_for_an_explanation() -> None:
    text = greeting(OPTIONS, [*PICKER, PickerPorts(5, 6, 7, 8)], TWO, [ModelsAnswer("", "")] * 2, "w")
    assert "w explain X-REQUEST-ID --debug-url http://127.0.0.1:9091 --debug-url http://127.0.0.1:8   (" in text
    assert "w top   (the first picker's page in a terminal; --debug-url names another one)" in text
    assert "live pages  http://127.0.0.1:9091/  (each shows its own picker's decisions)\n" in text
    assert "\n              http://127.0.0.1:8/\n" in text
    assert "metrics     http://127.0.0.1:9090/metrics  (Prometheus; each picker counts its own: scrape all)\n" in text
    assert "\n              http://127.0.0.1:7/metrics\n" in text


def test_an_endpoints_file_is_read_before_ports_are_tried(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nofile\.yaml"):
        EngineList(file=tmp_path / "nofile.yaml")


@pytest.mark.integration
async def test_one_of_several_pickers_is_called_by_its_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pickers, "RESTART_DELAY", 0.0)
    monkeypatch.setattr(pickers, "start_picker", lambda child, ports: child.start())
    ports = UpOptions(port=1, metrics_port=2, debug_port=3, pickers=2).picker_ports()
    parts = Pickers(tmp_path / "e.yaml", ports, tmp_path, [], {**os.environ})
    said: list[str] = []
    for child, program in zip(parts.children, ("sleep 600", "false"), strict=True):
        child.argv = tuple(program.split())
        await child.start()
    parts._nats = None
    keeping = asyncio.create_task(parts.keep_running(said.append))
    await eventually(lambda: "picker 2 is back" in said, "what is said")
    await cancel(keeping)
    await parts.stop()
    assert parts.children[0].returncode == -signal.SIGTERM
    of_the_second = [line for line in said if line.startswith("picker 2")]
    assert of_the_second[:2] == ["picker 2 ended with status 1; the others pick until it is back", "picker 2 is back"]


@pytest.mark.integration
async def test_a_picker_that_does_not_answer_is_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pickers, "ASK_INTERVAL", 0.01)
    monkeypatch.setattr(pickers, "ASK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        ports = [PickerPorts(1, 2, silent.getsockname()[1])]
        parts = Pickers(tmp_path / "e.yaml", ports, tmp_path, [], {**os.environ})
        (child,) = parts.children
        child.argv = ("sleep", "600")
        said: list[str] = []
        await child.start()
        keeping = asyncio.create_task(parts.keep_running(said.append))
        try:
            await eventually(lambda: said, "what is said")
            while len(said) < 2:
                connection, _ = await asyncio.to_thread(silent.accept)
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        finally:
            await cancel(keeping)
            await parts.stop()
    assert said[:2] == [
        "the picker does not answer; Envoy balances by least requests until it does",
        "the picker answers again",
    ]


@pytest.mark.integration
async def test_a_picker_that_does_not_come_back_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts: list[Child] = []

    async def start(child: Child, ports: PickerPorts) -> None:
        starts.append(child)
        if len(starts) == 1:
            raise ChildError("the picker was not ready")
        child.argv = ("sleep", "600")
        await child.start()

    monkeypatch.setattr(pickers, "RESTART_DELAY", 0.0)
    monkeypatch.setattr(pickers, "start_picker", start)
    parts = Pickers(tmp_path / "e.yaml", PICKER, tmp_path, [], {**os.environ})
    (child,) = parts.children
    child.argv = ("false",)
    said: list[str] = []
    await child.start()
    keeping = asyncio.create_task(parts.keep_running(said.append))
    await eventually(lambda: "the picker is back" in said, "what is said")
    await cancel(keeping)
    await parts.stop()
    assert child.returncode == -signal.SIGTERM
    ended = "the picker ended with status 1; Envoy balances by least requests until it is back"
    assert said == [ended, "the picker was not ready", ended, "the picker is back"]


@pytest.mark.integration
async def test_a_list_of_engines_that_cannot_be_read_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is told once for each reason, and the next good one is used, whatever the reason was."""
    monkeypatch.setattr(up_module, "LOOK_INTERVAL", 0.0)
    first, second = (Engine(name, "10.0.0.7", 8000) for name in ("a", "b"))
    looks: list[list[Engine] | Exception] = [
        [first],
        *[ConfigurationError("e.yaml: no list")] * 3,
        OSError("disk"),
        [first],
        OSError("disk"),
        ValueError("a bug"),
        [second],
    ]

    class Engines(EngineList):
        async def look(self) -> list[Engine]:
            found = looks.pop(0) if looks else [second]
            if isinstance(found, Exception):
                raise found
            return found

    said: list[str] = []
    up = Up(Engines([Target("10.0.0.7", 8000)]), OPTIONS, tmp_path, said.append)
    looking = asyncio.create_task(up._keep_looking())
    await eventually(lambda: not looks and len(said) >= 5, "all looks")
    await cancel(looking)
    stays = "the list of engines stays as it is: "
    assert said == [
        f"{stays}e.yaml: no list",
        f"{stays}disk",
        f"{stays}disk",
        f"{stays}ValueError('a bug')",
        "the engines are now: b",
    ]
    assert yaml.safe_load((tmp_path / "endpoints.yaml").read_text())["endpoints"][0]["name"] == "b"


@pytest.mark.integration
def test_each_picker_has_a_decision_log_of_its_own(tmp_path: Path) -> None:
    for target, second in (("d.jsonl", "d.jsonl-2"), ("stdout", "stdout")):
        environ = {"WARMROUTE_DECISION_LOG": target}
        ports = UpOptions(port=1, metrics_port=2, debug_port=3, pickers=2).picker_ports()
        children = Pickers(tmp_path / "e.yaml", ports, tmp_path, [], environ).children
        assert [child._environ["WARMROUTE_DECISION_LOG"] for child in children if child._environ] == [target, second]


@pytest.mark.integration
def test_variables_that_it_sets_itself_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMROUTE_GRPC_PORT", "9002")
    monkeypatch.setenv("WARMROUTE_HOST", "0.0.0.0")
    monkeypatch.setenv("WARMROUTE_HOLDOUT", "5%")
    said: list[str] = []
    Up(ENGINES, OPTIONS, tmp_path, said.append)
    assert said == [
        f"{name} is not used: `warmroute up` sets it itself" for name in ("WARMROUTE_GRPC_PORT", "WARMROUTE_HOST")
    ]


def test_many_engines_are_not_all_listed() -> None:
    text = greeting(OPTIONS, PICKER, TWO * 50, [ModelsAnswer("", "")] * 100, "w")
    assert "100 of 100 answer" in text
    assert "and 80 more" in text


def test_the_command_of_the_compose_file_is_understood() -> None:
    text = (ROOT / "examples" / "compose" / "compose.yaml").read_text(encoding="utf-8")
    name, *arguments = yaml.safe_load(text)["services"]["warmroute"]["command"]
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    given = command.make_context(name, arguments).params
    assert [Target.parse(engine).name for engine in given["engines"]] == ["vllm-a:8000", "vllm-b:8000"]
    assert (given["host"], given["debug_host"]) == ("0.0.0.0", "0.0.0.0")


# ---------------------------------------------------------------- written configuration


@pytest.fixture
def unreachable_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked for a metrics page."""
    monkeypatch.setattr(engine_probe, "_kind", lambda target: None)


@pytest.mark.integration
@pytest.mark.usefixtures("unreachable_engines")
async def test_a_directory_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    up = Up(ENGINES, OPTIONS, tmp_path / "gone", print)
    with pytest.raises(ConfigurationError, match=r"cannot write to .*gone: No such file or directory"):
        await up.run("warmroute")


@pytest.mark.integration
@pytest.mark.usefixtures("unreachable_engines")
def test_the_written_configurations_are_valid_and_name_the_engines_given(tmp_path: Path) -> None:
    paths = write(ENGINES, UpOptions(host="0.0.0.0", plain_port=8080, strategy="ROUND_ROBIN"), tmp_path / "new")
    assert [path.name for path in paths] == ["endpoints.yaml", "envoy-override-host.yaml", "envoy-original-dst.yaml"]
    endpoints = EndpointsFile.model_validate(yaml.safe_load(paths[0].read_text()))
    assert [(entry.address, entry.port) for entry in endpoints.endpoints] == [("10.0.0.7", 8000), ("10.0.0.8", 8000)]
    for path in paths[1:]:
        argv = [str(envoy_path()), "--mode", "validate", "--log-level", "error", "--config-path", str(path)]
        subprocess.run(argv, check=True, timeout=120, capture_output=True)
        text = path.read_text()
        assert f"envoy -c {path.name}" in text
        assert "serve --endpoints-file endpoints.yaml --host 127.0.0.1 --grpc-port 9002 " in text
        assert "--routing-strategy ROUND_ROBIN" in text
        assert "Requests go to http://0.0.0.0:8081" in text
        assert "remove: x-gateway-destination-endpoint" in text
        assert "failure_mode_allow: true" in text
        assert text.count("address: 10.0.0.7") == (2 if path.name == "envoy-override-host.yaml" else 1)
        listeners = yaml.safe_load(text)["static_resources"]["listeners"]
        assert {item["address"]["socket_address"]["address"] for item in listeners} == {"0.0.0.0"}


@pytest.mark.usefixtures("unreachable_engines")
def test_written_files_have_the_settings_that_a_run_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The strategy of the environment, and what Envoy has to know of the picker's settings."""
    monkeypatch.setenv("WARMROUTE_ROUTING_STRATEGY", "LEAST_REQUEST")
    monkeypatch.setenv("WARMROUTE_OBSERVE_RESPONSES", "true")
    monkeypatch.setenv("WARMROUTE_GRPC_PORT", "9102")
    paths = write(ENGINES, UpOptions(access_log="access.log"), tmp_path / "new")
    for path in paths[1:]:
        text = path.read_text()
        assert "--grpc-port 9102 " in text
        assert "--routing-strategy LEAST_REQUEST --observe-responses --decision-metadata\n" in text
        assert "response_header_mode: SEND" in text
        assert "port_value: 9102" in text


@pytest.mark.usefixtures("unreachable_engines")
def test_a_written_command_finds_the_strategys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def choose(request, candidates):\n    return [c.cost for c in candidates]\n")
    monkeypatch.chdir(tmp_path)
    paths = write(ENGINES, UpOptions(strategy="./mine.py:choose"), Path("new"))
    assert f"--routing-strategy {tmp_path}/mine.py:choose\n" in paths[1].read_text()


@pytest.mark.usefixtures("unreachable_engines")
@pytest.mark.parametrize("strategy", ["FOO", "./none.py:choose"])
def test_no_files_are_written_for_an_unknown_strategy(tmp_path: Path, strategy: str) -> None:
    with pytest.raises(ConfigurationError, match="routing strategy"):
        write(ENGINES, UpOptions(strategy=strategy), tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_given_endpoints_file_is_written_as_it_is(tmp_path: Path) -> None:
    """With its labels, namespaces, roles and models."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        "endpoints:\n- {name: a, address: 10.0.0.7, port: 8000, namespace: n, labels: {tier: fast}}\n"
        "- {name: b, address: 10.0.0.8, port: 8000, role: prefill}\nmodels: [{name: qwen, criticality: Sheddable}]\n"
    )
    paths = write(EngineList(file=file), UpOptions(), tmp_path / "new")
    assert paths[0].read_text() == file.read_text()
    assert "10.0.0.8" not in paths[1].read_text(), "it gets no requests of clients"


@pytest.mark.usefixtures("unreachable_engines")
def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "endpoints.yaml").write_text("mine")
    with pytest.raises(ConfigurationError, match="exists and is not overwritten"):
        write(ENGINES, UpOptions(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["endpoints.yaml"]
    assert (tmp_path / "endpoints.yaml").read_text() == "mine"


@pytest.mark.usefixtures("unreachable_engines")
def test_a_configuration_to_keep_needs_ports(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="fixed ports"):
        write(ENGINES, UpOptions(port=0), tmp_path)


@pytest.mark.usefixtures("unreachable_engines")
def test_a_configuration_to_keep_is_of_one_picker(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--write-config writes the configuration of one picker"):
        write(ENGINES, UpOptions(pickers=3), tmp_path)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- whole runs


@dataclass
class Running:
    """`warmroute up` before simulated engines."""

    child: Child
    engines: list[str]
    url: str
    """For requests."""
    debug: str
    client: aiohttp.ClientSession

    def log(self) -> str:
        return self.child.tail(1000)

    async def chat(self, **headers: str) -> aiohttp.ClientResponse:
        async with self.client.post(f"{self.url}/chat/completions", json=CHAT, headers=headers) as answer:
            await answer.read()
            return answer


@asynccontextmanager
async def running(
    tmp_path: Path, *flags: str, engines: int = 2, ready: str = "is ready", settings: Mapping[str, str] | None = None
) -> AsyncIterator[Running]:
    port = free_range(engines)
    simulators = Child(
        "warmroute simulate",
        [
            *(sys.executable, "-m", "warmroute", "simulate", "--model", "qwen", "--time-scale", "20"),
            *("--count", str(engines), "--port", str(port)),
        ],
        tmp_path / "simulators.log",
    )
    targets = [f"127.0.0.1:{port + k}" for k in range(engines)]
    argv = [
        sys.executable,
        "-m",
        "warmroute",
        "up",
        *("--port", "0", "--metrics-port", "0", "--debug-port", "0"),
        *(flag.replace("PORT", str(port)) for flag in flags),
    ]
    environ = {**os.environ, "WARMROUTE_STRICT_MODELS": "false", "WARMROUTE_LOGLEVEL": "debug", **(settings or {})}
    child = Child("warmroute up", argv, tmp_path / "up.log", environ=environ)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(simulators)
        await eventually(lambda: simulators.tail().count("listens on") == engines, "simulators")
        await stack.enter_async_context(child)
        await eventually(lambda: ready in child.tail(1000) or child.returncode is not None, "the greeting")
        text = child.tail(1000)
        assert ready in text, text
        requests, debug = (re.search(rf"{name} +(http://[^ ]+)", text) for name in ("requests", "live pages?"))
        assert requests is not None, text
        assert debug is not None, text
        client = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)))
        yield Running(child, targets, requests[1], debug[1].rstrip("/"), client)


@pytest.mark.e2e
async def test_up_serves_names_the_engine_and_explains(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    flags = ("http://127.0.0.1:PORT", "--access-log", str(log))
    async with running(tmp_path, *flags, engines=1) as up:
        assert up.log().count("'WARMROUTE_LOGLEVEL' is unknown and ignored: did you mean WARMROUTE_LOG_LEVEL?") == 1
        first, second = await up.chat(), await up.chat()
        for answer in (first, second):
            assert answer.status == 200
            assert answer.headers["x-warmroute-endpoint"] == up.engines[0]
            assert answer.headers["x-request-id"]
        argv = [sys.executable, "-m", "warmroute", "explain", second.headers["x-request-id"], "--debug-url", up.debug]
        said = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60, check=True)
        assert f"went to default/{up.engines[0]}" in said.stdout
        assert "warm: the endpoint probably holds more" in said.stdout
        await eventually(lambda: log.exists() and log.read_text().count("\n") == 2, "two lines in the access log")
        cold, warm = (json.loads(line) for line in log.read_text().splitlines())
        assert (cold["reason"], warm["reason"]) == ("cold", "warm")
        assert (cold["cached_share"], warm["request"]) == (0, second.headers["x-request-id"])
        assert 0.9 < warm["cached_share"] <= 1
        assert warm["endpoint"] == up.engines[0]
        up.child._started.send_signal(signal.SIGTERM)
        assert await up.child.wait() == 0
        require_free("127.0.0.1", int(up.url.rpartition(":")[2].partition("/")[0]), "nothing is left")


@pytest.mark.e2e
async def test_responses_are_observed_where_the_environment_says_so(tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    settings = {"WARMROUTE_OBSERVE_RESPONSES": "true", "WARMROUTE_DECISION_LOG": str(log)}
    async with running(tmp_path, "http://127.0.0.1:PORT", engines=1, settings=settings) as up:
        await up.chat()
        await eventually(lambda: log.exists() and log.read_text().count("\n") == 2, "a decision and its measurement")
        measured = json.loads(log.read_text().splitlines()[1])["measured"]
        assert (measured["status"], measured["served"]) == (200, up.engines[0])


@pytest.mark.e2e
async def test_engines_come_from_ranges_and_those_that_come_later_are_used(tmp_path: Path) -> None:
    async with running(tmp_path, "--discover", "127.0.0.1:PORT-PORT", "--plain-port", "0", engines=1) as up:
        assert "1 of 1 answer" in up.log()
        assert (await up.chat()).headers["x-warmroute-endpoint"] == up.engines[0]
        compare = re.search(r"to compare +(http://[^ ]+)", up.log())
        assert compare is not None
        async with up.client.post(f"{compare[1]}/chat/completions", json=CHAT) as answer:
            assert answer.status == 200


@pytest.mark.e2e
async def test_a_file_may_change_and_a_picker_that_dies_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_text("endpoints: []\n")
    async with running(tmp_path, "--endpoints-file", str(file)) as up:
        assert "none yet" in up.log()
        assert (await up.chat()).status == 503
        entries = [
            {"name": f"e{k}", "address": "127.0.0.1", "port": int(e.rpartition(":")[2])}
            for k, e in enumerate(up.engines)
        ]
        fresh = tmp_path / "fresh.yaml"
        fresh.write_text(json.dumps({"endpoints": entries}))
        fresh.replace(file)
        await eventually(lambda: "the engines are now: e0, e1" in up.log(), "the new list")
        async with asyncio.timeout(60):
            while (await up.chat()).status != 200:
                await asyncio.sleep(0.1)
        served = {(await up.chat()).headers["x-warmroute-endpoint"] for _ in range(4)}
        assert served <= set(up.engines)
        picker = await asyncio.to_thread(children, up.child.pid, "serve")
        os.kill(picker, signal.SIGKILL)
        await eventually(lambda: "the picker is back" in up.log(), "the picker's return")
        assert (await up.chat()).status == 200


@pytest.mark.e2e
async def test_several_pickers_share_and_the_others_go_on(tmp_path: Path) -> None:
    async with running(tmp_path, "http://127.0.0.1:PORT", "--pickers", "2", engines=1) as up:
        assert "starting 2 endpoint pickers, NATS and Envoy" in up.log()
        assert up.log().count("shared state connected") == 2
        await eventually(lambda: "'pickers': 2" in up.log() or up.log().count("shared state read") == 2)
        command = re.search(r"explain X-REQUEST-ID((?: --debug-url \S+)+)", up.log())
        assert command is not None
        for _ in range(3):  # Envoy takes the pickers in turn
            request_id = (await up.chat()).headers["x-request-id"]
            argv = [sys.executable, "-m", "warmroute", "explain", request_id, *command[1].split()]
            said = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60, check=True)
            assert f"Request {request_id} went to default/{up.engines[0]}" in said.stdout
        assert [(await up.chat()).status for _ in range(4)] == [200] * 4
        picker = (await asyncio.to_thread(all_children, up.child.pid, "serve"))[0]
        os.kill(picker, signal.SIGKILL)
        assert [(await up.chat()).status for _ in range(4)] == [200] * 4
        await eventually(lambda: "picker 1 is back" in up.log() or "picker 2 is back" in up.log(), "its return")
        nats = await asyncio.to_thread(children, up.child.pid, "--config")
        os.kill(nats, signal.SIGKILL)
        await eventually(lambda: "NATS is back" in up.log(), "the return of NATS")
        assert (await up.chat()).status == 200
        up.child._started.send_signal(signal.SIGTERM)
        assert await up.child.wait() == 0


@pytest.mark.e2e
async def test_a_picker_that_hangs_gets_no_more_requests(tmp_path: Path) -> None:
    async with running(tmp_path, "http://127.0.0.1:PORT", "--pickers", "2", engines=1) as up:
        picker = (await asyncio.to_thread(all_children, up.child.pid, "serve"))[0]
        os.kill(picker, signal.SIGSTOP)
        try:
            fast = 0  # requests in a row; Envoy takes the pickers in turn
            async with asyncio.timeout(60):
                while fast < 8:
                    began = time.monotonic()
                    assert (await up.chat()).status == 200
                    fast = fast + 1 if time.monotonic() - began < MESSAGE_TIMEOUT / 2 else 0
            await eventually(lambda: re.search(r"picker \d does not answer; the others pick", up.log()), "what is said")
        finally:
            os.kill(picker, signal.SIGCONT)
        await eventually(lambda: re.search(r"picker \d answers again", up.log()), "the picker's return")
        assert (await up.chat()).status == 200


def all_children(parent: int, word: str) -> list[int]:
    """The children of ``parent`` whose command line has ``word``."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "-ww", "--ppid", str(parent)], capture_output=True, text=True, check=True
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if f" {word} " in line]


def children(parent: int, word: str) -> int:
    """The one child of ``parent`` whose command line has ``word``."""
    (found,) = all_children(parent, word)
    return found


@pytest.mark.e2e
async def test_requests_in_flight_are_answered_before_it_stops(tmp_path: Path) -> None:
    async with running(tmp_path, "http://127.0.0.1:PORT", engines=1) as up:
        body = CHAT | {"max_tokens": 4000, "ignore_eos": True, "stream": True}
        async with up.client.post(f"{up.url}/chat/completions", json=body) as answer:
            await answer.content.readany()
            up.child._started.send_signal(signal.SIGINT)
            await eventually(lambda: "waiting for 1 request in flight" in up.log(), "the drain")
            text = await answer.text()
        assert text.rstrip().endswith("data: [DONE]")
        assert await up.child.wait() == 0


@pytest.mark.e2e
@pytest.mark.parametrize(("limit", "signals"), [("600", 2), ("0.1", 1)], ids=["second signal", "drain timeout"])
async def test_the_wait_for_requests_in_flight_ends(tmp_path: Path, limit: str, signals: int) -> None:
    async with running(tmp_path, "http://127.0.0.1:PORT", "--drain-timeout", limit, engines=1) as up:
        body = CHAT | {"max_tokens": 20_000, "ignore_eos": True, "stream": True}
        async with up.client.post(f"{up.url}/chat/completions", json=body) as answer:
            await answer.content.readany()
            for _ in range(signals):
                up.child._started.send_signal(signal.SIGINT)
                await eventually(lambda: "waiting for 1 request in flight" in up.log(), "the drain")
            assert await up.child.wait() == 0
            with pytest.raises(aiohttp.ClientPayloadError):  # it was cut off
                await answer.read()


@pytest.mark.e2e
async def test_without_envoy_it_ends_with_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, "http://127.0.0.1:PORT", engines=1) as up:
        picker = await asyncio.to_thread(children, up.child.pid, "serve")
        os.kill(await asyncio.to_thread(children, up.child.pid, "--config-path"), signal.SIGKILL)
        assert await up.child.wait() == 1
        assert up.log().splitlines()[-1] == "warmroute: Envoy ended with status -9; its output above may say why"
        with pytest.raises(ProcessLookupError):
            os.kill(picker, 0)


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_during_the_start_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    argv = [sys.executable, "-m", "warmroute", "up", "http://127.0.0.1:1", "--port", "0"]
    async with Child("warmroute up", argv, tmp_path / "up.log") as child:
        await eventually(lambda: "starting" in child.tail(), "the start")
        child._started.send_signal(number)
        assert await child.wait() == 0
        assert "Traceback" not in child.tail(1000)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ((), "name the engines: warmroute up http://"),
        (("https://a:1",), "engines are reached by http:// only"),
        (("http://127.0.0.1:1", "--host", "gpu"), "--host 'gpu' is not an IP address"),
        (("--endpoints-file", "/nowhere.yaml"), "/nowhere.yaml"),
        (("http://name.invalid:1",), "the host name 'name.invalid' has no address"),
        (
            ("http://127.0.0.1:1", "--routing-strategy", "FOO"),
            "there is no routing strategy 'FOO'; known are PREFIX_CACHE",
        ),
        (("http://127.0.0.1:1", "--routing-strategy", "nofile.py:f"), "there is no file nofile.py"),
    ],
)
def test_a_mistake_is_one_line(flags: tuple[str, ...], complaint: str) -> None:
    argv = [sys.executable, "-m", "warmroute", "up", "--port", "0", *flags]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert complaint in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
