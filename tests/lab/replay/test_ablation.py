"""The ablation of the cost: its changes, its arithmetic, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from warmroute.cli import app
from warmroute.errors import ConfigurationError
from warmroute.settings import Settings
from warmroute_lab import terminal
from warmroute_lab.replay import ablation
from warmroute_lab.replay.ablation import NUMBERS, UNCHANGED, Effect, Variation, effect, table, variations
from warmroute_lab.replay.standings import Cell, Drawn, Result

EXAMPLE = Result("PREFIX_CACHE", "agents", 0.5, 1, 8, 30, 0.2, 0.1, 0.3, 0.4, 2.0, 0.5, 0.1)


def test_every_number_is_a_setting_of_the_cost_and_changes_as_said() -> None:
    settings = Settings()
    assert set(NUMBERS) <= set(Settings.model_fields)
    weights = {name for name in Settings.model_fields if name.startswith("cost_")}
    assert weights - set(NUMBERS) == {"cost_adapter", "cost_stale"}, "no replay has adapters or outages"
    for variation in variations(NUMBERS):
        factor = {"removed": 0.0, "halved": 0.5, "doubled": 2.0}[variation.change]
        changed = variation.apply(settings)
        assert getattr(changed, variation.number) == factor * getattr(settings, variation.number)
        assert changed.model_dump(exclude={variation.number}) == settings.model_dump(exclude={variation.number})
    assert UNCHANGED.apply(settings) is settings
    assert Variation("drain_factor", "removed") not in variations(NUMBERS)


def test_an_effect_shows_how_far_seeds_and_sources_differ() -> None:
    ratios = {
        Drawn(Cell(source, 0.5), seed): ratio for source, seed, ratio in (("a", 1, 1.0), ("a", 2, 4.0), ("b", 1, 1.0))
    }
    found = Effect.of(ratios)
    assert found.typical == pytest.approx(4 ** (1 / 3))
    assert found.seeds == (1.0, 4.0)
    assert found.without_one_source == (1.0, 2.0)
    assert found.noise, "without source a nothing is left"
    assert not Effect.of({Drawn(Cell("a", 0.5), 1): 1.1, Drawn(Cell("b", 0.5), 1): 1.2}).noise


def test_one_seed_and_one_source_have_no_range() -> None:
    found = Effect.of({Drawn(Cell("a", 0.5), 1): 0.89})
    assert str(found) == "0.890  seeds -  sources -"
    assert str(Effect.of({Drawn(Cell("a", 0.5), 1): 1.1, Drawn(Cell("a", 0.5), 2): 1.2})).endswith(
        "seeds 1.10 to 1.20  sources -"
    )
    shown = table({UNCHANGED: [EXAMPLE], Variation("cost_running", "removed"): [replace(EXAMPLE, ttft_mean=0.1)]})
    assert "several seeds and several sources" in str(shown.caption)
    assert [next(iter(column.cells)) for column in shown.columns][4] == "unknown"


def test_results_are_compared_on_equal_fleets() -> None:
    before = [EXAMPLE, replace(EXAMPLE, pods=16, ttft_mean=1.0)]
    after = [replace(EXAMPLE, ttft_mean=0.4), replace(EXAMPLE, pods=16, ttft_mean=2.0)]
    assert effect(after, before, "ttft_mean").typical == pytest.approx(2.0)
    second_seed = [[replace(result, seed=2) for result in results] for results in (before, after)]
    shown = table({UNCHANGED: before + second_seed[0], Variation("cost_running", "removed"): after + second_seed[1]})
    assert [next(iter(column.cells)) for column in shown.columns][:2] == ["--cost-running", "removed"]
    assert [next(iter(column.cells)) for column in shown.columns][4] == "", "the mean doubles"


@pytest.mark.integration
def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = [
        "agents",
        "bursts",
        "--pods",
        "2",
        "--pods",
        "3",
        "--requests",
        "30",
        "--load",
        "0.8",
        "--seed",
        "1",
        "--seed",
        "2",
    ]
    result = CliRunner().invoke(
        app, ["bench", "ablate", *arguments, "--number", "cost_balance", "--json", str(file)], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    assert result.output.count("--cost-balance ") == 3
    rows = json.loads(file.read_text())
    assert len(rows) == (1 + 3) * 2 * 2 * 2
    assert {row["pods"] for row in rows} == {2, 3}


def test_the_table_is_shown_even_if_the_figures_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    results = {UNCHANGED: [EXAMPLE], Variation("cost_waiting", "removed"): [EXAMPLE]}
    monkeypatch.setattr(ablation, "measure", lambda *_: results)
    console = Console(file=StringIO(), width=200)
    with pytest.raises(ConfigurationError, match="cannot write /dev/full"):
        ablation.run([], (), Settings(), console, output=Path("/dev/full"))
    assert "--cost-waiting" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_figures_are_written_even_if_the_table_cannot_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(ablation, "measure", lambda *_: {UNCHANGED: [EXAMPLE]})
    monkeypatch.setattr(terminal, "show", show)
    with pytest.raises(OSError, match="no space"):
        ablation.run([], (), Settings(), Console(file=StringIO()), output=tmp_path / "figures.json")
    assert len(json.loads((tmp_path / "figures.json").read_text())) == 1


def test_an_unknown_number_is_named() -> None:
    result = CliRunner().invoke(app, ["bench", "ablate", "--number", "cost_luck"])
    assert result.exit_code != 0
    assert "cost_luck" in str(result.exception)
