"""How the benchmarks' pictures are written: small, in true colours, and with a word where that fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from warmroute.cli import app
from warmroute.errors import ConfigurationError
from warmroute_lab import plot
from warmroute_lab.replay import comparison
from warmroute_lab.replay.outcome import Outcome, Sample

pytestmark = pytest.mark.integration


def outcome(strategy: str, *loads: tuple[int, ...], speedup: float = 0.5) -> Outcome:
    times = [0.05 * 1.01**i for i in range(500)]
    samples = [Sample(float(at), load) for at, load in enumerate(loads)]
    return Outcome(strategy, "scenario", speedup, times, times, [0] * 500, 1000, 500, 0, samples)


def colours(path: Path) -> dict[tuple[int, int, int], int]:
    from PIL import Image

    with Image.open(path) as picture:
        counted: Any = picture.convert("RGB").getcolors(1 << 20)
        return {colour: count for count, colour in counted}


def test_a_comparison_is_small_and_keeps_its_colours(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.png"
    load = [(i % 7, i % 11, 3) for i in range(600)]
    names = ("PREFIX_CACHE", "least-request", *(f"policy {i}" for i in range(10)))
    comparison.draw(path, [outcome(name, *load, speedup=speedup) for speedup in (0.5, 0.8, 1.1) for name in names])
    assert path.stat().st_size < 150_000
    found = colours(path)
    assert max(found, key=lambda colour: found[colour]) == (255, 255, 255)
    assert {tuple(bytes.fromhex(colour[1:])) for colour in (plot.COLOURS[5], plot.BLACK)} <= set(found)


@pytest.mark.parametrize("loads", [[(1,)], [(1, 2), (1,), (1, 2, 3)]], ids=["one-sample", "scaled"])
def test_pods_may_come_and_go(tmp_path: Path, loads: list[tuple[int, ...]]) -> None:
    pytest.importorskip("matplotlib")
    comparison.draw(tmp_path / "picture.png", [outcome("round-robin", *loads)])


def test_the_emphasised_strategy_is_the_only_black_one() -> None:
    lines = comparison._lines(["round-robin", "PREFIX_CACHE", "llm-d", "mine"])
    assert [name for name, line in lines.items() if line.colour == plot.BLACK] == ["PREFIX_CACHE"]
    assert lines["PREFIX_CACHE"].width > 2 * lines["llm-d"].width
    assert lines["round-robin"].colour in plot.GREYS
    assert lines["llm-d"].colour != lines["mine"].colour


def test_a_picture_that_cannot_be_drawn_is_a_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigurationError, match="cannot write"):
        comparison.draw(tmp_path / "missing" / "picture.png", [outcome("random", (1, 2))])


def test_that_a_picture_cannot_be_drawn_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "compare", None)
    replay = ["bench", "replay", "bursts", "--picture"]
    said = CliRunner().invoke(app, [*replay, str(tmp_path / "missing" / "picture.png")]).exception
    assert isinstance(said, ConfigurationError)
    assert "does not exist" in str(said)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plot.require(None)
    said = CliRunner().invoke(app, [*replay, str(tmp_path / "picture.png")]).exception
    assert isinstance(said, ConfigurationError)
    assert "--picture needs matplotlib" in str(said)
