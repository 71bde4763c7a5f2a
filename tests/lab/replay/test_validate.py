"""The simulated engine against the real one's measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.recordings import ENGINE, engine_traces
from warmroute.cli import app
from warmroute.errors import ConfigurationError
from warmroute_lab.replay import validate
from warmroute_lab.simulator.profile import PROFILES

pytestmark = pytest.mark.integration

LINE = {"t": 0.1, "segs": [[1, 100]], "n": 100, "out": 4, "cached": 0, "ttft": 0.02, "e2e": 0.04}


def measurement(tmp_path: Path, *lines: object, name: str = "graphs.jsonl") -> Path:
    file = tmp_path / name
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return file


@pytest.mark.parametrize("file", engine_traces(), ids=lambda file: file.stem)
def test_what_was_measured_is_reproduced(file: Path) -> None:
    validation = validate.validate(file)
    assert validation.profile.measured
    outside = [f"{each.what}: {each.error:+.1%}" for each in validation.agreements if not each.within]
    assert not outside


def test_the_wrong_profile_is_noticed() -> None:
    file = ENGINE / "h100-qwen2.5-7b-graphs-groups_mid.jsonl"
    assert not validate.validate(file, PROFILES["h100-qwen2.5-7b-eager"]).within


def test_figures_and_picture_are_written(tmp_path: Path) -> None:
    file = measurement(tmp_path, LINE, LINE | {"t": 5.0, "cached": 96}, "")
    output, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    pytest.importorskip("matplotlib")
    validate.run([file], Console(quiet=True), output=output, picture=picture)
    (found,) = json.loads(output.read_text())
    assert found["profile"] == "h100-qwen2.5-7b-graphs"
    assert found["requests"] == 2
    figures = {each["what"]: each for each in found["figures"]}
    assert figures["cached tokens"]["real"] == figures["cached tokens"]["simulated"] == 96
    assert figures["TTFT mean"]["real"] == pytest.approx(0.02)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_real_beside_simulated_and_fails_outside(tmp_path: Path) -> None:
    file = measurement(tmp_path, LINE | {"ttft": 9.0})
    result = CliRunner().invoke(app, ["bench", "validate", str(file)])
    assert result.exit_code == 1
    assert "TTFT mean" in result.output
    assert "9.000 s" in result.output
    assert "outside" in result.output


def test_the_name_tells_the_profile() -> None:
    assert validate.profile_for(Path("x-eager-y.jsonl")).name == "h100-qwen2.5-7b-eager"
    assert validate.profile_for(Path("x-graphs-y.jsonl")).name == "h100-qwen2.5-7b-graphs"
    with pytest.raises(ConfigurationError, match="set --profile"):
        validate.profile_for(Path("x.jsonl"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], r"graphs.jsonl:1 is not a measured request"),
        ([LINE, [1]], r"graphs.jsonl:2 is not a measured request"),
        ([{k: v for k, v in LINE.items() if k != "ttft"}], "no field .ttft."),
        ([LINE | {"n": 101}], "do not add up"),
        ([LINE | {"out": 0}], "at least 1"),
        ([""], "holds no requests"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, lines: list[object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        validate.read_measurement(measurement(tmp_path, *lines))


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        validate.validate(tmp_path / "none-graphs.jsonl")


def test_a_request_beyond_the_cache_is_a_clear_error(tmp_path: Path) -> None:
    file = measurement(tmp_path, LINE | {"segs": [[1, 10**7]], "n": 10**7})
    with pytest.raises(ConfigurationError, match="larger than the KV cache"):
        validate.validate(file)
