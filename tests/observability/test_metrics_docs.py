"""The documentation, the dashboard and the alert rules speak of metrics and labels that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.factories import registry_of
from warmroute.observability.metrics import Metrics
from warmroute.observability.series import CATALOGUE
from warmroute.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/warmroute.json").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
QUERIES += [(rule["alert"], rule["expr"]) for rule in RULES]
QUERIES += [("docs", query) for query in re.findall(r"`([^`]*\b(?:rate|histogram_quantile)\([^`]*)`", DOCS)]

VLLM_PAGE = (ROOT / "tests/data/engine/vllm-0.26-metrics.txt").read_text(encoding="utf-8")
"""A metrics page of vLLM."""
TARGET_LABELS = {"job", "instance"}
"""Labels that Prometheus adds to every series."""


def exported() -> dict[str, set[str]]:
    """The sample names that a query may use, with their labels."""
    samples: dict[str, set[str]] = {"up": set()}
    for series in CATALOGUE:
        if series.type == "histogram":
            samples[f"{series.name}_bucket"] = {*series.labels, "le"}
            samples[f"{series.name}_sum"] = samples[f"{series.name}_count"] = set(series.labels)
        else:
            samples[series.name] = set(series.labels)
    own = set(samples)
    for family in registry_of(Metrics(Settings, list)).collect():
        for sample in family.samples:
            if sample.name not in own:
                samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


EXPORTED = exported()


def metrics_of(query: str) -> list[tuple[str, str]]:
    """The metric names in a query, each with its selector."""
    return re.findall(r"\b((?:warmroute|inference|llm_d_epp|process|python)_\w+|up)\b(?:\{([^}]*)\})?", query)


def test_the_table_is_the_catalogue() -> None:
    rows = [line for line in DOCS.splitlines() if re.match(r"\| `(warmroute|inference|llm_d_epp)_", line)]
    assert rows == [
        f"| `{s.name}` | {s.type} | {', '.join(f'`{label}`' for label in s.labels)} | {s.unit} | {s.meaning} |"
        for s in CATALOGUE
    ]


def test_the_alerts_are_documented() -> None:
    documented = re.findall(r"^\| `(Warmroute\w+)` \| (\w+) \|", DOCS, flags=re.MULTILINE)
    assert documented == [(rule["alert"], rule["labels"]["severity"]) for rule in RULES]


@pytest.mark.parametrize(("where", "query"), QUERIES)
def test_queries_use_what_is_exported(where: str, query: str) -> None:
    used = metrics_of(query)
    of_engines = re.findall(r"\(vllm\|sglang\):(\w+)", query)
    assert used or of_engines or "vllm:" in query, where
    assert all(f"\nvllm:{name}{{" in VLLM_PAGE for name in of_engines)
    labels = {*TARGET_LABELS, "le"} if "vllm" in query else set(TARGET_LABELS)
    for name, selector in used:
        assert name in EXPORTED, (where, name)
        labels |= EXPORTED[name]
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector):
            assert label in EXPORTED[name] | TARGET_LABELS, (where, name, label)
    for group in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", query):
        assert {label.strip() for label in group.split(",")} <= labels, (where, group)
    assert query.count("(") == query.count(")")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_alerts_say_what_is_wrong_with_labels_that_they_keep(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    kept = set(TARGET_LABELS)
    for group in re.findall(r"\bby\s*\(([^)]*)\)", rule["expr"]) or [""]:
        kept |= {label.strip() for label in group.split(",")}
    if " by " not in rule["expr"]:
        kept |= {label for name, _ in metrics_of(rule["expr"]) for label in EXPORTED[name]}
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= kept


def test_the_index_is_full_where_one_endpoint_has_used_its_even_share() -> None:
    fullness = [query for _, query in QUERIES if "warmroute_index_checkpoints_limit" in query]
    assert len(fullness) == 2
    for query in fullness:
        plain = re.sub(r"\{[^}]*\}|\s", "", query)
        assert (
            "maxby(job,instance)(warmroute_index_checkpoints)"
            "*on(job,instance)countby(job,instance)(warmroute_index_checkpoints)"
            "/on(job,instance)warmroute_index_checkpoints_limit"
        ) in plain


def test_legends_use_labels_that_the_query_keeps() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            groups = re.findall(r"\bby\s*\(([^)]*)\)", target["expr"])
            kept = {label.strip() for group in groups for label in group.split(",")} or TARGET_LABELS
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, panel["title"]


def test_the_dashboard_can_be_imported() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert [p["title"] for p in DASHBOARD["panels"] if p["type"] == "row"] == [
        "Traffic",
        "What clients wait for",
        "Picks and match ratio",
        "Load of the endpoints",
        "Cost of the picker",
        "Scrapes and reloads",
    ]
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for title, query in QUERIES:
        assert set(re.findall(r"\$(\w+)", query)) <= variables | {"__rate_interval"}, title
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + k) for i in range(at["w"]) for k in range(at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} overlaps another panel"
        taken |= cells
