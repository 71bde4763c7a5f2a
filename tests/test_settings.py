"""Settings from a file, the environment and flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from warmroute.errors import ConfigurationError
from warmroute.settings import Settings, changed, load
from warmroute.settings.durations import seconds
from warmroute.settings.go_flags import translated
from warmroute.settings.sources import mistyped_variables


def test_flags_win_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("grpc-port: 1\ngrpc_health_port: 1\nmetrics_port: 1\n")
    environ = {"WARMROUTE_GRPC_HEALTH_PORT": "2", "WARMROUTE_METRICS_PORT": "2"}
    settings = load({"metrics_port": "3"}, environ=environ, settings_file=file)
    assert (settings.grpc_port, settings.grpc_health_port, settings.metrics_port) == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grpc_port: [1", "settings.yaml: line 1, column 14: .*expected"),
        ("- grpc_port", "must be a mapping"),
        ("\x00", "settings.yaml: "),
        ("no_such: 1", "settings.yaml: 'no_such': unknown setting"),
        ("grpc_port: many", "settings.yaml: grpc_port: .*valid integer"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as raised:
        load({}, environ={}, settings_file=file)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(ConfigurationError, match="cannot read the settings file nowhere: No such file or directory"):
        load({}, environ={}, settings_file=Path("nowhere"))


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        ({"grpc_port": "99999"}, {}, "^--grpc-port: .*65535.* \\(given: '99999'\\)$"),
        ({"holdout": "500%"}, {}, "^--holdout: .* \\(given: '500%'\\)$"),
        (
            {"shared_state": "http://nats:4222"},
            {},
            "^--shared-state: must be .*nats://HOST:PORT.* \\(given: 'http://nats:4222'\\)$",
        ),
        ({"shared_state": "http://me:secret@nats"}, {}, "\\(given: 'http://\\*\\*\\*@nats'\\)$"),
        ({"shared_state": "nats://a,http://b"}, {}, "nats://HOST:PORT"),
        ({"shared_state": "nats://a,ws://b"}, {}, "all of them ws:// or wss://, or none"),
        ({"shared_state": "nats://:4222"}, {}, "nats://HOST:PORT"),
        ({"shared_state": "nats://a:many"}, {}, "nats://HOST:PORT"),
        ({"shared_state": "me:secret@nats:many"}, {}, "\\(given: '\\*\\*\\*@nats:many'\\)$"),
        ({"shared_state": "nats://a,"}, {}, "nats://HOST:PORT"),
        ({}, {"WARMROUTE_LOG_FORMAT": "xml"}, "^WARMROUTE_LOG_FORMAT: .*'console' or 'json'"),
        ({"drain_timeout": "5 parsecs"}, {}, "^--drain-timeout: .*valid number"),
    ],
)
def test_a_bad_value_is_told_with_where_it_came_from(
    flags: dict[str, Any], environ: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(flags, environ=environ)


@pytest.mark.parametrize(
    ("text", "figure"), [("500ms", 0.5), ("1m30s", 90.0), ("1.5h", 5400.0), ("7", "7"), ("5x", "5x"), ("", ""), (3, 3)]
)
def test_durations(text: object, figure: object) -> None:
    assert seconds(text) == figure


OPTIONAL = sorted(name for name, info in Settings.model_fields.items() if info.default is None)


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_is_empty_is_unset(name: str) -> None:
    assert getattr(load({}, environ={f"WARMROUTE_{name.upper()}": ""}), name) is None
    assert getattr(load({name: ""}, environ={}), name) is None


@pytest.mark.parametrize(
    "urls", ["nats://me:secret@a:4222, tls://b", "ws://a:80,wss://b", "a", "a:4222,nats://b", "nats://[::1]:4222"]
)
def test_servers_of_nats_are_taken_as_its_client_takes_them(urls: str) -> None:
    assert load({"shared_state": urls}, environ={}).shared_state == urls


def test_a_rate_is_no_duration() -> None:
    assert load({"metrics_rate": "50"}, environ={}).metrics_rate == 50
    with pytest.raises(ConfigurationError, match="metrics"):
        load({"metrics_rate": "500ms"}, environ={})


NUMBERS = sorted(name for name, info in Settings.model_fields.items() if info.annotation is float)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_finite(name: str) -> None:
    for text in ("inf", "-inf", "nan", "1e999"):
        with pytest.raises(ConfigurationError, match=f"^--{name.replace('_', '-')}: "):
            load({name: text}, environ={})


def test_only_hot_settings_change_while_it_runs() -> None:
    settings = Settings()
    assert changed(settings, {"max_endpoints": "3"}).max_endpoints == 3
    with pytest.raises(ConfigurationError, match="grpc_port cannot change"):
        changed(settings, {"grpc_port": 1})


def test_variables_of_older_pickers_count_unless_ours_is_there() -> None:
    environ = {"SD_QUEUE_DEPTH_THRESHOLD": "77", "KV_CACHE_THRESHOLD": "0.5"}
    settings = load({}, environ=environ)
    assert (settings.saturation_queue_depth, settings.saturation_kv_usage) == (77, 0.5)
    assert load({}, environ={**environ, "WARMROUTE_SATURATION_QUEUE_DEPTH": "3"}).saturation_queue_depth == 3
    with pytest.raises(ConfigurationError, match="SD_QUEUE_DEPTH_THRESHOLD: "):
        load({}, environ={"SD_QUEUE_DEPTH_THRESHOLD": "many"})


def test_a_file_may_say_off(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("shedding: off\n")
    assert load({}, environ={}, settings_file=file).shedding == "off"


def test_retired_settings_are_ignored_wherever_they_are_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags, warnings = translated(["--cost-kv", "3", "--costSlots=1", "--port=9"])
    assert flags == ["--port", "9"]
    assert warnings == [f"--{name} has no meaning any more and is ignored" for name in ("cost-kv", "cost-slots")]
    file = tmp_path / "settings.yaml"
    file.write_text("cost-kv: 20\ncost_waiting: 7\n")
    assert load({}, environ={"WARMROUTE_COST_SLOTS": "2"}, settings_file=file).cost_waiting == 7
    assert "cost_kv has no meaning any more" in caplog.text
    (warning,) = mistyped_variables({"WARMROUTE_COST_SLOTS": "2"})
    assert "WARMROUTE_COST_SLOTS has no meaning any more" in warning


def test_a_share_may_be_in_percent() -> None:
    assert load({"holdout": "5%"}, environ={}).holdout == load({"holdout": "0.05"}, environ={}).holdout == 0.05
    for wrong in ("200%", "half", "x%", "-1"):
        with pytest.raises(ConfigurationError, match="--holdout"):
            load({"holdout": wrong}, environ={})
