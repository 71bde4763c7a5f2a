"""docs/engines.md lists every series of every dialect, and says rightly which of them a recorded page has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from tests.recordings import engine_recording
from warmroute.engines.dialects import DIALECTS, AdapterInfo, Capacity, Dialect, Series

DOC = (Path(__file__).parents[2] / "docs/engines.md").read_text(encoding="utf-8")
DOCUMENTED = ["vllm", "sglang", "trtllm-serve", "triton-tensorrt-llm"]


def documented(engine: str) -> list[list[str]]:
    """The cells of the engine's table, line by line."""
    table = re.search(rf"<!-- dialect: {engine} -->\n.*?\n\|---.*?\n(.*?)\n<!-- end of dialect -->", DOC, re.DOTALL)
    assert table, engine
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def described(series: Series) -> str:
    conditions = [f'`{label}="{value}"`' for label, value in series.where if value]
    text = [f"text of `{series.label}`"] if series.label else []
    largest = ["largest over " + ", ".join(f"`{label}`" for label in series.replicas)] if series.replicas else []
    return "; ".join([*conditions, *text, *largest])


def expected(dialect: Dialect) -> Iterator[tuple[str, str, str]]:
    """Figure, series and labels, for each of the dialect."""
    for field in (each for each in fields(dialect) if "kind" in each.metadata):
        value = getattr(dialect, field.name)
        if isinstance(value, AdapterInfo):
            texts = ", ".join(f"`{label}`" for label in (value.running, value.waiting, value.limit))
            yield field.name, value.name, f"texts of {texts}"
            conditions = [f'`{label}="{content}"`' for label, content in value.on_gpu]
            yield field.name, value.loaded, "; ".join([f"text of `{value.adapter}`", *conditions])
        elif isinstance(value, tuple):
            for each in value:
                parts = (each.count, each.size) if isinstance(each, Capacity) else (each,)
                for series in filter(None, parts):
                    yield field.name, series.name, described(series)


@pytest.mark.parametrize("engine", DOCUMENTED)
def test_the_table_has_every_series_of_the_dialect(engine: str) -> None:
    rows = [(figure, series.strip("`"), labels) for figure, series, labels, *_ in documented(engine)]
    wanted = list(expected(DIALECTS[engine]))
    assert sorted(rows) == sorted(wanted)


def test_every_dialect_is_documented() -> None:
    assert {id(DIALECTS[engine]) for engine in DOCUMENTED} == {id(dialect) for dialect in DIALECTS.values()}


def test_the_recorded_page_has_what_the_table_says() -> None:
    page = engine_recording("vllm-0.26-metrics.txt").decode()
    for _, series, labels, recorded, _ in documented("vllm"):
        lines = [line for line in page.splitlines() if re.match(rf"{re.escape(series.strip('`'))}[{{ ]", line)]
        assert bool(lines) == (recorded == "yes"), series
        for label in re.findall(r"text of `(\w+)`", labels) if lines else ():
            assert any(f'{label}="' in line for line in lines), (series, label)


def test_every_fact_has_its_module() -> None:
    concluded = DOC[DOC.index("## What is concluded") : DOC.index("## By hand")]
    for module in set(re.findall(r"`((?:engines|routing)/\w+\.py)`", concluded)):
        assert (Path(__file__).parents[2] / "src/warmroute" / module).is_file(), module
