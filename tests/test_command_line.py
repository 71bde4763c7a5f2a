"""The command line as its users type it."""

from __future__ import annotations

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

import warmroute
from warmroute import cli, runtime
from warmroute.cli import app
from warmroute.errors import ConfigurationError
from warmroute.gateway_extension import hooks
from warmroute.settings import Settings, extra_of, go_flags
from warmroute.settings.sources import mistyped_variables
from warmroute.standalone.up_options import UpOptions
from warmroute_lab.cli.demo import demo
from warmroute_lab.demo.options import DemoOptions

pytestmark = pytest.mark.integration

NO_FIXED_PORTS = [f"--{name}port=0" for name in ("", "plain-", "admin-", "epp-", "epp-health-", "metrics-", "debug-")]


@pytest.mark.parametrize(
    ("command", "options"),
    [(cli.up, UpOptions), (cli.gateway_extension, hooks.Options), (demo, DemoOptions)],
    ids=lambda value: value.__name__,
)
def test_flags_and_the_options_that_they_fill_have_equal_defaults(
    command: Callable[..., None], options: type[UpOptions | hooks.Options | DemoOptions]
) -> None:
    """The command line cannot take them from the options: their modules would make ``--help`` slow."""
    flags = {name: parameter.default for name, parameter in inspect.signature(command).parameters.items()}
    defaults = {field.name: field.default for field in fields(options)}
    shared = flags.keys() & defaults.keys()
    assert len(shared) >= len(defaults) - 1  # --routing-strategy fills `strategy`
    assert {name: flags[name] for name in shared} == {name: defaults[name] for name in shared}


@pytest.mark.parametrize(
    ("arguments", "understood"),
    [
        (["--grpc-port=1"], ["--grpc-port", "1"]),
        (["--grpc-port", "1"], ["--grpc-port", "1"]),
        (["-grpcPort", "1"], ["--grpc-port", "1"]),
        (["--grpcPort=1"], ["--grpc-port", "1"]),
        (["--grpc_port=1"], ["--grpc-port", "1"]),
        (["-secureServing=false"], ["--secure-serving", "false"]),
        (["--strict-models"], ["--strict-models", "true"]),
        (["--strict-models", "--max-endpoints=2"], ["--strict-models", "true", "--max-endpoints", "2"]),
        (["--strict-models", "false"], ["--strict-models", "false"]),
        (["--host="], ["--host", ""]),
        (["--endpoints-file=a=b"], ["--endpoints-file", "a=b"]),
        (["-v", "4"], ["--log-level", "debug"]),
        (["--v=1"], ["--log-level", "info"]),
        (["--zap-encoder", "json"], ["--log-format", "json"]),
        (["-refreshMetricsInterval", "50ms"], ["--refresh-metrics-interval", "50ms"]),
        (["-destinationEndpointHintMetadataNamespace=envoy.lb"], []),
        (["-h"], ["-h"]),
    ],
)
def test_flags_are_understood_as_go_programs_take_them(arguments: list[str], understood: list[str]) -> None:
    assert go_flags.translated(arguments) == (understood, [])


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_s_flag_reaches_the_settings(name: str) -> None:
    flag = "--" + name.replace("_", "-")
    assert go_flags.translated([flag, "true"]) == ([flag, "true"], [])


def test_flags_of_other_pickers_that_mean_nothing_are_named_and_left_out() -> None:
    flags, warnings = go_flags.translated(
        [
            "-configFile",
            "/x",
            "-healthChecking",
            "--enable-pprof",
            "false",
            "--refresh-prometheus-metrics-interval=5s",
            "-v=2",
        ]
    )
    assert flags == ["--log-level", "info"]
    assert [warning.split()[0] for warning in warnings] == [
        "--config-file",
        "--health-checking",
        "--enable-pprof",
        "--refresh-prometheus-metrics-interval",
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["serve"], "say where the endpoints come from"),
        (["serve", "-destinationEndpointHintKey=x"], "--destination-endpoint-hint-key can only be x-gateway-dest"),
        (["serve", "--endpoints-file=nowhere.yaml"], "cannot read the endpoints file nowhere.yaml"),
        (["serve", "--endpoints-file=x", "--grpc-port=many"], "--grpc-port: "),
        (["simulate", "--port=65535", "--count=2"], "port 65536 does not exist"),
        (["simulate", "--profile=abacus"], "there is no profile 'abacus'"),
        (["demo", *NO_FIXED_PORTS, "--pod-port=65535"], "the last port is 65535"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(arguments: list[str], complaint: str) -> None:
    assert complaint in complaint_about(arguments)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--holdout", "5%"], "--holdout is a setting of the picker: WARMROUTE_HOLDOUT=5% warmroute up ..."),
        (["--holdout=5%"], "--holdout is a setting of the picker: WARMROUTE_HOLDOUT=5% warmroute up ..."),
        (
            ["--strict-models"],
            "--strict-models is a setting of the picker: WARMROUTE_STRICT_MODELS=true warmroute up ...",
        ),
        (["--session-header", "a b"], "WARMROUTE_SESSION_HEADER='a b' warmroute up ..."),
        (["--holdout"], "--holdout is a setting of the picker: WARMROUTE_HOLDOUT=VALUE warmroute up ..."),
        (["--grpc-port", "1"], "--grpc-port is set by `warmroute up` itself"),
        (["--secure-serving=true"], "--secure-serving is set by `warmroute up` itself"),
    ],
)
def test_up_says_how_a_setting_of_the_picker_is_given(flags: list[str], complaint: str) -> None:
    result = CliRunner().invoke(app, ["up", "http://127.0.0.1:1", *flags])
    assert isinstance(result.exception, ConfigurationError), result.output
    assert complaint in str(result.exception)


@pytest.mark.parametrize("flag", ["--holdouts", "--no-such"])
def test_up_refuses_other_flags_as_every_command_does(flag: str) -> None:
    result = CliRunner().invoke(app, ["up", "http://127.0.0.1:1", flag])
    assert result.exit_code == 2
    assert "No such option" in result.output


PORT_FLAGS = ["--grpc-port", "--grpc-health-port", "--metrics-port", "--debug-port"]


@pytest.mark.parametrize("flag", PORT_FLAGS)
def test_a_taken_port_is_one_line_that_names_its_flag(tmp_path: Path, flag: str) -> None:
    endpoints = tmp_path / "endpoints.yaml"
    endpoints.write_text("endpoints: []")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = dict.fromkeys(PORT_FLAGS, 0) | {flag: taken.getsockname()[1]}
        flags = [
            f"--endpoints-file={endpoints}",
            "--host=127.0.0.1",
            *(f"{name}={port}" for name, port in ports.items()),
        ]
        assert f"({flag})" in complaint_about(["serve", *flags])


def complaint_about(arguments: list[str]) -> str:
    """What the command says on stderr in its one line, before it ends with exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "warmroute", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("warmroute: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_an_adapter_of_a_simulator_needs_a_path() -> None:
    result = CliRunner().invoke(app, ["simulate", "--lora-modules", "a=/a", "--lora-modules", "b"])
    assert isinstance(result.exception, ConfigurationError)
    assert "--lora-modules must be NAME=PATH; given: 'b'" in str(result.exception)


OWN_COMMANDS = ("serve", "settings", "version")


def test_the_version_is_an_option_and_a_command() -> None:
    said = [CliRunner().invoke(app, arguments) for arguments in (["--version"], ["version"])]
    form = " (compiled)" if runtime.compiled() else ""
    assert {(done.exit_code, done.stdout) for done in said} == {(0, f"{warmroute.__version__}{form}\n")}


@pytest.mark.parametrize("command", [[], *([name] for name in OWN_COMMANDS)])
def test_every_help_has_an_example_that_parses(command: list[str]) -> None:
    done = CliRunner().invoke(app, [*command, "--help"])
    example = re.search(r"Example: warmroute ((?:.|\n)+)", done.stdout)
    assert example is not None
    words = example[1].split()
    assert words[0] == (command or ["serve"])[0]
    flags = [word.split("=")[0] for word in words if word.startswith("--")]
    assert set(flags) <= {"--" + name.replace("_", "-") for name in Settings.model_fields}


INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "warmroute.cli":
            os.kill(os.getpid(), signal.SIGINT)

if "ignored" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = ["version"]
from warmroute.__main__ import main
main()
"""


INTERRUPTED_LATER = """
import os, signal
from warmroute import cli
from warmroute.__main__ import main
cli.app = lambda arguments: os.kill(os.getpid(), signal.SIGINT)  # as if the command line were being built
main()
"""


@pytest.mark.usefixtures("a_terminal")
def test_ctrl_c_before_the_command_runs_ends_it_without_a_traceback() -> None:
    argv = [sys.executable, "-c", INTERRUPTED_LATER]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.usefixtures("a_terminal")
def test_ctrl_c_during_the_imports_ends_the_command_without_a_traceback() -> None:
    interrupted, ignoring = (
        subprocess.run(
            [sys.executable, "-c", INTERRUPTED, *words], capture_output=True, text=True, timeout=60, check=False
        )
        for words in ([], ["ignored"])
    )
    assert (interrupted.returncode, interrupted.stdout, interrupted.stderr) == (-signal.SIGINT, "", "")
    assert ignoring.returncode == 0
    assert ignoring.stdout.startswith(warmroute.__version__)


def test_the_help_of_serve_lists_the_flags_by_group() -> None:
    text = CliRunner().invoke(app, ["serve", "--help"]).stdout
    groups = dict.fromkeys(extra_of(name)["group"] for name in Settings.model_fields)
    headings = [line.removesuffix(":") for line in text.splitlines() if re.fullmatch(r"[A-Z][\w ]+:", line)]
    assert headings == ["Options", *groups]
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')} " in text


def test_a_mistyped_variable_is_told_at_the_start_and_no_other() -> None:
    environ = {
        "WARMROUTE_ROUTING_STRATGEY": "x",
        "WARMROUTE_GRPC_PORT": "1",
        "WARMROUTE_SERVICE_HOST": "10.0.0.1",  # Kubernetes sets it for a Service named warmroute
        "WARMROUTE_PORT_9002_TCP": "tcp://10.0.0.1:9002",
        "ROUTING_STRATEGY": "x",
    }
    assert list(mistyped_variables(environ)) == [
        "the environment variable 'WARMROUTE_ROUTING_STRATGEY' is unknown and ignored: "
        "did you mean WARMROUTE_ROUTING_STRATEGY?"
    ]
    done = subprocess.run(
        [sys.executable, "-m", "warmroute", "serve"],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "did you mean WARMROUTE_ROUTING_STRATEGY?" in done.stderr


def test_the_help_of_serve_imports_neither_servers_nor_rich() -> None:
    code = "import sys; from warmroute.cli import app; app(['serve', '--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert not modules & {"grpc", "aiohttp", "asyncio", "kubernetes", "cryptography", "rich.console", "uvloop"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize("command", [["settings"], ["--version"], ["serve", "--help"]])
def test_a_full_disk_is_told_in_one_line(command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "warmroute", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "warmroute: cannot write: No space left on device\n")
